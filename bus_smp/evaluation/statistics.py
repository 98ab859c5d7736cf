"""What the per-image table says about a data set, with intervals; from the table alone.

An estimate is a mean over images: each image counts once, whatever its size.
"""

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from bus_smp.classes import CLASSES, LABELS, LESIONS, MALIGNANT
from bus_smp.errors import EvaluationError
from bus_smp.evaluation.bootstrap import auc_of_draws, bootstrap, estimate
from bus_smp.evaluation.metrics import METRIC_COLUMNS, METRICS, PIXEL_COLUMNS, TARGETS

TEXT_COLUMNS = ("dataset", "image_id", "patient_id", "group_id", "label", "flags", "predicted_label")

NORMAL = LABELS[0]

_NEEDED = (
    "dataset",
    "image_id",
    "group_id",
    "label",
    "predicted_label",
    "malignant_score",
    "false_alarm_area",
)


def read_per_image(path: Path) -> pd.DataFrame:
    """Read ``per_image.csv``; names such as "007" or "NA" stay text, empty numbers are NaN.

    Raises:
        EvaluationError: if the file is missing or is not a per-image table.
    """
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8")
        for column in table.columns.difference(TEXT_COLUMNS):
            table[column] = pd.to_numeric(table[column].where(table[column] != ""))
    except FileNotFoundError:
        raise EvaluationError(
            f"{path}: no such file", hint="run `bus-smp evaluate` or `bus-smp crosseval` first"
        ) from None
    except ValueError as error:
        raise EvaluationError(f"{path}: is not a per-image table ({error})") from None
    try:
        _check(table)
    except EvaluationError as error:
        raise EvaluationError(f"{path}: {error.what}", hint=error.hint) from None
    return table


def _check(table: pd.DataFrame) -> None:
    missing = [c for c in (*_NEEDED, *METRIC_COLUMNS, *PIXEL_COLUMNS) if c not in table.columns]
    if missing:
        raise EvaluationError(f"the per-image table lacks the columns {', '.join(missing)}")
    if table.empty:
        raise EvaluationError("the per-image table has no rows: nothing was evaluated")
    twice = table.duplicated(["dataset", "image_id"])
    if twice.any():
        first = table.loc[twice].iloc[0]
        raise EvaluationError(f"{first['dataset']} {first['image_id']} was scored twice")
    if table["group_id"].isna().any() or (table["group_id"].astype(str) == "").any():
        raise EvaluationError("the per-image table has rows without group_id")
    for column in ("label", "predicted_label"):
        unknown = sorted({str(v) for v in table[column]} - set(LABELS))
        if unknown:
            raise EvaluationError(
                f"{column} {unknown[0]!r} in the per-image table; expected {', '.join(LABELS)}"
            )


