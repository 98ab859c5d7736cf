"""Every number about one image, from one 3x3 table of pixel counts; and the pixel ROC, streamed.

A metric is ``NaN`` where it is undefined, and is never filled in. Libraries differ here: scikit-learn
returns 0 with a warning (``zero_division``), ``smp.metrics`` returns 1, MONAI's ``DiceMetric`` NaN
(``ignore_empty=True``), nnU-Net NaN only where prediction and reference are both empty. With 1,
predicting nothing scores .8 on a data set with many normal images; that is the error this module avoids.
"""

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd

from bus_smp.classes import BACKGROUND, BENIGN, CLASSES, LABELS, MALIGNANT
from bus_smp.errors import EvaluationError

METRICS = ("dice", "iou", "sensitivity", "specificity", "precision", "f1")

# What is being looked for -> the classes that count as "positive".
TARGETS = {
    "lesion": (BENIGN.index, MALIGNANT.index),
    BENIGN.name: (BENIGN.index,),
    MALIGNANT.name: (MALIGNANT.index,),
}

METRIC_COLUMNS = tuple(f"{metric}_{target}" for target in TARGETS for metric in METRICS)
PIXEL_COLUMNS = tuple(f"pixels_{truth.name}_as_{seen.name}" for truth in CLASSES for seen in CLASSES)


def confusion(truth: np.ndarray, prediction: np.ndarray, num_classes: int = len(CLASSES)) -> np.ndarray:
    """Count pixels by true and predicted class.

    Args:
        truth, prediction: integer arrays of one shape, class indices 0..num_classes-1.

    Returns:
        int64 (num_classes, num_classes), rows truth, columns prediction.

    Raises:
        EvaluationError: if the shapes differ, or a value is not an integer class index.
    """
    truth, prediction = np.asarray(truth), np.asarray(prediction)
    if truth.shape != prediction.shape:
        raise EvaluationError(
            f"the prediction has shape {prediction.shape}, the reference {truth.shape}",
            hint="bring the prediction back to the image's own size before scoring it",
        )
    for name, mask in (("reference", truth), ("prediction", prediction)):
        _check_classes(name, mask, num_classes)
    # The smallest integer type that holds every cell: three times faster than int64.
    cells = truth.reshape(-1).astype(np.min_scalar_type(num_classes**2))
    cells *= num_classes
    cells += prediction.reshape(-1).astype(cells.dtype)
    return np.bincount(cells, minlength=num_classes**2).astype(np.int64).reshape(num_classes, num_classes)


def _check_classes(name: str, mask: np.ndarray, num_classes: int) -> None:
    if mask.dtype.kind not in "iu":
        raise EvaluationError(f"the {name} holds {mask.dtype} values; class indices are integers")
    if mask.size and not (mask.min() >= 0 and mask.max() < num_classes):
        stray = mask.min() if mask.min() < 0 else mask.max()
        raise EvaluationError(f"the {name} holds class index {stray}; expected 0 to {num_classes - 1}")


def _ratio(part: float, whole: float) -> float:
    return float(part) / float(whole) if whole else math.nan


def _binary_metrics(counts: np.ndarray, positive: tuple[int, ...]) -> dict[str, float]:
    """The six metrics of one target; the only place where they are defined (see ``image_metrics``)."""
    is_positive = np.isin(np.arange(len(counts)), positive)
    tp = int(counts[np.ix_(is_positive, is_positive)].sum())
    fn = int(counts[np.ix_(is_positive, ~is_positive)].sum())
    fp = int(counts[np.ix_(~is_positive, is_positive)].sum())
    tn = int(counts[np.ix_(~is_positive, ~is_positive)].sum())
    has_reference = tp + fn > 0
    dice = _ratio(2 * tp, 2 * tp + fp + fn) if has_reference else math.nan
    return {
        "dice": dice,
        "iou": _ratio(tp, tp + fp + fn) if has_reference else math.nan,
        "sensitivity": _ratio(tp, tp + fn),
        "specificity": _ratio(tn, tn + fp),
        "precision": _ratio(tp, tp + fp),
        "f1": dice,
    }


