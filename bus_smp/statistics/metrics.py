"""The one table of metrics: what each number of a summary is, and which images it is taken over.

A new number is one entry in ``METRICS``. The columns that a per-image table must have, the summary, the printed tables, the
report, the comparison of two runs and the table in docs/evaluation.md all derive from the entries.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from bus_smp.classes import CLASSES, LABELS, MALIGNANT
from bus_smp.measures.overlap import PIXEL_COLUMNS, TARGETS
from bus_smp.measures.surfaces import TOLERANCE
from bus_smp.measures.uncertainty import UNCERTAINTIES
from bus_smp.statistics.estimators import Auc, Estimator, Ratio, SensitivityAt, Unresampled

NORMAL = LABELS[0]

# The question that each metric answers; they head the parts of every table.
FOUND = "Is a lesion found?"
RECOGNISED = "Is malignancy recognised? (by image)"
OUTLINED = "How well is it outlined? (images that show the target)"
BELIEVED = "Can its probabilities be believed? (0 is best)"
UNSURE = "Is it unsure where its mask is bad? (images with a lesion)"


def pixel_counts(table: pd.DataFrame) -> np.ndarray:
    """Pixels by true and predicted class, int64 (images, 3, 3)."""
    return table[list(PIXEL_COLUMNS)].to_numpy(np.int64).reshape(-1, len(CLASSES), len(CLASSES))


# Of a run with an image head only: its probabilities, in the order of ``LABELS``.
IMAGE_COLUMNS = tuple(f"image_{label}" for label in LABELS)


class Images:
    """A checked per-image table as arrays with one element for each image."""

    def __init__(self, table: pd.DataFrame):
        self._table = table
        self._columns: dict[str, np.ndarray] = {}
        label, predicted = table["label"].to_numpy(), table["predicted_label"].to_numpy()
        self.normal, self.malignant = label == NORMAL, label == MALIGNANT.name
        self.marked, self.called = predicted != NORMAL, predicted == MALIGNANT.name

    def column(self, name: str) -> np.ndarray:
        """A column as float (images,), NaN where the table has none of a head; always the same array, to be sorted once."""
        if name not in self._columns:
            found = name in self._table or name not in IMAGE_COLUMNS
            self._columns[name] = (
                self._table[name].to_numpy(float) if found else np.full(len(self._table), np.nan)
            )
        return self._columns[name]

    @cached_property
    def shows(self) -> dict[str, np.ndarray]:
        """Target -> bool (images,): does the reference show it?"""
        reference = pixel_counts(self._table).sum(axis=2)
        return {target: reference[:, list(classes)].any(axis=1) for target, classes in TARGETS.items()}


@dataclass(frozen=True)
class Metric:
    """One number of a summary.

    Attributes:
        key: its name in ``summary.json``.
        words: its row in the printed tables.
        question: heading of the metric in tables.
        formula: what it is. TP, FP, FN, TN: pixels of the target.
        over: the images that it is taken over.
        columns: columns of the per-image table that it is computed from.
        estimator: called with ``Images`` and then an array for each of ``columns``; None where the data set lacks what it needs.
        undefined: images of ``over`` that are not counted, because the number does not exist there.
        better: "higher" or "lower".
        target: the pixels it asks for, a key of ``TARGETS``; "" for a number about whole images or lesions.
        headline: short words, if it is one of the few numbers that a reader sees first.
        compared: part of the comparison of two runs: its denominator is of the reference, and so the same for both.
        printed: False: in ``summary.json`` only.
        optional: left out of the printed tables where no run has it.
        digits: decimals when printed.
    """

    key: str
    words: str
    question: str
    formula: str
    over: str
    columns: tuple[str, ...]
    estimator: Callable[..., Estimator | Unresampled | None]
    undefined: str = ""
    better: str = "higher"
    target: str = ""
    headline: str = ""
    compared: bool = False
    printed: bool = True
    optional: bool = False
    digits: int = 3

    @property
    def part(self) -> str:
        """Key of the part of a summary that holds the metric."""
        return "metrics" if self.target else "rates"


# Of equal width, for the calibration error of the images' scores.
ECE_BINS = 10


def calibration_error(score: np.ndarray, malignant: np.ndarray) -> float:
    """Expected calibration error of a probability in ``ECE_BINS`` bins (Naeini et al., AAAI 2015), 0..1.

    Mean over images of abs(share of malignant - mean score) in the image's bin. Images without a score are not
    counted; NaN where none has one.

    Args:
        score: float (images,), 0..1, the probability of malignancy; not that of the likelier class, as in Guo et al. 2017.
        malignant: bool (images,).
    """
    scored = ~np.isnan(score)
    if not scored.any():
        return float("nan")
    excess = (score - malignant)[scored]
    place = np.minimum((score[scored] * ECE_BINS).astype(int), ECE_BINS - 1)
    return float(np.abs(np.bincount(place, excess)).sum() / len(excess))


def _mean(images: Images, values: np.ndarray) -> Ratio:
    return Ratio.mean(values)


def _mean_where_shown(target: str) -> Callable[..., Ratio]:
    return lambda images, values: Ratio.mean(np.where(images.shows[target], values, np.nan))


def _mean_in_mm(target: str) -> Callable[..., Ratio | None]:
    def estimator(images: Images, pixels: np.ndarray, pixel_mm: np.ndarray) -> Ratio | None:
        if np.isnan(pixel_mm).all():
            return None
        return Ratio.mean(np.where(images.shows[target], pixels, np.nan) * pixel_mm)

    return estimator


def _curve(images: Images, score: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores, malignant images and all others, of those that have a score."""
    scored = ~np.isnan(score)
    return score, images.malignant & scored, ~images.malignant & scored


