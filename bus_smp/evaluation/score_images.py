"""Scoring a network on whole images at native size."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bus_smp.classes import BACKGROUND
from bus_smp.data.examples import Reader, read_example
from bus_smp.data.images import resize_mask, write_mask
from bus_smp.data.manifest import Manifest
from bus_smp.errors import EvaluationError
from bus_smp.evaluation.calibration import SCORE_COLUMNS, score_row
from bus_smp.inference.batches import predict_batches
from bus_smp.inference.predictor import Prediction, Predictor
from bus_smp.measures.baselines import BASELINES
from bus_smp.measures.lesions import COMPONENT_COLUMNS, match_lesions
from bus_smp.measures.overlap import classes_of, confusion, image_row
from bus_smp.measures.pixel_roc import PixelHistograms
from bus_smp.measures.regions import lesion_box
from bus_smp.measures.reliability import Reliability
from bus_smp.measures.shape import lesion_shape, shape_row
from bus_smp.measures.surfaces import surface_row
from bus_smp.runs.evaluations import COMPONENT_KEYS, Tables
from bus_smp.system import ranks

_COPIED = ("dataset", "image_id", "patient_id", "group_id", "label", "width", "height", "flags")

# A baseline gives no probabilities: it is sure that nothing is malignant, and its other scores are undefined.
_NO_SCORES = {**dict.fromkeys(SCORE_COLUMNS, math.nan), "malignant_score": 0.0, "malignant_score_raw": 0.0}


def score_images(
    predictor: Predictor,
    manifest: Manifest,
    rows: pd.DataFrame,
    *,
    calibration: Mapping[str, Any] | None = None,
    baselines: Sequence[str] = (),
    mask_path: Callable[[Mapping[str, Any]], Path] | None = None,
    progress: Callable[[], object] = lambda: None,
    read: Reader = read_example,
) -> Tables:
    """Predict and measure images one by one; the memory for pixels does not grow with the number of images.

    Args:
        rows: rows of ``manifest.frame``; every one is scored, in their order.
        calibration: of the run, as of ``calibrate``; its thresholds decide what is called malignant.
        baselines: names in ``BASELINES`` to score on the same images.
        mask_path: where to write the predicted colour mask of a row.
        progress: called after each image.
        read: reads an example; an ``ExampleReader`` where the same images are scored several times.

    Raises:
        EvaluationError: if there are no rows, or the network returns NaN.
        ImageError: naming the first file that is missing, damaged, or does not fit its mask.
    """
    if rows.empty:
        raise EvaluationError("there is no image to score")
    pixel_roc, reliability = PixelHistograms(), Reliability()

    def load(row: dict[str, Any]) -> tuple[np.ndarray, tuple]:
        image, truth = read(manifest, row)
        shape = lesion_shape(truth)
        return image, (
            truth,
            shape,
            [_measure(row, truth, shape, BASELINES[name](image))[0] for name in baselines],
        )

    def measure(row: dict[str, Any], image: np.ndarray, reference: tuple, prediction: Prediction) -> tuple:
        truth, shape, of_baselines = reference
        mask = classes_of(prediction.native)
        measured, found = _measure(row, truth, shape, mask, 1 - prediction.native[BACKGROUND.index])
        grid_truth = resize_mask(truth, predictor.size)
        if mask_path is not None:
            write_mask(mask_path(row), mask)
        measured |= score_row(prediction, grid_truth, calibration or {})
        return measured, found, of_baselines, truth, grid_truth, prediction

    # Several processes share whole batches, because the last bits of a prediction may depend on its batch's size.
    size = predictor.batch_size
    records = rows.to_dict("records")
    own = [row for batch in ranks.share(_batches(records, size)) for row in batch]
    scored = []
    for row, done in zip(own, predict_batches(predictor, own, load, measure), strict=True):
        measured, found, of_baselines, truth, grid_truth, prediction = done
        scored.append(([measured, *(row | _NO_SCORES for row in of_baselines)], found))
        pixel_roc.update(truth, prediction.native)
        reliability.update(grid_truth, prediction.raw_grid, prediction.grid)
        progress()
    scored, (pixel_roc, reliability) = _collect(_batches(scored, size), pixel_roc, reliability)
    components = [
        {key: row[key] for key in COMPONENT_KEYS} | component
        for row, (_, found) in zip(records, scored, strict=True)
        for component in found
    ]
    model, *frames = (
        pd.DataFrame(table) for table in zip(*(measured for measured, _ in scored), strict=True)
    )
    found = pd.DataFrame(components, columns=[*COMPONENT_KEYS, *COMPONENT_COLUMNS])
    return Tables(model, dict(zip(baselines, frames, strict=True)), found, pixel_roc, reliability)


def _batches(items: list[Any], size: int) -> list[list[Any]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _collect(
    batches: list[list[Any]], pixel_roc: PixelHistograms, reliability: Reliability
) -> tuple[list[Any], tuple[PixelHistograms, Reliability]]:
    """What all processes measured, in the order of the images and as if one had done it."""
    of_each = ranks.gather((batches, pixel_roc, reliability))
    all_roc, all_reliability = PixelHistograms(), Reliability()
    for _, its_roc, its_reliability in of_each:
        all_roc.add(its_roc)
        all_reliability.add(its_reliability)
    whole = ranks.interleave([its_batches for its_batches, _, _ in of_each])
    return [image for batch in whole for image in batch], (all_roc, all_reliability)


def _measure(
    row: Mapping[str, Any],
    truth: np.ndarray,
    shape: dict[str, float],
    mask: np.ndarray,
    lesion_probability: np.ndarray | None = None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """One image's row of the per-image table but for its scores, and its predicted lesions."""
    overlap = image_row(confusion(truth, mask))
    # the other measurements do not see what lies around the lesions, and their time goes with the area
    box = lesion_box(truth, mask)
    truth, mask = truth[box], mask[box]
    probability = None if lesion_probability is None else lesion_probability[box]
    lesions, components = match_lesions(truth, mask, probability)
    measured = overlap | surface_row(truth, mask) | lesions | shape_row(truth, mask, shape)
    copied = {name: row[name] for name in _COPIED}
    return copied | {"pixel_mm": float(row.get("pixel_mm") or math.nan)} | measured, components