def image_metrics(counts: np.ndarray) -> dict[str, float]:
    """Metrics of one image, for any lesion, benign and malignant; keys ``METRIC_COLUMNS`` + ``false_alarm_area``.

    With TP, FP, FN, TN pixels of the target ("lesion" = benign or malignant, whichever of the two;
    for "benign", a malignant pixel is a negative). All are in 0..1, or NaN where undefined:

    =============  =======================  ==================================================
    dice           2 TP / (2 TP + FP + FN)  Dice 1945; NaN where the reference is empty
    iou            TP / (TP + FP + FN)      Jaccard 1912; NaN where the reference is empty
    sensitivity    TP / (TP + FN)           recall; NaN where the reference is empty
    specificity    TN / (TN + FP)           NaN where the reference fills the image
    precision      TP / (TP + FP)           positive predictive value; NaN where nothing is predicted
    f1             = dice                   for pixels, the same number (van Rijsbergen 1979)
    =============  =======================  ==================================================

    ``false_alarm_area``: predicted lesion on reference background, as a share of all pixels of the
    image (0..1; NaN only for an image without pixels). On a normal image it is all that is predicted.

    Args:
        counts: (3, 3) from ``confusion``.
    """
    counts = np.asarray(counts)
    metrics = {}
    for target, positive in TARGETS.items():
        metrics |= {f"{name}_{target}": value for name, value in _binary_metrics(counts, positive).items()}
    metrics["false_alarm_area"] = _ratio(counts[BACKGROUND.index, 1:].sum(), counts.sum())
    return metrics


def predicted_label(counts: np.ndarray) -> str:
    """The label that a predicted mask amounts to, from its (3, 3) counts.

    ``normal`` if no lesion pixel is predicted, else the lesion class with more predicted pixels; a
    tie is ``malignant``, the finding that must not be overlooked.
    """
    predicted = np.asarray(counts).sum(axis=0)
    if predicted[BENIGN.index] + predicted[MALIGNANT.index] == 0:
        return LABELS[0]
    return BENIGN.name if predicted[BENIGN.index] > predicted[MALIGNANT.index] else MALIGNANT.name


def malignant_score(probabilities: np.ndarray) -> float:
    """The image's score for malignancy: the highest malignant probability (0..1) of float (3, H, W).

    Raises:
        EvaluationError: if one of them is NaN.
    """
    score = float(np.max(probabilities[MALIGNANT.index]))
    if math.isnan(score):
        raise EvaluationError("the prediction holds probabilities that are NaN")
    return score


def image_row(counts: np.ndarray) -> dict[str, float | int | str]:
    """The columns of the per-image table that follow from (3, 3) counts: metrics, label, nine counts."""
    cells = (int(cell) for cell in np.asarray(counts).reshape(-1))
    return (
        image_metrics(counts)
        | {"predicted_label": predicted_label(counts)}
        | dict(zip(PIXEL_COLUMNS, cells, strict=True))
    )


def counts_of_row(row: Mapping) -> np.ndarray:
    """The int64 (3, 3) counts that ``image_row`` wrote into a row of the per-image table."""
    return np.array([row[column] for column in PIXEL_COLUMNS], np.int64).reshape(len(CLASSES), len(CLASSES))


# Log-odds beyond this are one bin: probabilities nearer to 0 or 1 than 1e-7, the limit of float32.
_MAX_LOG_ODDS = 16.0


def _log_odds_cell(score: np.ndarray, bins: int) -> np.ndarray:
    """Bin of each probability, intp 0..bins-1: equal steps of log(p / (1 - p)).

    Equal steps of p would not do: a trained network gives most pixels less than .001, all of which would
    fall into one bin, and the curve between it and (1, 1) would be a straight line.
    """
    with np.errstate(divide="ignore"):  # 0 and 1 have infinite odds and belong to the outer bins
        odds = np.log(score / (1 - score))
    np.clip(odds, -_MAX_LOG_ODDS, _MAX_LOG_ODDS, out=odds)
    cell = ((odds + _MAX_LOG_ODDS) * (bins / (2 * _MAX_LOG_ODDS))).astype(np.intp)
    return np.minimum(cell, bins - 1)