def _sensitivity_at(specificity: float) -> Callable[..., SensitivityAt]:
    return lambda images, score: SensitivityAt(*_curve(images, score), specificity)


def _lesion_curve(images: Images, normal: np.ndarray) -> Auc:
    """Of the image head: whether it tells images with a lesion from normal ones."""
    scored = ~np.isnan(normal)
    return Auc(1 - normal, ~images.normal & scored, images.normal & scored)


def _image_accuracy(images: Images, *probabilities: np.ndarray) -> Ratio:
    chosen = np.argmax(np.nan_to_num(probabilities), axis=0)
    right = np.where(images.normal, 0, np.where(images.malignant, 2, 1)) == chosen
    return Ratio.mean(np.where(np.isnan(probabilities[0]), np.nan, right))


def _brier(images: Images, score: np.ndarray) -> Ratio:
    return Ratio.mean((score - images.malignant) ** 2)


def _image_ece(images: Images, score: np.ndarray) -> Unresampled:
    # Simulated: its percentile interval covers the truth in 0 to 94 % of samples of 10 to 400 groups, never where that is 0.
    point = calibration_error(score, images.malignant)
    return Unresampled(point, ~np.isnan(score), "biased upwards")


_WITH_LESION, _NORMAL, _MALIGNANT, _OTHERS = (
    "images with a lesion",
    "normal images",
    "malignant images",
    "all others",
)
_EMPTY = "the truth does not show the target"
_NOTHING_TO_MEASURE = "truth or prediction is empty"
_AT_POINT = "at the operating point that the validation split gave"

