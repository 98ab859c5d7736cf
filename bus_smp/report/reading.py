"""Run folders to records, without torch. What cannot be read becomes a sentence in the report."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from bus_smp.data.manifest import read_manifest
from bus_smp.errors import BusSmpError, EvaluationError, TrainingError
from bus_smp.evaluation.draw import failures
from bus_smp.report.facts import FIGURES, is_png
from bus_smp.report.records import EvaluationRecord, RunRecord
from bus_smp.report.reproduce import evaluation_command
from bus_smp.runs import layout
from bus_smp.runs.comparisons import read_comparison
from bus_smp.runs.ensemble import is_ensemble, make_ensemble, read_ensemble
from bus_smp.runs.evaluations import read_summary
from bus_smp.runs.experiment import Member, is_experiment, read_experiment
from bus_smp.runs.layout import DATA, EXPERIMENT, PER_IMAGE, SUMMARY, list_evaluations
from bus_smp.runs.run import Run
from bus_smp.statistics.comparison_table import answer, comparison_rows
from bus_smp.statistics.score_table import columns_of, digits_of, format_estimate, table_rows
from bus_smp.statistics.summary import read_per_image

Found = TypeVar("Found")


def read_run(folder: Path) -> RunRecord:
    """Everything that a report states about a run or an experiment.

    Raises:
        EvaluationError: if the folder holds no evaluation that can be read.
    """
    name = folder.name
    missing: list[str] = []
    evaluations = [
        one for path in list_evaluations(folder) if (one := _read_evaluation(name, path, missing)) is not None
    ]
    if not evaluations:
        why = f": {missing[0]}" if missing else ""
        raise EvaluationError(
            f"{folder} holds no evaluation{why}",
            hint=f"make one: bus-smp evaluate --run {name}, or bus-smp crosseval --run {name} --target busi",
        )
    members: tuple[Member, ...] = ()
    if is_experiment(folder):
        try:
            members = read_experiment(folder).members
        except TrainingError:
            missing.append(
                f"{EXPERIMENT} cannot be read; it is written by: bus-smp train --run {name} --folds N or --seeds A,B"
            )
    ensemble = None
    if is_ensemble(folder):
        try:
            ensemble = read_ensemble(folder)
        except EvaluationError as error:
            missing.append(f"{_reason(error, folder)}; {error.hint}")
    run = Run(folder.parent / members[0].run if members else folder)
    run = ensemble.runs[0] if ensemble else run
    made_by = f"it is written by: bus-smp train --run {name}"

    def attempt(path: Path, read: Callable[[], Found], lost: str) -> Found | None:
        try:
            return read()
        except FileNotFoundError:
            missing.append(f"{path.name} is missing, so {lost} not known; {made_by}")
        except (BusSmpError, OSError, ValueError) as error:
            reason = _reason(error, run.folder)
            missing.append(f"{path.name} cannot be used: {reason}; so {lost} not known; {made_by}")
        return None

    record = RunRecord(
        name=name,
        folder=run.folder,
        members=members,
        settings=attempt(run.settings_path, run.settings, "the settings are"),
        header=attempt(run.best_path, run.header, "the content of the weights is"),
        environment=attempt(
            run.environment_path, lambda: _read_object(run.environment_path), "the machine of the training is"
        ),
        manifest=attempt(
            run.manifest_path,
            lambda: read_manifest(run.manifest_path, images=False),
            "the training data are",
        ),
        metrics=attempt(run.metrics_path, run.metrics, "the course of the training is"),
        evaluations=sorted(evaluations, key=lambda one: (one.is_external, one.dataset, one.folder.name)),
        missing=missing,
        combined=(*(one.name for one in ensemble.runs), *ensemble.views) if ensemble else (),
    )
    if record.header is not None and record.manifest is not None:
        try:
            run.check_weights(record.manifest)
        except BusSmpError as error:
            reason = _reason(error, run.folder)
            missing.append(f"{reason}: the training data named here are not those of the weights")
    if run.has_weights() and not members:
        weights = (ensemble or make_ensemble([run])).weights_sha256()
        for one in evaluations:
            scored = (one.summary.get("checkpoint") or {}).get("sha256")
            if scored not in (None, weights):
                missing.append(
                    f"{one.folder.name} was made with other weights than the run has now; make it again with: "
                    f"{evaluation_command(name, one.summary)}"
                )
    for path in (run.loss_curves_path, run.dice_curve_path):
        if not is_png(path):
            missing.append(f"{path.name} is missing or damaged; {made_by}")
    return record


def find_matrix(out: Path, names: Sequence[str]) -> Path | None:
    """The heat map of ``crosseval --matrix``, if it is of these runs and of no others."""
    folder = Path(out) / layout.MATRIX
    try:
        same = {cell["run"] for cell in _read_object(folder / layout.MATRIX_JSON)["cells"]} == set(names)
    except (OSError, ValueError, KeyError, TypeError):
        same = False
    return folder / layout.MATRIX_FIGURE if same else None


def find_comparison(out: Path, names: Sequence[str]) -> tuple[dict[str, Any] | None, str]:
    """What ``bus-smp compare`` found about two runs, in either order; or None and the reason in words.

    A comparison that is older than an evaluation of one of the runs is not shown: it is of other numbers.
    """
    for a, b in (names, names[::-1]):
        folder = layout.comparison_folder(out, a, b)
        if not (folder / layout.COMPARISON).is_file():
            continue
        try:
            found = read_comparison(folder)
            for one in found["comparisons"]:
                answer(one, names), comparison_rows(one), one["target"], one["split"]
        except (BusSmpError, KeyError, TypeError, ValueError, AttributeError) as error:
            return None, f"The comparison cannot be used ({_reason(error, folder)})"
        scored = [path / SUMMARY for name in names for path in layout.list_evaluations(Path(out) / name)]
        written = (folder / layout.COMPARISON).stat().st_mtime
        if any(path.is_file() and path.stat().st_mtime > written for path in scored):
            return None, "The comparison is older than the evaluations"
        return found, ""
    return None, "No comparison of these runs"


def _reason(error: Exception, folder: Path) -> str:
    """The first line of an error without the path of the folder, which means nothing to another reader."""
    lines = (error.what if isinstance(error, BusSmpError) else str(error)).splitlines() or ["damaged"]
    return lines[0].replace(f"{folder}{os.sep}", "").replace(str(folder), folder.name)


def _read_object(path: Path) -> dict[str, Any]:
    found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError("not a JSON object")
    return found


def _read_evaluation(run: str, folder: Path, missing: list[str]) -> EvaluationRecord | None:
    again = f"bus-smp evaluate --run {run}, or bus-smp crosseval --run {run} --target NAME"
    try:
        summary = read_summary(folder)
        columns, runs = _columns(summary)
        rows = table_rows(columns)
        again = evaluation_command(run, summary)
        evaluation = EvaluationRecord(folder, summary, columns, rows, runs, None, None)
        # the templates rely on both
        if not (evaluation.kind and all(isinstance(text, str) for text in summary["warnings"])):
            raise ValueError("warnings are not sentences")
    except EvaluationError as error:
        missing.append(f"{_reason(error, folder.parent)}; make it with: {again}")
        return None
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, StopIteration) as error:
        reason = f"lacks {error}" if isinstance(error, KeyError) else _reason(error, folder.parent)
        missing.append(
            f"{folder.name}/{SUMMARY} is damaged or of another version ({reason}); make it again with: "
            f"{again}"
        )
        return None

    failed = data = None
    if not runs:
        try:
            failed = _failures(read_per_image(folder / PER_IMAGE))
        except (BusSmpError, KeyError) as error:
            missing.append(
                f"{_reason(error, folder.parent)}; so failures are not listed; make it again with: {again}"
            )
        lost = [f"{figure}.png" for figure in FIGURES["evaluation"] if not is_png(folder / f"{figure}.png")]
        if lost:
            missing.append(f"{folder.name}: {', '.join(lost)} missing or damaged; drawn by: {again}")
    try:
        data = _read_object(folder / DATA)
    except FileNotFoundError:
        if summary["external"]:
            missing.append(
                f"{folder.name}/{DATA} is missing, so the scored data are not described; written by: {again}"
            )
    except (OSError, ValueError) as error:
        missing.append(
            f"{folder.name}/{DATA} cannot be read ({_reason(error, folder.parent)}); written by: {again}"
        )
    return EvaluationRecord(folder, summary, columns, rows, runs, failed, data)


def _failures(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """All failures by kind, in the order of the failure gallery."""
    kinds: dict[str, list[pd.Series]] = {}
    for kind, row in failures(table, most=len(table)):
        kinds.setdefault(kind, []).append(row)
    return {kind: pd.DataFrame(rows) for kind, rows in kinds.items()}


def _columns(summary: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The columns of the table, and the runs behind a mean over runs; every estimate has a ``text``."""
    summaries = {str(name): _with_text(one) for name, one in summary["summaries"].items()}
    for one in summaries.values():
        for key in ("images", "groups", "by_label"):
            one["counts"][key]
    columns = {name: _with_text(one) for name, one in columns_of(summary).items()}
    return columns, {name: summaries[name] for name in summary.get("runs", [])}


def _with_text(value: Any, name: str = "") -> Any:
    """A summary in which every estimate also has a ``text``: the form in which it is printed."""
    if not isinstance(value, Mapping):
        return value
    if {"mean", "low", "high", "n"} <= value.keys():
        return {**value, "text": format_estimate(value, digits_of(name))}
    return {str(key): _with_text(inner, str(key)) for key, inner in value.items()}
