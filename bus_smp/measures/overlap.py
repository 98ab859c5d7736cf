"""Every overlap number about one image, from one 3x3 table of pixel counts.

A metric is ``NaN`` where it is undefined, and is never filled in. Libraries differ here: scikit-learn
returns 0 with a warning (``zero_division``), ``smp.metrics`` returns 1, MONAI's ``DiceMetric`` NaN
(``ignore_empty=True``), nnU-Net NaN only where prediction and reference are both empty. With 1,
predicting nothing scores .8 on a data set with many normal images; that is the error this module avoids.
"""

import math

import numpy as np

from bus_smp.classes import BACKGROUND, BENIGN, CLASSES, LABELS, MALIGNANT
from bus_smp.errors import EvaluationError

METRICS = ("dice", "iou", "sensitivity", "specificity", "precision")

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
        if mask.dtype.kind not in "iu":
            raise EvaluationError(f"the {name} holds {mask.dtype} values; class indices are integers")
        if mask.size and not (mask.min() >= 0 and mask.max() < num_classes):
            stray = mask.min() if mask.min() < 0 else mask.max()
            raise EvaluationError(f"the {name} holds class index {stray}; expected 0 to {num_classes - 1}")
    # The smallest integer type that holds every cell: three times faster than int64.
    cells = truth.reshape(-1).astype(np.min_scalar_type(num_classes**2))
    cells *= num_classes
    cells += prediction.reshape(-1).astype(cells.dtype)
    return np.bincount(cells, minlength=num_classes**2).astype(np.int64).reshape(num_classes, num_classes)


def _ratio(part: float, whole: float) -> float:
    return float(part) / float(whole) if whole else math.nan


def _binary_metrics(counts: np.ndarray, positive: tuple[int, ...]) -> dict[str, float]:
    """The five metrics of one target; the only place where they are defined (see ``image_metrics``)."""
    # Nine numbers: plain sums are ten times faster than numpy's.
    cells = counts.tolist()
    classes = range(len(cells))

    def pixels(of_truth: bool, of_prediction: bool) -> int:
        return sum(
            cells[t][p]
            for t in classes
            for p in classes
            if (t in positive) == of_truth and (p in positive) == of_prediction
        )

    tp, fn, fp, tn = pixels(True, True), pixels(True, False), pixels(False, True), pixels(False, False)
    has_reference = tp + fn > 0
    return {
        "dice": _ratio(2 * tp, 2 * tp + fp + fn) if has_reference else math.nan,
        "iou": _ratio(tp, tp + fp + fn) if has_reference else math.nan,
        "sensitivity": _ratio(tp, tp + fn),
        "specificity": _ratio(tn, tn + fp),
        "precision": _ratio(tp, tp + fp),
    }


def image_metrics(counts: np.ndarray) -> dict[str, float]:
    """Metrics of one image, for any lesion, benign and malignant; keys ``METRIC_COLUMNS`` + ``false_alarm_area``.

    With TP, FP, FN, TN pixels of the target ("lesion" = benign or malignant;
    for "benign", a malignant pixel is a negative). All are in 0..1, or NaN where undefined:

    =============  =======================  ==================================================
    dice           2 TP / (2 TP + FP + FN)  Dice 1945; = F1 of the pixels; NaN where the reference is empty
    iou            TP / (TP + FP + FN)      Jaccard 1912; NaN where the reference is empty
    sensitivity    TP / (TP + FN)           recall; NaN where the reference is empty
    specificity    TN / (TN + FP)           NaN where the reference fills the image
    precision      TP / (TP + FP)           positive predictive value; NaN where nothing is predicted
    =============  =======================  ==================================================

    ``false_alarm_area``: predicted lesion on reference background, as a share of all pixels of the
    image (0..1; NaN only for an image without pixels). On a normal image it is all that is predicted.

    Args:
        counts: (3, 3) from ``confusion``.
    """
    counts = np.asarray(counts)
    metrics: dict[str, float] = {}
    for target, positive in TARGETS.items():
        metrics |= {f"{name}_{target}": value for name, value in _binary_metrics(counts, positive).items()}
    metrics["false_alarm_area"] = _ratio(counts[BACKGROUND.index, 1:].sum(), counts.sum())
    return metrics


def score_mask(truth: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Return ``image_metrics`` of a predicted mask, integer (H, W) of class indices like the true one.

    Raises:
        EvaluationError: if the shapes differ, or a value is no class index.
    """
    return image_metrics(confusion(truth, predicted))


def predicted_label(counts: np.ndarray) -> str:
    """The label that a predicted mask amounts to, from its (3, 3) counts.

    ``normal`` if no lesion pixel is predicted, else the lesion class with more predicted pixels; a
    tie is ``malignant``, the finding that must not be overlooked.
    """
    predicted = np.asarray(counts).sum(axis=0)
    if predicted[BENIGN.index] + predicted[MALIGNANT.index] == 0:
        return LABELS[0]
    return BENIGN.name if predicted[BENIGN.index] > predicted[MALIGNANT.index] else MALIGNANT.name


def classes_of(probabilities: np.ndarray) -> np.ndarray:
    """The most probable class of each pixel, uint8 (H, W); of equal ones the first.

    Args:
        probabilities: float (3, H, W). ``argmax(axis=0)`` gives the same, thirteen times slower.
    """
    background, benign, malignant = probabilities
    is_benign = benign > background
    is_malignant = malignant > np.maximum(background, benign)
    return np.where(is_malignant, np.uint8(MALIGNANT.index), is_benign.view(np.uint8))


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
