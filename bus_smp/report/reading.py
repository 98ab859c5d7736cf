"""What ``report`` reads: run folders and their evaluations, without torch. What is missing is said."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pandas as pd

from bus_smp.config import load_settings
from bus_smp.data.manifest import read_manifest
from bus_smp.errors import BusSmpError, EvaluationError
from bus_smp.evaluation.draw import failures
from bus_smp.model.checkpoint import check_trained_on, read_header
from bus_smp.report.blocks import is_png
from bus_smp.report.evaluation_section import FIGURES
from bus_smp.report.provenance import evaluation_command
from bus_smp.report.records import Evaluation, Run
from bus_smp.runs.evaluations import read_summary
from bus_smp.runs.layout import BEST, EXPERIMENT
from bus_smp.statistics.score_table import digits_of, estimate_over_runs, format_estimate, table_rows
from bus_smp.statistics.summary import read_per_image
from bus_smp.system.files import file_sha256

if TYPE_CHECKING:
    Read = TypeVar("Read")


def _evaluations(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("eval-*") if path.is_dir())


def read_run(folder: Path) -> Run:
    """Everything a report tells about a run, or about an experiment.

    Raises:
        EvaluationError: if the folder holds no evaluation that can be read.
    """
    name, missing = folder.name, []
    again = f"bus-smp evaluate --run {name}"
    evaluations = [
        one for path in _evaluations(folder) if (one := _read_evaluation(name, path, missing)) is not None
    ]
    if not evaluations:
        why = f": {missing[0]}" if missing else ""
        raise EvaluationError(
            f"{folder} holds no evaluation{why}",
            hint=f"make one: {again}, or bus-smp crosseval --run {name} --target busi",
        )
    members = _members(folder, missing)
    own = folder.parent / str(members[0]["run"]) if members else folder
    made_by = f"bus-smp train --run {name}"

    def attempt(file: str, read: "Callable[[Path], Read]", lost: str) -> "Read | None":
        try:
            return read(own / file)
        except FileNotFoundError:
            missing.append(f"{file} is missing, so {lost} not known; it is written by: {made_by}")
        except (BusSmpError, OSError, ValueError) as error:
            missing.append(
                f"{file} cannot be used: {_reason(error, own)}; so {lost} not known; it is written by: "
                f"{made_by}"
            )
        return None

    run = Run(
        name=name,
        folder=own,
        members=members,
        settings=attempt("config.yaml", load_settings, "the settings are"),
        header=attempt(BEST, read_header, "what the weights are is"),
        environment=attempt("environment.json", _read_object, "what it was trained on is"),
        manifest=attempt(
            "manifest.csv", lambda path: read_manifest(path, images=False), "the training data are"
        ),
        metrics=attempt("metrics.csv", _read_metrics, "the course of the training is"),
        evaluations=sorted(
            evaluations, key=lambda one: (bool(one.summary["external"]), one.dataset, one.folder.name)
        ),
        missing=missing,
    )
    if run.header is not None and run.manifest is not None:
        try:
            check_trained_on(BEST, dict(run.header), run.manifest)
        except BusSmpError as error:
            missing.append(f"{error.what}: the training data named here are not those of the weights")
    if (own / BEST).is_file() and not members:
        weights = file_sha256(own / BEST)
        for one in evaluations:
            scored = (one.summary.get("checkpoint") or {}).get("sha256")
            if scored not in (None, weights):
                missing.append(
                    f"{one.folder.name} is of other weights than the run has now; make it again with: "
                    f"{evaluation_command(name, one.summary)}"
                )
    for figure in ("loss_curves.png", "dice_curve.png"):
        if not is_png(own / figure):
            missing.append(f"{figure} is missing or damaged; it is written by: {made_by}")
    return run


def _reason(error: Exception, folder: Path) -> str:
    """The first line of an error, without the folder that it names: whoever reads the report has another."""
    lines = (error.what if isinstance(error, BusSmpError) else str(error)).splitlines() or ["damaged"]
    return lines[0].replace(f"{folder}{os.sep}", "").replace(str(folder), folder.name)


def _members(folder: Path, missing: list[str]) -> list[Mapping[str, Any]]:
    if not (folder / EXPERIMENT).is_file():
        return []
    try:
        members = _read_object(folder / EXPERIMENT)["members"]
        if any(Path(member["run"]).name != member["run"] for member in members):
            raise ValueError("members must be names of run folders")
        return [{key: member[key] for key in ("run", "seed", "fold")} for member in members]
    except (OSError, ValueError, KeyError, TypeError):
        missing.append(
            f"{EXPERIMENT} cannot be read; it is written by: bus-smp train --run {folder.name} --folds N or "
            "--seeds A,B"
        )
        return []


def _read_metrics(path: Path) -> pd.DataFrame:
    table = pd.read_csv(path)
    if "epoch" not in table:
        raise ValueError("no column epoch")
    return table


def _read_object(path: Path) -> dict[str, Any]:
    found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError("not a JSON object")
    return found


# Evaluations


def _read_evaluation(run: str, folder: Path, missing: list[str]) -> Evaluation | None:
    again = f"bus-smp evaluate --run {run}, or bus-smp crosseval --run {run} --target NAME"
    try:
        summary = read_summary(folder)
        columns, runs = _columns(summary)
        rows = table_rows(columns)
        again = evaluation_command(run, summary)
        evaluation = Evaluation(folder, summary, columns, rows, runs, None, None)
        # what the sections take for granted
        if not (evaluation.kind and all(isinstance(text, str) for text in summary["warnings"])):
            raise ValueError("warnings are not sentences")
    except EvaluationError as error:
        missing.append(f"{_reason(error, folder.parent)}; make it with: {again}")
        return None
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, StopIteration) as error:
        reason = f"lacks {error}" if isinstance(error, KeyError) else _reason(error, folder.parent)
        missing.append(
            f"{folder.name}/summary.json is damaged or of another version ({reason}); make it again with: "
            f"{again}"
        )
        return None

    failed = data = None
    if not runs:
        try:
            failed = _failures(read_per_image(folder / "per_image.csv"))
        except (BusSmpError, KeyError) as error:
            missing.append(
                f"{_reason(error, folder.parent)}; so failures are not listed; make it again with: {again}"
            )
        lost = [f"{figure}.png" for figure in FIGURES if not is_png(folder / f"{figure}.png")]
        if lost:
            missing.append(f"{folder.name}: {', '.join(lost)} missing or damaged; drawn by: {again}")
    try:
        data = _read_object(folder / "data.json")
    except FileNotFoundError:
        if summary["external"]:
            missing.append(
                f"{folder.name}/data.json is missing, so the scored data are not described; written by: "
                f"{again}"
            )
    except (OSError, ValueError) as error:
        missing.append(
            f"{folder.name}/data.json cannot be read ({_reason(error, folder.parent)}); written by: {again}"
        )
    return Evaluation(folder, summary, columns, rows, runs, failed, data)


def _failures(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """All failures by kind, as the gallery of the worst picks them."""
    kinds: dict[str, list[pd.Series]] = {}
    for kind, row in failures(table, most=len(table)):
        kinds.setdefault(kind, []).append(row)
    return {kind: pd.DataFrame(rows) for kind, rows in kinds.items()}


def _columns(summary: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What stands side by side in a table, and the runs behind a mean over runs; estimates have a text."""
    summaries = {str(name): _with_text(one) for name, one in summary["summaries"].items()}
    for one in summaries.values():
        for key in ("images", "groups", "by_label"):
            one["counts"][key]
    if "members" not in summary:
        return summaries, {}
    names = [str(name) for name in summary["runs"]]
    over = {
        part: {name: estimate_over_runs(one) for name, one in summary["members"][part].items()}
        for part in ("metrics", "rates")
    }
    first = summaries[names[0]]
    mean = {"counts": first["counts"], "bootstrap": first.get("bootstrap"), **_with_text(over)}
    baselines = {name: one for name, one in summaries.items() if name not in names}
    return {f"mean of {len(names)} runs": mean, **baselines}, {name: summaries[name] for name in names}


def _with_text(value: Any, name: str = "") -> Any:
    """A summary in which every estimate also has a ``text``, as it is printed everywhere."""
    if not isinstance(value, Mapping):
        return value
    if {"mean", "low", "high", "n"} <= value.keys():
        return {**value, "text": format_estimate(value, digits_of(name))}
    return {str(key): _with_text(inner, str(key)) for key, inner in value.items()}