_FOUND = (
    Metric(
        "miss_rate", "Missed lesions, by image", FOUND,
        "share of images whose prediction does not touch the lesion (lesion Dice = 0)", _WITH_LESION,
        ("dice_lesion",), lambda images, dice: Ratio.mean(np.where(np.isnan(dice), np.nan, dice == 0)),
        better="lower", headline="missed lesions", compared=True,
    ),
    *(
        Metric(
            f"lesion_sensitivity_iou{iou}", f"Lesions found, IoU >= .{iou // 10}", FOUND,
            f"share of all lesions matched by a predicted one with IoU >= .{iou // 10}; each lesion counts once", "all images",
            (f"hits_iou{iou}", "lesions_true"), lambda images, hits, lesions: Ratio(hits, lesions), compared=iou == 10,
        )
        for iou in (10, 50)
    ),
    *(
        Metric(
            f"false_lesions_per_image_iou{iou}", "False lesions per image" + (", IoU >= .5" if iou == 50 else ""), FOUND,
            f"predicted lesions that match none with IoU >= .{iou // 10}", "all images",
            (f"false_lesions_iou{iou}",), _mean, better="lower", compared=iou == 10, printed=iou == 10,
        )
        for iou in (10, 50)
    ),
    Metric(
        "false_alarm_rate", "False alarms, normal images", FOUND, "share of images with a predicted lesion pixel", _NORMAL,
        (), lambda images: Ratio.mean(np.where(images.normal, images.marked, np.nan)),
        better="lower", headline="false alarms", compared=True,
    ),
    Metric(
        "false_alarm_area", "False-alarm area, normal", FOUND, "mean share of the image predicted as lesion", _NORMAL,
        ("false_alarm_area",), lambda images, area: Ratio.mean(np.where(images.normal, area, np.nan)), better="lower",
    ),
    Metric(
        "miss_rate_at_point", "Missed, operating point", FOUND, f"share of images whose lesion is not touched by a lesion kept {_AT_POINT}",
        _WITH_LESION, ("dice_lesion_at_point",), lambda images, dice: Ratio.mean(np.where(np.isnan(dice), np.nan, dice == 0)),
        better="lower", optional=True,
    ),
    Metric(
        "lesion_sensitivity_at_point", "Found, operating point", FOUND, f"share of all lesions found with IoU >= .1 {_AT_POINT}",
        "all images", ("hits_iou10_at_point", "lesions_true"), lambda images, hits, lesions: Ratio(np.nan_to_num(hits), np.where(np.isnan(hits), 0, lesions)),
        optional=True,
    ),
    Metric(
        "false_alarm_rate_at_point", "False alarms, op. point", FOUND, f"share of images that keep a lesion {_AT_POINT}", _NORMAL,
        ("marked_at_point",), lambda images, marked: Ratio.mean(np.where(images.normal, marked, np.nan)),
        better="lower", optional=True,
    ),
)  # fmt: skip

# Thresholds that the validation split gave: ending of the columns, words, how each was chosen.
CALLS = (
    ("", "threshold", "the highest Youden's J"),
    ("_90", "threshold 90 %", "90 % specificity"),
    ("_95", "threshold 95 %", "95 % specificity"),
)

_RECOGNISED = (
    Metric(
        "auc_malignant", "AUC malignant vs all others", RECOGNISED,
        "chance that a malignant image has a higher malignant score than another one; .5 is a coin", "all images",
        ("malignant_score",), lambda images, score: Auc(*_curve(images, score)), headline="AUC malignant", compared=True,
    ),
    Metric(
        "auc_malignant_among_lesions", "AUC malignant vs benign", RECOGNISED, "the same against benign images only",
        "malignant and benign images", ("malignant_score",),
        lambda images, score: Auc(*_curve(images, score)).within(~images.normal),
    ),
    Metric(
        "image_sensitivity_malignant", "Sensitivity, larger class", RECOGNISED,
        "share called malignant by the class with more predicted pixels (a tie is malignant)", _MALIGNANT,
        (), lambda images: Ratio.mean(np.where(images.malignant, images.called, np.nan)),
    ),
    Metric(
        "image_specificity_malignant", "Specificity, larger class", RECOGNISED, "share not called malignant by it", _OTHERS,
        (), lambda images: Ratio.mean(np.where(images.malignant, np.nan, 1.0 - images.called)),
    ),
    *(
        metric
        for ending, words, chosen in CALLS
        for metric in (
            Metric(
                f"called_sensitivity{ending}", f"Sensitivity, {words}", RECOGNISED,
                f"share called malignant by the threshold with {chosen} on the validation split", _MALIGNANT,
                (f"called_malignant{ending}",), lambda images, call: Ratio.mean(np.where(images.malignant, call, np.nan)),
                optional=True,
            ),
            Metric(
                f"called_specificity{ending}", f"Specificity, {words}", RECOGNISED, "share not called malignant by it", _OTHERS,
                (f"called_malignant{ending}",), lambda images, call: Ratio.mean(np.where(images.malignant, np.nan, 1 - call)),
                optional=True,
            ),
        )
    ),
    *(
        Metric(
            f"sensitivity_at_{percent}_specificity", f"ROC: sens. at {percent} % spec.", RECOGNISED,
            f"highest sensitivity of any threshold that keeps {percent} % specificity on these very images: descriptive", "all images",
            ("malignant_score",), _sensitivity_at(percent / 100),
        )
        for percent in (90, 95)
    ),
    Metric(
        "image_head_auc_lesion", "Image head: AUC lesion", RECOGNISED,
        "chance that the image head finds a lesion more probable in an image with one than in a normal one", "all images",
        IMAGE_COLUMNS[:1], _lesion_curve, optional=True,
    ),
    Metric(
        "image_head_auc_malignant", "Image head: AUC malignant", RECOGNISED,
        "AUC malignant vs all others of the image head's probability", "all images",
        IMAGE_COLUMNS[2:], lambda images, score: Auc(*_curve(images, score)), optional=True,
    ),
    Metric(
        "image_head_auc_among_lesions", "Image head: AUC mal. vs ben.", RECOGNISED, "the same against benign images only",
        "malignant and benign images", IMAGE_COLUMNS[2:],
        lambda images, score: Auc(*_curve(images, score)).within(~images.normal), optional=True,
    ),
    Metric(
        "image_head_accuracy", "Image head: right class", RECOGNISED,
        "share of images whose most probable class, normal, benign or malignant, is the right one", "all images",
        IMAGE_COLUMNS, _image_accuracy, optional=True,
    ),
    Metric(
        "class_accuracy_given_detection", "Right class, lesions found", RECOGNISED,
        "share of the lesions found with IoU >= .1 that have the right class", "all images",
        ("right_class_iou10", "hits_iou10"), lambda images, right, hits: Ratio(right, hits),
    ),
)  # fmt: skip

