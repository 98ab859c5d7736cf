"""The table of train set against test set: a cell for each pair of a run and a data set, or why it is empty."""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from bus_smp import __version__
from bus_smp.data.manifest import Manifest, read_manifest
from bus_smp.errors import BusSmpError, CheckpointError, DataError, EvaluationError, TrainingError
from bus_smp.evaluation.external import Externality, check_external
from bus_smp.evaluation.pooling import MAIN, cells, estimates_by_key, estimates_of, format_lines
from bus_smp.evaluation.scoring import Scorer
from bus_smp.runs import layout
from bus_smp.runs.ensemble import Ensemble
from bus_smp.runs.evaluations import write_table
from bus_smp.runs.experiment import Experiment
from bus_smp.runs.run import Run
from bus_smp.statistics.metrics import BY_KEY
from bus_smp.system import ranks
from bus_smp.system.files import write_text

IN_DOMAIN, EXTERNAL, REFUSED = "in-domain", "external", "refused"
NOT_KNOWN = "not known to be external"


@dataclass(frozen=True)
class Cell:
    """One run (or experiment) on one target.

    Attributes:
        run: name of the run or experiment; ``trained_on``: its data sets, joined by +.
        target: name of the target's manifest.
        kind: ``in-domain`` (the run's own test split of a data set it was trained on), ``external``, ``not known to be
            external`` (scored, but images could not be compared), or ``refused`` (nothing could be scored).
        summary: the evaluation's summary; None where refused.
        reason: why the cell is refused.
    """

    run: str
    trained_on: str
    target: str
    kind: str
    summary: Mapping[str, Any] | None = None
    reason: str = ""


# Errors that empty one cell. All others stop the matrix, because they do not belong to one run or one target.
_REASONS = (CheckpointError, DataError, EvaluationError, TrainingError)


def score_matrix(
    scorer: Scorer,
    rows: Sequence[tuple[Run | Experiment | Ensemble, Sequence[Manifest]]],
    targets: Sequence[Path],
    root: Mapping[str, Path] | None = None,
    store: Path | None = None,
) -> list[Cell]:
    """Score every run on every target. Evaluations that are current are kept; an error empties only its own cell.

    Args:
        rows: runs and experiments, each with the manifests it was trained on.
        targets: files of manifests; each is read once.
        root: data set -> folder of its images, where they have moved.
        store: as for ``check_external``.
    """
    read: dict[Path, Manifest | BusSmpError] = {}
    for path in targets:
        try:
            read[path] = read_manifest(path, root)
        except _REASONS as error:
            read[path] = error
    known: dict[tuple, Externality] = {}

    def check(training: Sequence[Manifest], target: Manifest) -> Externality:
        # runs that differ by their seeds share their images
        key = (target.sha256, *((manifest.sha256, str(manifest.roots)) for manifest in training))
        if key not in known:
            known[key] = check_external(training, target, store)
        return known[key]

    return [
        cell
        for trained, training in rows
        for cell in _row(scorer, trained, [manifest.at(root) for manifest in training], read, check)
    ]


def _row(
    scorer: Scorer,
    trained: Run | Experiment | Ensemble,
    training: Sequence[Manifest],
    targets: Mapping[Path, Manifest | BusSmpError],
    check: Callable[[Sequence[Manifest], Manifest], Externality],
) -> Iterator[Cell]:
    own = set(training[0].datasets)
    for path, target in targets.items():
        kind, summary, reason = REFUSED, None, ""
        try:
            if isinstance(target, BusSmpError):
                raise target
            if len(target.datasets) == 1 and own >= set(target.datasets):
                (summary,) = scorer.score_own(trained, training[0], "test", datasets=target.datasets)
                kind = IN_DOMAIN
            else:
                externality = check(training, target)
                summary = scorer.score_target(trained, target, externality)
                kind = EXTERNAL if externality.external is True else NOT_KNOWN
        except _REASONS as error:
            # the table is passed on, so files are named without the folders of this machine
            reason = re.sub(r"(?<!\S)/(?:[^/\n:,;]+/)+", "", " ".join(error.what.split()))
            scorer.say(f"{trained.name} on {path.stem}: {reason}")
        yield Cell(trained.name, "+".join(training[0].datasets), path.stem, kind, summary, reason)


def matrix_frame(matrix: Sequence[Cell]) -> pd.DataFrame:
    """The table of ``matrix.csv``, a row for each cell.

    Columns: ``run, trained_on, target, kind, runs`` (how many it is the mean of), ``images``, for each of ``MAIN``
    the value, ``_low``, ``_high`` (95 % interval of one table) and ``_sd`` (between runs), and ``reason``: why a cell
    is refused, or a value of it undefined. What is not defined is NaN.
    """
    values = [f"{name}{ending}" for name in MAIN for ending in ("", "_low", "_high", "_sd")]
    rows = []
    for cell in matrix:
        row: dict[str, Any] = {key: getattr(cell, key) for key in ("run", "trained_on", "target", "kind")}
        reasons = [cell.reason] if cell.reason else []
        if cell.summary is not None:
            estimates = estimates_of(cell.summary)
            row |= {"runs": len(cell.summary.get("runs", [0])), "images": estimates["counts"]["images"]}
            row |= cells(estimates, list(MAIN))
            found = estimates_by_key(estimates)
            reasons += [
                f"{words}: {found[name].get('no_interval') or 'undefined in every run'}"
                for name, words in MAIN.items()
                if found[name]["mean"] is None
            ]
        rows.append(row | {"reason": "; ".join(reasons)})
    columns = ["run", "trained_on", "target", "kind", "runs", "images", *values, "reason"]
    table = pd.DataFrame(rows, columns=columns)
    table[["runs", "images"]] = table[["runs", "images"]].astype("Int64")
    table[values] = table[values].astype(float)
    return table


@ranks.by_first
def write_matrix_folder(matrix: Sequence[Cell], folder: Path) -> dict[str, Any]:
    """Write ``matrix.csv``, ``matrix.json`` and ``matrix.png``; return what the JSON holds."""
    from bus_smp.figures.matrix import write_matrix

    table = matrix_frame(matrix)
    write_table(table, folder / layout.MATRIX_CSV)
    records = table.astype(object).where(table.notna(), None).to_dict("records")
    document = {"bus_smp": __version__, "cells": records}
    write_text(
        folder / layout.MATRIX_JSON,
        json.dumps(document, indent=2, allow_nan=False, ensure_ascii=False) + "\n",
    )
    panels = [
        (key, f"{words} ({BY_KEY[key].better} is better)", BY_KEY[key].better == "lower")
        for key, words in MAIN.items()
    ]
    write_matrix(table, folder / layout.MATRIX_FIGURE, panels)
    return document


def format_matrix(matrix: Sequence[Cell]) -> str:
    """The matrix as text, a line for each cell, the runs one after the other."""
    lines: dict[str, Mapping[str, Any] | str] = {}
    for cell in matrix:
        name = f"{cell.run} ({cell.trained_on}) on {cell.target}, {cell.kind}"
        lines[name] = cell.reason if cell.summary is None else estimates_of(cell.summary)
    return format_lines(lines)
