"""Comparing two runs that were scored on the same images. Only their tables are read."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from bus_smp.errors import EvaluationError
from bus_smp.runs.evaluations import read_summary
from bus_smp.runs.layout import PER_IMAGE, evaluation_folder
from bus_smp.runs.run import Run
from bus_smp.statistics.compare import compare
from bus_smp.statistics.summary import read_per_image
from bus_smp.system.files import file_sha256

# Evaluations of a data set, in the order in which they are chosen.
SPLITS = ("all", "test", "oof", "val")


@dataclass(frozen=True)
class RunComparison:
    """What ``compare`` found, and on which evaluation.

    Attributes:
        split: one of ``SPLITS``.
        patient_known: False where the data set publishes no patient ids, so that intervals and p may be too small.
        found: the result of ``statistics.compare.compare``.
    """

    split: str
    patient_known: bool
    found: dict[str, Any]


def compare_runs(folders: Sequence[Path], target: str, split: str | None = None) -> RunComparison:
    """Compare the evaluations of two run folders on ``target``.

    Args:
        folders: of the two runs.
        split: None: the first of ``SPLITS`` that both have.

    Raises:
        EvaluationError: if an evaluation is missing, is a mean over runs, is of other weights than the run has now, or
            the two are not of the same images. The hint is the command that scores both.
    """
    split = split or _shared_split(folders, target)
    tables, summaries = zip(*(_read_evaluation(folder, target, split) for folder in folders), strict=True)
    again = " and ".join(_command(folder, target, split) for folder in folders)
    if summaries[0].get("rows_sha256") != summaries[1].get("rows_sha256"):
        raise EvaluationError(
            f"the runs were scored on other manifests of {target}",
            hint=f"score both on the same one: {again}",
        )
    try:
        found = compare(*tables)
    except EvaluationError as error:
        raise EvaluationError(error.what, hint=f"score both on the same manifest: {again}") from None
    return RunComparison(split, all(summary["patient_known"] for summary in summaries), found)


def _shared_split(folders: Sequence[Path], target: str) -> str:
    first, second = (
        [split for split in SPLITS if evaluation_folder(folder, target, split).is_dir()] for folder in folders
    )
    return next((split for split in first if split in second), (*first, *second, SPLITS[0])[0])


def _command(folder: Path, target: str, split: str) -> str:
    """What makes the evaluation."""
    if split == "all":
        return f"bus-smp crosseval --run {folder.name} --target {target}"
    return f"bus-smp evaluate --run {folder.name}" + (" --split val" if split == "val" else "")


def _read_evaluation(folder: Path, target: str, split: str) -> tuple[pd.DataFrame, dict[str, Any]]:
    scored, run = evaluation_folder(folder, target, split), Run(folder)
    again = _command(folder, target, split)
    try:
        summary = read_summary(scored)
        if "members" in summary:
            again = f"compare one of them: {', '.join(summary['runs'])}"
            raise EvaluationError(f"{scored}: is a mean over runs")
        weights = (summary.get("checkpoint") or {}).get("sha256")
        if weights and run.has_weights() and file_sha256(run.best_path) != weights:
            raise EvaluationError(f"{scored} is of other weights than {folder} holds now")
        return read_per_image(scored / PER_IMAGE), summary
    except EvaluationError as error:
        raise EvaluationError(error.what, hint=again) from None