_OVERLAP = (
    ("dice", "Dice", "2 TP / (2 TP + FP + FN) = F1 of the pixels", _EMPTY),
    ("iou", "IoU", "TP / (TP + FP + FN)", _EMPTY),
    ("sensitivity", "Sensitivity", "TP / (TP + FN)", _EMPTY),
    ("specificity", "Specificity", "TN / (TN + FP)", "the truth fills the image"),
    ("precision", "Precision", "TP / (TP + FP)", "nothing is predicted"),
)  # fmt: skip


def _distances(target: str) -> tuple[Metric, ...]:
    shown, printed = f"images that show {target}", target == "lesion"
    in_mm: dict[str, Any] = {"optional": True, "digits": 2} | {"better": "lower", "target": target}
    in_px: dict[str, Any] = {"printed": printed, "digits": 1, "better": "lower", "target": target}
    hd95 = "larger of the two 95th percentiles of the distances from one outline to the other"
    asd = "mean distance between the outlines, both ways together"
    known = f"{_NOTHING_TO_MEASURE}, or the size of a pixel is not known"
    pixels = (
        Metric(
            f"hd95_{target}", f"HD95 {target}, px", OUTLINED, hd95, shown, (f"hd95_{target}",), _mean_where_shown(target),
            _NOTHING_TO_MEASURE, compared=printed, **in_px,
        ),
        Metric(
            f"asd_{target}", f"Surface distance {target}, px", OUTLINED, asd, shown, (f"asd_{target}",),
            _mean_where_shown(target), _NOTHING_TO_MEASURE, **in_px,
        ),
    )  # fmt: skip
    surface_dice = Metric(
        f"surface_dice_{target}", f"Surface Dice {target}, {TOLERANCE} px", OUTLINED,
        f"share of both outlines within {TOLERANCE} pixels of the other; 0 where only the prediction is empty", shown,
        (f"surface_dice_{target}",), _mean_where_shown(target), _EMPTY, target=target, compared=printed, printed=printed,
    )  # fmt: skip
    if not printed:
        return *pixels, surface_dice
    millimetres = (
        Metric(
            f"{metric.key}_mm", metric.words.replace("px", "mm"), OUTLINED, f"{metric.formula}, in mm", shown,
            (*metric.columns, "pixel_mm"), _mean_in_mm(target), known, **in_mm,
        )
        for metric in pixels
    )  # fmt: skip
    return *(metric for pair in zip(pixels, millimetres, strict=True) for metric in pair), surface_dice


