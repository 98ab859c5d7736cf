"""Which sections a report has, and in which order: the answer and the warnings before everything else."""

from collections.abc import Sequence
from pathlib import Path

from bus_smp import __version__
from bus_smp.report.blocks import Block, Bullets, Document, Figure, Section, is_png
from bus_smp.report.claim import claim_section
from bus_smp.report.data_card import data_card
from bus_smp.report.evaluation_section import evaluation_section
from bus_smp.report.findings import limits, short_answer, warnings_first
from bus_smp.report.model_card import model_card
from bus_smp.report.provenance import course, how_made
from bus_smp.report.records import Run

# Made of patients' images: a repository's page would publish them again, which their licences may not allow.
OF_PATIENTS = ("qualitative", "failures")


def report(runs: Sequence[Run], matrix: Path | None = None) -> Document:
    """Everything about one or several runs, for a sceptical reader.

    Args:
        matrix: the heat map of train set against test set, where there is one.
    """
    sections = [
        short_answer(runs),
        warnings_first(runs),
        *_matrix(matrix),
        *_evaluations(runs),
        how_made(runs),
        *_courses(runs),
        data_card(runs),
        *(model_card(run) for run in runs),
        *(claim_section(run) for run in runs),
    ]
    return Document(_title(runs), _SUBTITLE, sections)


def results(runs: Sequence[Run], matrix: Path | None = None) -> Document:
    """What a repository's page of results holds: no cards, no checklist, no pictures of patients."""
    sections = [
        short_answer(runs),
        warnings_first(runs),
        how_made(runs),
        data_card(runs),
        *_matrix(matrix),
        *(_without_patients(section) for section in _evaluations(runs)),
        *_courses(runs),
        Section("What this does not show", [Bullets(limits(runs))]),
    ]
    return Document(_title(runs), _SUBTITLE, sections)


_SUBTITLE = f"Made by bus-smp report {__version__} from run folders. Research software, not for clinical use."


def _title(runs: Sequence[Run]) -> str:
    return f"Evaluation of {', '.join(run.name for run in runs)}"


def _evaluations(runs: Sequence[Run]) -> list[Section]:
    of_run = {run.name: f"{run.name} on" if len(runs) > 1 else "Results on" for run in runs}
    return [
        evaluation_section(run, one, f"{of_run[run.name]} {one.dataset}, {one.split}")
        for run in runs
        for one in run.evaluations
    ]


def _courses(runs: Sequence[Run]) -> list[Section]:
    found = [(run, section) for run in runs if (section := course(run)) is not None]
    if len(runs) == 1:
        return [section for _, section in found]
    inner: list[Block] = [Section(run.name, section.blocks) for run, section in found]
    return [Section("Course of the training", inner)] if inner else []


def _matrix(path: Path | None) -> list[Section]:
    if path is None or not is_png(path):
        return []
    caption = (
        "Rows: what a run was trained on; columns: what it was tested on. Bright is good in every panel. A "
        "frame marks the run's own test split; refused means that the target is not external to the run."
    )
    alt = "Heat maps of lesion Dice, missed lesions, false alarms and AUC for every run on every target"
    return [Section("Train set against test set", [Figure(path, "matrix.png", alt, caption)])]


def _without_patients(section: Section) -> Section:
    kept = [
        block
        for block in section.blocks
        if not (isinstance(block, Figure) and block.path.stem in OF_PATIENTS)
    ]
    return Section(section.title, kept)
