"""What each number of a summary is, and which images it is taken over; from the per-image table."""

import numpy as np
import pandas as pd

from bus_smp.classes import CLASSES, LABELS, MALIGNANT
from bus_smp.measures.overlap import METRIC_COLUMNS, PIXEL_COLUMNS, TARGETS
from bus_smp.measures.surfaces import SURFACE_COLUMNS
from bus_smp.statistics.estimators import Auc, Estimator, Ratio, SensitivityAt

NORMAL = LABELS[0]

# Distances that are also given in millimetres, where pixels have a known size.
MM = {f"{name}_mm": name for name in ("hd95_lesion", "asd_lesion")}

# Ending of the calls at a threshold that was fitted on the validation split.
_CALLS = ("", "_90", "_95")

CALLED_COLUMNS = tuple(f"called_malignant{ending}" for ending in _CALLS)


def pixel_counts(table: pd.DataFrame) -> np.ndarray:
    """Int64 (images, 3, 3): pixels by true and predicted class."""
    return table[list(PIXEL_COLUMNS)].to_numpy(np.int64).reshape(-1, len(CLASSES), len(CLASSES))


def metric_estimators(table: pd.DataFrame) -> dict[str, Estimator]:
    """Means of the per-image metrics over the images that show the target.

    Keys: ``METRIC_COLUMNS``, ``SURFACE_COLUMNS`` and, where a pixel size is known, ``MM``.

    For Dice, IoU, F1 and sensitivity nothing else is possible. Specificity and precision are defined on other images
    too, and are left out there on purpose, so that the numbers in one row describe the same images; lesion predicted on normal
    images is ``false_alarm_*``. Where nothing is predicted, precision and the distances are undefined and not counted: they
    flatter a model that marks little, so read them beside ``miss_rate``, and surface Dice (0 there) beside HD95.
    """
    reference = pixel_counts(table).sum(axis=2)
    shows = {target: reference[:, list(classes)].any(axis=1) for target, classes in TARGETS.items()}
    values = {
        name: np.where(shows[name.rsplit("_", 1)[1]], table[name].to_numpy(float), np.nan)
        for name in (*METRIC_COLUMNS, *SURFACE_COLUMNS)
    }
    pixel_mm = table["pixel_mm"].to_numpy(float)
    if not np.isnan(pixel_mm).all():
        values |= {name: values[pixels] * pixel_mm for name, pixels in MM.items()}
    return {name: Ratio.mean(value) for name, value in values.items()}


def rate_estimators(table: pd.DataFrame) -> dict[str, Estimator]:
    """Finding, calling and calibration. What is undefined in an image (no threshold, no score) is not counted.

    - ``miss_rate``: of images with a lesion in the reference, those whose predicted lesion does not touch
      it (lesion Dice = 0); a prediction elsewhere is a miss too.
    - ``false_alarm_rate``: of images labelled normal, those with one or more lesion pixels predicted;
      ``false_alarm_area``: mean share of the image predicted as lesion, on the same images.
    - ``lesion_sensitivity_iou10``, ``_iou50``: hits / lesions of the reference, summed over all images: each lesion counts once.
      ``false_lesions_per_image_iou10``, ``_iou50``: mean over all images, normal ones too. Matched as in ``match_lesions``.
    - ``class_accuracy_given_detection``: hits at IoU >= .1 with the right class / all such hits.
    - ``image_sensitivity_malignant``, ``image_specificity_malignant``: ``predicted_label`` against ``label``.
    - ``auc_malignant``: AUC of ``malignant_score``, malignant against all other images; ``auc_malignant_among_lesions``:
      against benign ones alone. ``sensitivity_at_90_specificity``, ``_95_``: on the same ROC curve. It is these images that
      choose the threshold, so no one could have called them by it: descriptive.
    - ``called_sensitivity``, ``called_specificity`` and the same with ``_90``, ``_95``: calls at thresholds fitted on the run's
      validation split (best Youden's J; specificity 90 %, 95 %), of malignant and of all other images.
    - ``image_brier``: mean of (score - malignant)^2 (Brier 1950, for one of two classes), 0..1; ``pixel_brier``: see
      ``brier_score``, 0..2. With ``_raw``: before temperature.
    """
    label, seen = table["label"].to_numpy(), table["predicted_label"].to_numpy()
    normal, malignant = label == NORMAL, label == MALIGNANT.name

    def column(name: str) -> np.ndarray:
        return table[name].to_numpy(float)

    dice = column("dice_lesion")
    called = (seen == MALIGNANT.name).astype(float)
    means = {
        "miss_rate": np.where(np.isnan(dice), np.nan, dice == 0),
        "false_alarm_rate": np.where(normal, seen != NORMAL, np.nan),
        "false_alarm_area": np.where(normal, column("false_alarm_area"), np.nan),
        "false_lesions_per_image_iou10": column("false_lesions_iou10"),
        "false_lesions_per_image_iou50": column("false_lesions_iou50"),
        "image_sensitivity_malignant": np.where(malignant, called, np.nan),
        "image_specificity_malignant": np.where(malignant, np.nan, 1 - called),
    }
    for ending in _CALLS:
        calls = column(f"called_malignant{ending}")
        means[f"called_sensitivity{ending}"] = np.where(malignant, calls, np.nan)
        means[f"called_specificity{ending}"] = np.where(malignant, np.nan, 1 - calls)
    for ending in ("", "_raw"):
        means[f"image_brier{ending}"] = (column(f"malignant_score{ending}") - malignant) ** 2
        means[f"pixel_brier{ending}"] = column(f"pixel_brier{ending}")
    hits, lesions = column("hits_iou10"), column("lesions_true")
    score = column("malignant_score")
    scored = ~np.isnan(score)
    curve = (score, malignant & scored, ~malignant & scored)
    return {name: Ratio.mean(values) for name, values in means.items()} | {
        "lesion_sensitivity_iou10": Ratio(hits, lesions),
        "lesion_sensitivity_iou50": Ratio(column("hits_iou50"), lesions),
        "class_accuracy_given_detection": Ratio(column("right_class_iou10"), hits),
        "auc_malignant": Auc(*curve),
        "auc_malignant_among_lesions": Auc(*curve).within(~normal),
        "sensitivity_at_90_specificity": SensitivityAt(*curve, 0.90),
        "sensitivity_at_95_specificity": SensitivityAt(*curve, 0.95),
    }


def calibration_error(score: np.ndarray, malignant: np.ndarray, bins: int = 10) -> float:
    """Expected calibration error of a probability in ``bins`` of equal width (Naeini et al., AAAI 2015), 0..1.

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
    place = np.minimum((score[scored] * bins).astype(int), bins - 1)
    return float(np.abs(np.bincount(place, excess)).sum() / len(excess))
