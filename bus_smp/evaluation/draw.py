"""The figures of an evaluation folder, from its tables, its masks and the images."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bus_smp.classes import BENIGN, LABELS, MALIGNANT
from bus_smp.data.examples import read_example
from bus_smp.data.images import read_mask
from bus_smp.data.manifest import Manifest
from bus_smp.errors import EvaluationError
from bus_smp.figures.agreement import write_agreement
from bus_smp.figures.calibration import write_calibration
from bus_smp.figures.confusion_matrix import write_confusion_matrix
from bus_smp.figures.coverage import write_coverage, write_uncertainty
from bus_smp.figures.froc import write_froc
from bus_smp.figures.qualitative import Case, write_qualitative
from bus_smp.figures.roc import write_roc_curves
from bus_smp.figures.subgroups import write_subgroups
from bus_smp.measures.lesions import GOOD_IOU, LEAST_IOU, froc
from bus_smp.measures.overlap import TARGETS
from bus_smp.runs.evaluations import MODEL, Tables, mask_path
from bus_smp.statistics.metrics import CALLS
from bus_smp.statistics.roc import roc_band, roc_of_images
from bus_smp.statistics.score_table import format_estimate
from bus_smp.text import counted

Chosen = list[tuple[str, pd.Series]]


def draw_figures(folder: Path, tables: Tables, summary: Mapping[str, Any], manifest: Manifest) -> None:
    """Draw the figures of an evaluation into its folder, which already holds the masks. No model is needed.

    Args:
        tables: as from ``read_tables``.
        summary: as from ``read_summary``.
        manifest: of the scored images.

    Raises:
        EvaluationError: if ``manifest`` lacks an image of the tables.
    """
    table, model = tables.model, summary["summaries"][MODEL]
    kind = "external test" if summary["external"] is True else "not known to be external"
    kind = kind if summary["external"] else f"{summary['split']} split"
    title = f"{summary['run']} on {summary['dataset']} ({kind}, {counted(len(table), 'image')})"

    _draw_roc(table, model, folder / "roc_curves.png", title)
    pixels = {target: tables.pixel_roc.roc(target) for target in TARGETS}
    write_roc_curves(
        {
            f"{target} pixels, AUC {'not defined' if math.isnan(auc) else f'{auc:.3f}'}": (false, true)
            for target, (false, true, auc) in pixels.items()
        },
        folder / "pixel_roc_curves.png",
        title,
    )
    write_confusion_matrix(
        np.array(model["image_confusion"]),
        np.array(model["pixel_confusion"]),
        folder / "confusion_matrix.png",
        title,
    )
    reason = (summary.get("calibration") or {}).get("reason") or "no threshold"
    write_calibration(tables.reliability.to_frame(), table, folder / "calibration.png", title)
    write_coverage(table, folder / "coverage.png", title, no_threshold=reason)
    write_uncertainty(table, folder / "uncertainty.png", title)
    found = {f"IoU >= {iou:g}": froc(table, tables.components, iou) for iou in (LEAST_IOU, GOOD_IOU)}
    write_froc(found, folder / "detection.png", title)
    write_subgroups(model["strata"], folder / "difficulty.png", title)
    write_agreement(table, model["agreement"], folder / "agreement.png", title)
    write_qualitative(_cases(folder, _typical(table), manifest), folder / "qualitative.png", title)
    write_qualitative(
        _cases(folder, failures(table, most=2), manifest), folder / "failures.png", f"Failures: {title}"
    )


def _draw_roc(table: pd.DataFrame, model: Mapping[str, Any], path: Path, title: str) -> None:
    """The ROC of the images with its interval, and the thresholds that were fixed on validation images."""
    rates = model["rates"]
    drawn = model.get("bootstrap") or {}
    band = roc_band(table, drawn.get("draws", 0), drawn.get("seed", 0), drawn.get("confidence", 0.95))
    points = {}
    for ending, _, chosen in CALLS:
        found, spared = rates.get(f"called_sensitivity{ending}"), rates.get(f"called_specificity{ending}")
        if found and spared and None not in (found["mean"], spared["mean"]):
            label = f"threshold for {chosen}: sens. {found['mean']:.2f}, spec. {spared['mean']:.2f}"
            low, high = (None if spared[key] is None else 1 - spared[key] for key in ("high", "low"))
            points[label] = (1 - spared["mean"], low, high), (found["mean"], found["low"], found["high"])
    auc = rates["auc_malignant"]
    area = "not defined" if auc["mean"] is None else format_estimate(auc)
    label = f"malignant against all other images, AUC {area}"
    write_roc_curves({label: roc_of_images(table)}, path, title, band, points)


def _typical(table: pd.DataFrame) -> Chosen:
    """Best, median and worst by lesion Dice, and the largest false alarm on a normal image."""
    lesions = table[table["dice_lesion"].notna()].sort_values(["dice_lesion", "image_id"], ignore_index=True)
    chosen: Chosen = []
    if len(lesions):
        middle = (len(lesions) - 1) // 2
        places = {"best": [-1, -2], "median": [middle, middle + 1], "worst": [0, 1]}
        taken: set[int] = set()
        for note, indices in places.items():
            for index in (i % len(lesions) for i in indices if -len(lesions) <= i < len(lesions)):
                if index not in taken:
                    taken.add(index)
                    chosen.append((note, lesions.iloc[index]))
    return chosen + _first(_false_alarms(table), "largest false alarm", 1)


def failures(table: pd.DataFrame, most: int) -> Chosen:
    """The worst of each kind of failure, up to ``most`` each, the worst first: (what is wrong, row of the table).

    Lesions missed (the largest first), malignant ones taken for something else (by how little malignant the image
    scored), benign ones taken for malignant, false alarms on normal images (by area), and the worst outlines of
    lesions that were found (by Dice). An image is listed under the first kind that fits.
    """
    missed = table[table["dice_lesion"] == 0].sort_values("area_truth", ascending=False, kind="stable")
    malignant = table["label"] == MALIGNANT.name
    overlooked = table[malignant & (table["predicted_label"] != MALIGNANT.name)]
    overlooked = overlooked.sort_values("malignant_score", kind="stable")
    benign = table["label"] == BENIGN.name
    suspected = table[benign & (table["predicted_label"] == MALIGNANT.name)]
    suspected = suspected.sort_values("malignant_score", ascending=False, kind="stable")
    outlined = table[table["dice_lesion"] > 0].sort_values("dice_lesion", kind="stable")
    kinds = {
        "lesion missed": missed,
        "malignant, taken for something else": overlooked,
        "benign, taken for malignant": suspected,
        "false alarm": _false_alarms(table),
        "worst outline": outlined,
    }
    chosen: Chosen = []
    taken: set[int] = set()
    for note, rows in kinds.items():
        new = rows[~rows.index.isin(taken)].head(most)
        taken |= set(new.index)
        chosen += _first(new, note, most)
    return chosen


def _false_alarms(table: pd.DataFrame) -> pd.DataFrame:
    normals = table[(table["label"] == LABELS[0]) & (table["false_alarm_area"] > 0)]
    return normals.sort_values("false_alarm_area", ascending=False, kind="stable")


def _first(rows: pd.DataFrame, note: str, most: int) -> Chosen:
    return [(note, row) for _, row in rows.head(most).iterrows()]


def _cases(folder: Path, chosen: Chosen, manifest: Manifest) -> list[Case]:
    by_id = manifest.frame.set_index(["dataset", "image_id"], drop=False)
    cases = []
    for note, scored in chosen:
        name = (scored["dataset"], scored["image_id"])
        if name not in by_id.index:
            raise EvaluationError(
                f"{folder} holds {' '.join(name)}, the manifest does not",
                hint="evaluate again with the manifest as it is now",
            )
        row = by_id.loc[name]
        image, truth = read_example(manifest, row)
        prediction = read_mask([mask_path(folder, scored)], "color", row["label"], truth.shape)
        cases.append(
            Case(row["image_id"], row["label"], image, truth, prediction, scored["dice_lesion"], note)
        )
    return cases