class PixelHistograms:
    """ROC curves over all pixels of a data set, in memory that does not grow with the number of images.

    For each target the probability (``lesion`` = benign + malignant) is counted in ``bins`` equal steps
    of its log-odds, by true class. The AUC from the counts differs from the exact one only through
    pixels that share a bin: by less than half the share of such (positive, negative) pairs.
    """

    def __init__(self, bins: int = 2000) -> None:
        self.bins = bins
        self.counts = np.zeros((len(TARGETS), len(CLASSES), bins), np.int64)

    def update(self, truth: np.ndarray, probabilities: np.ndarray) -> None:
        """Add one image.

        Args:
            truth: integer (H, W), class indices.
            probabilities: float (3, H, W), in 0..1 (rounding errors up to 1e-3 are clipped).

        Raises:
            EvaluationError: on NaN, infinite or out-of-range probabilities, another shape, or an
                unknown class. The histograms are then unchanged.
        """
        truth, probabilities = np.asarray(truth), np.asarray(probabilities)
        if probabilities.shape != (len(CLASSES), *truth.shape):
            raise EvaluationError(
                f"the probabilities have shape {probabilities.shape}; "
                f"the reference needs {(len(CLASSES), *truth.shape)}"
            )
        _check_classes("reference", truth, len(CLASSES))
        if truth.size == 0:
            return
        # One comparison for all: NaN is neither above nor below anything.
        if not (probabilities.min() >= -1e-3 and probabilities.max() <= 1 + 1e-3):
            raise EvaluationError("the prediction holds probabilities that are NaN or outside 0..1")
        offset = truth.reshape(-1).astype(np.intp) * self.bins
        for target, classes in enumerate(TARGETS.values()):
            # A sum, not 1 - background, which would round small probabilities to steps of 6e-8.
            score = probabilities[list(classes)].sum(axis=0).clip(0, 1).reshape(-1)
            cell = _log_odds_cell(score, self.bins)
            cell += offset
            counted = np.bincount(cell, minlength=len(CLASSES) * self.bins)
            self.counts[target] += counted.reshape(len(CLASSES), self.bins)

    def roc(self, target: str) -> tuple[np.ndarray, np.ndarray, float]:
        """Pixel ROC of ``lesion``, ``benign`` or ``malignant`` (against all other pixels).

        Returns:
            false positive rates and true positive rates, float (bins + 1,), from (0, 0) to (1, 1),
            and the area under them by the trapezoid rule (= Mann-Whitney with ties counted half;
            Fawcett 2006), 0..1. Where one of the two kinds of pixels is absent, its rates and the
            area are NaN.
        """
        counts = self.counts[list(TARGETS).index(target)]
        is_positive = np.isin(np.arange(len(CLASSES)), TARGETS[target])
        rates = []
        for kind in (~is_positive, is_positive):
            above = np.concatenate([[0], np.cumsum(counts[kind].sum(axis=0)[::-1])])
            rates.append(above / above[-1] if above[-1] else np.full(len(above), np.nan))
        fpr, tpr = rates
        return fpr, tpr, float(np.sum(np.diff(fpr) * (tpr[1:] + tpr[:-1]) / 2))

    def __add__(self, other: "PixelHistograms") -> "PixelHistograms":
        """The histograms of both sets of images together."""
        if self.bins != other.bins:
            raise EvaluationError(f"histograms of {self.bins} and of {other.bins} bins cannot be added")
        both = PixelHistograms(self.bins)
        both.counts = self.counts + other.counts
        return both

    def to_frame(self) -> pd.DataFrame:
        """As a table to be stored: one row per target and bin; columns target, bin, and pixels by true class."""
        rows = [
            {"target": target, "bin": number}
            | {c.name: int(self.counts[index, c.index, number]) for c in CLASSES}
            for index, target in enumerate(TARGETS)
            for number in range(self.bins)
        ]
        return pd.DataFrame(rows)

    @classmethod
    def from_frame(cls, frame: pd.DataFrame) -> "PixelHistograms":
        """The inverse of ``to_frame``, in any row order.

        Raises:
            EvaluationError: if the table is not one that ``to_frame`` wrote.
        """
        needed = ["target", "bin", *(c.name for c in CLASSES)]
        bins, rest = divmod(len(frame), len(TARGETS))
        if rest or not bins or not set(needed) <= set(frame.columns):
            raise EvaluationError(
                f"this is no table of pixel histograms: {len(frame)} rows, columns {', '.join(frame.columns)}",
                hint="evaluate again to write it anew",
            )
        histograms = cls(bins)
        for index, target in enumerate(TARGETS):
            part = frame[frame["target"] == target].sort_values("bin")
            if part["bin"].tolist() != list(range(bins)):
                raise EvaluationError(
                    f"the table of pixel histograms lacks rows of {target}",
                    hint="evaluate again to write it anew",
                )
            histograms.counts[index] = part[[c.name for c in CLASSES]].to_numpy(np.int64).T
        return histograms