_OUTLINED = (
    *(
        Metric(
            f"{name}_{target}", f"{words} {target}", OUTLINED, formula, f"images that show {target}",
            (f"{name}_{target}",), _mean_where_shown(target), undefined, target=target,
            headline="Dice lesion" if (name, target) == ("dice", "lesion") else "",
            compared=(name, target) in (("dice", "lesion"), ("dice", MALIGNANT.name), ("iou", "lesion")),
        )
        for target in TARGETS
        for name, words, formula, undefined in _OVERLAP
    ),
    Metric(
        "dice_lesion_at_point", "Dice lesion, op. point", OUTLINED, f"the same {_AT_POINT}", "images that show lesion",
        ("dice_lesion_at_point",), _mean_where_shown("lesion"), _EMPTY, target="lesion", optional=True,
    ),
    *(metric for target in TARGETS for metric in _distances(target)),
)  # fmt: skip

_BELIEVED = tuple(
    Metric(
        f"{key}{ending}", f"{words}{', raw' if ending else ''}", BELIEVED,
        "the same before temperature" if ending else formula, "all images", (f"{column}{ending}",), estimator,
        better="lower", compared=compared and not ending,
    )
    for key, words, formula, column, estimator, compared in (
        (
            "image_brier", "Brier score, malignant", "mean of (malignant score - malignant)^2, 0 to 1",
            "malignant_score", _brier, True,
        ),
        (
            "image_ece", "ECE, malignant", "mean distance of the malignant score from the share that is malignant, in ten bins",
            "malignant_score", _image_ece, False,
        ),
        (
            "pixel_brier", "Brier score, pixels", "mean over pixels of the squared error, summed over three classes, 0 to 2",
            "pixel_brier", _mean, True,
        ),
    )
    for ending in ("", "_raw")
)  # fmt: skip

# A mask with a lesion Dice below this is bad.
BAD_DICE = 0.5


def _detects_bad_masks(images: Images, unsure: np.ndarray, dice: np.ndarray) -> Auc | None:
    known = ~np.isnan(unsure) & ~np.isnan(dice)
    return Auc(unsure, known & (dice < BAD_DICE), known & (dice >= BAD_DICE)) if known.any() else None


_UNSURE = (
    Metric(
        "ood_rate", "Out of distribution", UNSURE,
        "share of images whose distance to the training images is above the limit: 99 % of the validation images are below it",
        "all images", ("ood_score",), lambda images, score: None if np.isnan(score).all() else Ratio.mean(np.where(np.isnan(score), np.nan, score > 1)),
        better="lower", optional=True,
    ),
    *(Metric(
        f"auc_bad_mask_{column}", f"AUC bad mask, {short}", UNSURE,
        f"chance that an image with lesion Dice < .5 has a larger uncertainty than another one; uncertainty: {words}",
        _WITH_LESION, (column, "dice_lesion"), _detects_bad_masks, optional=True,
    )
    for (column, words), short in zip(UNCERTAINTIES.items(), ("networks", "views", "entropy", "OOD score"), strict=True)
    ),
)  # fmt: skip

METRICS: tuple[Metric, ...] = (*_FOUND, *_RECOGNISED, *_OUTLINED, *_BELIEVED, *_UNSURE)

BY_KEY = {metric.key: metric for metric in METRICS}

# Chosen before any result; the others are secondary, and count by their adjusted p.
PRIMARY = "dice_lesion"


def _primary_first(keys: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(keys, key=lambda key: key != PRIMARY))


COMPARED = _primary_first(metric.key for metric in METRICS if metric.compared)

# What a reader sees first, and what is shown of each subgroup: key -> short words.
HEADLINES = {key: BY_KEY[key].headline for key in _primary_first(m.key for m in METRICS if m.headline)}


def estimators(table: pd.DataFrame, keys: Iterable[str] | None = None) -> dict[str, Any]:
    """The estimators of metrics over a checked per-image table, by key; metrics that the table cannot give are left out.

    Args:
        keys: of ``METRICS``; None: all.

    Where a number is not defined in an image, it is not counted. Means over a target are taken over the images that show it:
    specificity and precision are defined on other images too, and are left out there on purpose, so that the numbers in
    one row describe the same images. Where nothing is predicted, precision and the distances are undefined: they
    flatter a model that marks little, so read them next to ``miss_rate``, and surface Dice (0 there) next to HD95.
    """
    images = Images(table)
    found = {
        key: BY_KEY[key].estimator(images, *map(images.column, BY_KEY[key].columns))
        for key in (BY_KEY if keys is None else keys)
    }
    return {key: estimator for key, estimator in found.items() if estimator is not None}
