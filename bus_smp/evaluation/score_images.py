"""Scoring a network on whole images at native size."""

import functools
import math
import operator
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
from bus_smp.measures.image import measure_image
from bus_smp.measures.lesions import COMPONENT_COLUMNS
from bus_smp.measures.overlap import confusion, image_row
from bus_smp.measures.pixel_roc import PixelHistograms
from bus_smp.measures.reliability import Reliability
from bus_smp.measures.shape import lesion_shape
from bus_smp.measures.uncertainty import UNCERTAINTIES
from bus_smp.runs.evaluations import COMPONENT_KEYS, Tables
from bus_smp.statistics.summary import point_estimates
from bus_smp.system import ranks

# What training keeps of a validation.
VALIDATED = ("dice_lesion", "dice_benign", "dice_malignant", "miss_rate", "false_alarm_rate")

_COPIED = ("dataset", "image_id", "patient_id", "group_id", "label", "width", "height", "flags")

# A baseline gives no probabilities: it is sure that nothing is malignant, and its other scores are undefined.
_NO_SCORES = {
    **dict.fromkeys((*SCORE_COLUMNS, *UNCERTAINTIES), math.nan),
    "malignant_score": 0.0,
    "malignant_score_raw": 0.0,
}


def score_images(
    predictor: Predictor,
    manifest: Manifest,
    rows: pd.DataFrame,
    *,
    calibration: Mapping[str, Any] | None = None,
    baselines: Sequence[str] = (),
    mask_path: Callable[[Mapping[str, Any]], Path] | None = None,
    progress: Callable[[], object] = lambda: None,
) -> Tables:
    """Predict and measure images one by one; the memory for pixels does not grow with the number of images.

    Args:
        rows: rows of ``manifest.frame``; every one is scored, in their order.
        calibration: of the run, from ``calibrate``; its thresholds decide what is called malignant.
        baselines: names in ``BASELINES`` to score on the same images.
        mask_path: where to write the predicted colour mask of a row.
        progress: called after each image.

    Raises:
        EvaluationError: if there are no rows, or the network returns NaN.
        ImageError: naming the first file that is missing, damaged, or does not fit its mask.
    """
    if rows.empty:
        raise EvaluationError("there is no image to score")
    pixel_roc, reliability = PixelHistograms(), Reliability()

    def load(row: dict[str, Any]) -> tuple[np.ndarray, tuple]:
        image, truth = read_example(manifest, row)
        shape = lesion_shape(truth)
        return image, (
            truth,
            shape,
            [_measure(row, truth, shape, BASELINES[name](image))[0] for name in baselines],
        )

    def measure(row: dict[str, Any], image: np.ndarray, reference: tuple, prediction: Prediction) -> tuple:
        truth, shape, of_baselines = reference
        lesion_probability = 1 - prediction.native[BACKGROUND.index]
        measured, found = _measure(row, truth, shape, prediction.plain_mask, lesion_probability)
        grid_truth = resize_mask(truth, prediction.grid.shape[1:])
        if mask_path is not None:
            write_mask(mask_path(row), prediction.plain_mask)
        measured |= score_row(prediction, truth, grid_truth, calibration or {})
        measured |= prediction.uncertainty
        return measured, found, of_baselines, truth, grid_truth, prediction

    size = predictor.batch_size
    records = rows.to_dict("records")
    own = _own(records, size)
    scored = []
    for row, done in zip(own, predict_batches(predictor, own, load, measure), strict=True):
        measured, found, of_baselines, truth, grid_truth, prediction = done
        scored.append(([measured, *(row | _NO_SCORES for row in of_baselines)], found))
        pixel_roc.update(truth, prediction.native)
        reliability.update(grid_truth, prediction.raw_grid, prediction.grid)
        progress()
    scored = _collect(scored, size)
    pixel_roc = functools.reduce(operator.add, ranks.gather(pixel_roc))
    reliability = functools.reduce(operator.add, ranks.gather(reliability))
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


def validate(
    predictor: Predictor, manifest: Manifest, rows: pd.DataFrame, read: Reader = read_example
) -> dict[str, float]:
    """The few numbers that training keeps of its validation images, as an evaluation of them would give; NaN where undefined.

    Args:
        rows: rows of ``manifest.frame``.
        read: reads an example; an ``ExampleReader`` where the same images are scored again and again.

    Returns:
        key of ``METRICS`` -> its value, for each of ``VALIDATED``.

    Raises:
        EvaluationError, ImageError: as ``score_images``.
    """

    def load(row: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        return read(manifest, row)

    def measure(row: dict[str, Any], image: np.ndarray, truth: np.ndarray, prediction: Prediction) -> dict:
        overlap = image_row(confusion(truth, prediction.mask))
        return {name: row[name] for name in ("dataset", "image_id", "group_id", "label")} | overlap

    size = predictor.batch_size
    scored = predict_batches(predictor, _own(rows.to_dict("records"), size), load, measure)
    return point_estimates(pd.DataFrame(_collect(list(scored), size)), VALIDATED)


def _batches(items: list[Any], size: int) -> list[list[Any]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _own(records: list[Any], size: int) -> list[Any]:
    """The images of this process: whole batches, because the last bits of a prediction may depend on its batch's size."""
    return [row for batch in ranks.share(_batches(records, size)) for row in batch]


def _collect(own: list[Any], size: int) -> list[Any]:
    """What all processes measured, in the order of the images and as if one had done it."""
    whole = ranks.interleave(ranks.gather(_batches(own, size)))
    return [image for batch in whole for image in batch]


def _measure(
    row: Mapping[str, Any],
    truth: np.ndarray,
    shape: dict[str, float],
    mask: np.ndarray,
    lesion_probability: np.ndarray | None = None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """One image's row of the per-image table without its scores, and its predicted lesions."""
    copied = {name: row[name] for name in _COPIED} | {"pixel_mm": float(row.get("pixel_mm") or math.nan)}
    measured, components = measure_image(truth, mask, lesion_probability, shape)
    return copied | measured, components
