"""Evaluating a run: score, write the tables, summarise and draw from them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from bus_smp import __version__
from bus_smp.classes import LABELS
from bus_smp.data.exclusions import count_exclusions
from bus_smp.data.manifest import SPLITS, Manifest, manifest_hash
from bus_smp.errors import EvaluationError
from bus_smp.evaluation.draw import draw_figures
from bus_smp.evaluation.score_images import score_images
from bus_smp.inference.predictor import Predictor
from bus_smp.measures.baselines import BASELINES
from bus_smp.measures.reliability import Reliability
from bus_smp.runs.describe import calibration_warnings
from bus_smp.runs.evaluations import (
    MODEL,
    Tables,
    mask_path,
    read_summary,
    read_tables,
    remove_summary,
    write_data,
    write_paper_tables,
    write_summary,
)
from bus_smp.statistics.bootstrap import defined
from bus_smp.statistics.legacy import legacy_metrics
from bus_smp.statistics.summary import summarise, warnings_of
from bus_smp.system import ranks

# The beginning of a warning that says what ``score_table.verdict`` says.
BEATEN = "the trivial baseline "
# Of the header of the weights, in ``summary.json``.
_RECORDED = ("epoch", "score", "datasets", "git_commit", "precision", "versions", "sha256")
NOT_CALIBRATED = "the run is not calibrated (bus-smp train, typed again, does it): no operating point"


def evaluate(
    predictor: Predictor,
    header: Mapping[str, Any],
    manifest: Manifest,
    rows: pd.DataFrame,
    folder: Path,
    *,
    about: Mapping[str, Any],
    legacy: bool = False,
    progress: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """Score ``rows``, write the evaluation folder, return what ``summary.json`` holds.

    Args:
        header: the checkpoint's header with the file's ``sha256``, from ``load_predictor``; recorded.
        rows: the rows of ``manifest`` to score.
        folder: replaced file by file.
        about: ``run``, ``dataset``, ``split``, ``external``; recorded and used in titles.
        legacy: add the numbers of the notebook this project replaces.

    Raises:
        EvaluationError, ImageError: as ``score_images``.
    """
    folder = Path(folder)
    calibration = header.get("calibration") or {}
    tables = score_images(
        predictor,
        manifest,
        rows,
        calibration=calibration,
        baselines=list(BASELINES),
        mask_path=lambda row: mask_path(folder, row),
        progress=progress,
    )
    about = {
        **about,
        "computed_in": predictor.computed_in,
        "checkpoint": {key: header.get(key) for key in _RECORDED},
        "calibration": calibration or {"reason": NOT_CALIBRATED},
    }
    if "members" in header:
        about["checkpoint"]["members"] = [
            {key: one.get(key) for key in _RECORDED} for one in header["members"]
        ]
    return write_evaluation(folder, tables, about, manifest, legacy=legacy)


@ranks.by_first
def write_evaluation(
    folder: Path, tables: Tables, about: Mapping[str, Any], manifest: Manifest, *, legacy: bool = False
) -> dict[str, Any]:
    """Write all tables, summary, data card and figures; return what ``summary.json`` holds.

    Args:
        folder: holds the predicted masks already, at ``mask_path``.
        about: recorded; at least ``run``, ``dataset``, ``split``, ``external``. Its ``warnings`` are the first.
        manifest: of the images in ``tables``.
        legacy: add the numbers of the notebook this project replaces.

    Raises:
        EvaluationError: if a table is not what it should be.
        ImageError: if an image to be drawn cannot be read (any more).
    """
    folder = Path(folder)
    remove_summary(folder)
    tables.write(folder)
    models = {MODEL: tables.model, **tables.baselines}
    summaries = {name: summarise(table) for name, table in models.items()}
    scored = set(zip(tables.model["dataset"], tables.model["image_id"], strict=True))
    frame = manifest.frame
    rows = frame[[key in scored for key in zip(frame["dataset"], frame["image_id"], strict=True)]]
    known = bool(rows["patient_known"].all())
    summary = {
        "bus_smp": __version__,
        **about,
        "patient_known": known,
        "manifest_sha256": manifest.sha256,
        "rows_sha256": manifest_hash(rows),
        "warnings": [*about.get("warnings", ()), *_warnings(summaries, known, about)],
        "pixel_calibration": {
            f"ece_{stage}": defined(tables.reliability.error(stage)) for stage in Reliability.STAGES
        },
        "summaries": summaries,
    }
    if legacy:
        summary["legacy"] = {name: legacy_metrics(table) for name, table in models.items()}
    write_paper_tables(folder, summaries, about)
    write_data(folder, describe_data(manifest))
    draw_figures(folder, tables, summary, manifest)
    write_summary(folder, summary)
    return summary


def describe_data(manifest: Manifest) -> dict[str, Any]:
    """What a manifest is, for those who have only the evaluation: JSON values, no path.

    ``sha256`` of the whole manifest, its row counts by label and split, exclusions by reason, and the sidecar's
    account of how it was made.
    """
    frame = manifest.frame
    used = manifest.used()
    return {
        "datasets": manifest.datasets,
        "sha256": manifest.sha256,
        "images": len(frame),
        "used": len(used),
        "groups": int(used["group_id"].nunique()),
        "patients_known": bool(used["patient_known"].all()),
        "labels": {label: int((used["label"] == label).sum()) for label in LABELS},
        "splits": {
            split: {
                label: int(((used["split"] == split) & (used["label"] == label)).sum()) for label in LABELS
            }
            for split in SPLITS
        },
        "excluded": count_exclusions(frame["excluded"]),
        "about": manifest.about,
    }


@ranks.by_first
def is_current(
    folder: Path,
    checkpoint_sha256: str,
    manifest: Manifest,
    rows: pd.DataFrame,
    *,
    backend: str = "torch",
    precision: str = "auto",
) -> bool:
    """True if the folder holds the finished evaluation of this checkpoint on these rows of ``manifest``, whole.

    Args:
        backend: it must have been computed by this one.
        precision: and in this one; ``auto``: in any.
    """
    summary = _read_whole(folder, manifest, rows)
    if summary is None:
        return False
    computed_in = summary.get("computed_in") or {}
    return (
        (summary.get("checkpoint") or {}).get("sha256") == checkpoint_sha256
        and computed_in.get("backend", "torch") == backend
        and precision in ("auto", computed_in.get("precision"))
    )


@ranks.by_first
def is_current_pool(folder: Path, sources: Mapping[str, str], manifest: Manifest, rows: pd.DataFrame) -> bool:
    """True if the folder holds the finished out-of-fold evaluation of these ``rows`` of ``manifest``, whole.

    Args:
        sources: run -> SHA-256 of its ``per_image.csv``.
    """
    summary = _read_whole(folder, manifest, rows)
    return summary is not None and summary.get("pooled_from") == sources


def _read_whole(folder: Path, manifest: Manifest, rows: pd.DataFrame) -> dict[str, Any] | None:
    """The summary of a finished evaluation of ``rows`` by this version; None if it is another, or a file is missing."""
    try:
        summary = read_summary(folder)
        tables = read_tables(folder)
    except EvaluationError:
        return None
    masks = (mask_path(folder, row) for row in tables.model[["dataset", "image_id"]].to_dict("records"))
    whole = (
        all(mask.is_file() for mask in masks)
        and summary.get("rows_sha256") == manifest_hash(rows)
        and summary.get("manifest_sha256") == manifest.sha256
        and summary["bus_smp"] == __version__
    )
    return summary if whole else None


def _warnings(
    summaries: Mapping[str, Mapping[str, Any]], patient_known: bool, about: Mapping[str, Any]
) -> list[str]:
    warnings = warnings_of(summaries[MODEL], "patient" if patient_known else "group")
    if not patient_known:
        warnings.append("the data set publishes no patient ids: groups are duplicates found, not patients")
    if about.get("split") == "val":
        warnings.append("epoch, temperature and thresholds were chosen on these very images: optimistic")
    if (about.get("computed_in") or {}).get("precision") == "int8":
        warnings.append("computed in int8: results of a quantised network, not of the weights as trained")
    calibration = about.get("calibration") or {}
    warnings += [calibration["reason"]] if calibration.get("reason") else []
    point = calibration.get("operating_point") or {}
    warnings += [f"no operating point for lesions: {point['reason']}"] if point.get("reason") else []
    warnings += calibration_warnings(calibration)
    dice = {name: summary["metrics"]["dice_lesion"]["mean"] for name, summary in summaries.items()}
    if dice[MODEL] is not None:
        beaten = [name for name in BASELINES if dice[name] >= dice[MODEL]]
        warnings += [f"{BEATEN}{name} reaches the same lesion Dice or more" for name in beaten]
    return warnings