def summarise(per_image: pd.DataFrame, draws: int = 2000, seed: int = 42, confidence: float = 0.95) -> dict:
    """Summarise a per-image table. The result does not depend on the order of its rows.

    Every estimate is ``{mean, low, high, n, n_undefined, groups, undefined_draws, no_interval}``:
    mean (point estimate), its interval (both None where there is none, ``no_interval`` says why),
    the images and groups it is taken over, the rows of the whole table that it is *not* taken over,
    and how many bootstrap draws were left out because it was undefined in them.

    Which images an estimate is taken over:

    - ``metrics``: for the target lesion, benign or malignant, only images whose reference contains
      that target. For Dice, IoU, F1 and sensitivity nothing else is possible. Specificity and precision are
      defined on other images too, and are left out there on purpose, so that the six numbers in
      one row describe the same images; lesion predicted on normal images is ``false_alarm_*``.
      Precision is undefined, and not counted, where nothing is predicted: read it beside ``miss_rate``.
    - ``rates.miss_rate``: of images with a lesion in the reference, those whose predicted lesion does
      not touch it (lesion Dice = 0); a prediction elsewhere is a miss too.
    - ``rates.false_alarm_rate``: of images labelled normal, those with one or more lesion pixels predicted;
      ``rates.false_alarm_area``: mean share of the image predicted as lesion, on the same images.
    - ``rates.image_sensitivity_malignant``, ``rates.image_specificity_malignant``: by image, ``predicted_label`` against ``label``.
    - ``rates.auc_malignant``: ROC-AUC of ``malignant_score``, malignant against all other images;
      ``rates.auc_malignant_among_lesions``: against benign ones only. Mean over pairs of images, ties count half.

    Args:
        per_image: the table of ``per_image.csv``, one row per image.
        draws: number of bootstrap samples of whole groups, drawn with replacement.
        confidence: coverage of the intervals.

    Returns:
        A dict that ``json.dumps(..., allow_nan=False)`` takes: ``counts``, ``metrics``, ``rates``,
        ``image_confusion`` and ``pixel_confusion`` (rows truth, columns prediction),
        ``never_predicted`` (classes, background included, never predicted on any pixel), ``bootstrap``.

    Raises:
        EvaluationError: on missing columns, no rows, an image twice, or an unknown label.
    """
    _check(per_image)
    table = per_image.copy()
    for column in ("dataset", "image_id", "group_id"):
        table[column] = table[column].astype(str)
    table = table.sort_values(["dataset", "group_id", "image_id"], ignore_index=True)
    group = table.groupby(["dataset", "group_id"], sort=True).ngroup().to_numpy()
    pixels = table[list(PIXEL_COLUMNS)].to_numpy(np.int64).reshape(-1, len(CLASSES), len(CLASSES))

    values = _values(table, pixels)
    pairs = _pairs(table)
    sampled = bootstrap(values, pairs, table["malignant_score"].to_numpy(float), group, draws, seed)
    estimates = {}
    for name, column in values.items():
        used = ~np.isnan(column)
        mean = float(column[used].mean()) if used.any() else math.nan
        estimates[name] = estimate(mean, sampled[name], used, [used], group, confidence)
    for name, (positive, negative) in pairs.items():
        weight = np.ones((1, len(table)))
        auc = float(auc_of_draws(weight, table["malignant_score"].to_numpy(float), positive, negative)[0])
        used = positive | negative
        estimates[name] = estimate(auc, sampled[name], used, [positive, negative], group, confidence)

    label, seen = table["label"].to_numpy(), table["predicted_label"].to_numpy()
    predicted = pixels.sum(axis=(0, 1))
    has_lesion = {target: values[f"sensitivity_{target}"] for target in TARGETS}
    return {
        "counts": {
            "images": len(table),
            "groups": int(group.max()) + 1,
            "by_label": {name: int((label == name).sum()) for name in LABELS},
            "with_reference": {target: int((~np.isnan(v)).sum()) for target, v in has_lesion.items()},
        },
        "metrics": {name: estimates[name] for name in METRIC_COLUMNS},
        "rates": {name: estimate for name, estimate in estimates.items() if name not in METRIC_COLUMNS},
        "image_confusion": [[int(((label == t) & (seen == p)).sum()) for p in LABELS] for t in LABELS],
        "pixel_confusion": pixels.sum(axis=0).tolist(),
        "never_predicted": [c.name for c in CLASSES if predicted[c.index] == 0],
        "bootstrap": {"unit": "group", "draws": draws, "seed": seed, "confidence": confidence},
    }


def _values(table: pd.DataFrame, pixels: np.ndarray) -> dict[str, np.ndarray]:
    """Per estimate that is a mean over images: float (images,), NaN on images it is not taken over."""
    reference = pixels.sum(axis=2)
    values = {}
    for target, classes in TARGETS.items():
        contains = reference[:, list(classes)].sum(axis=1) > 0
        for metric in METRICS:
            values[f"{metric}_{target}"] = np.where(
                contains, table[f"{metric}_{target}"].to_numpy(float), np.nan
            )

    label, seen = table["label"].to_numpy(), table["predicted_label"].to_numpy()
    normal, malignant = label == NORMAL, label == MALIGNANT.name
    called_malignant = (seen == MALIGNANT.name).astype(float)
    dice = values["dice_lesion"]
    values["miss_rate"] = np.where(np.isnan(dice), np.nan, dice == 0)
    values["false_alarm_rate"] = np.where(normal, seen != NORMAL, np.nan)
    values["false_alarm_area"] = np.where(normal, table["false_alarm_area"].to_numpy(float), np.nan)
    values["image_sensitivity_malignant"] = np.where(malignant, called_malignant, np.nan)
    values["image_specificity_malignant"] = np.where(malignant, np.nan, 1 - called_malignant)
    return values


def _pairs(table: pd.DataFrame) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Per AUC: which images are positive and which negative."""
    label = table["label"].to_numpy()
    scored = ~np.isnan(table["malignant_score"].to_numpy(float))
    malignant = (label == MALIGNANT.name) & scored
    return {
        "auc_malignant": (malignant, (label != MALIGNANT.name) & scored),
        "auc_malignant_among_lesions": (malignant, (label == LESIONS[0].name) & scored),
    }


def warnings_of(summary: Mapping) -> list[str]:
    """What a reader must know before believing the numbers: one sentence each."""
    warnings = [f"{name} is never predicted on any pixel" for name in summary["never_predicted"]]
    groups = summary["counts"]["groups"]
    if groups < 10:
        warnings.append(f"only {groups} group(s) of images: intervals are missing or too narrow")
    return warnings
