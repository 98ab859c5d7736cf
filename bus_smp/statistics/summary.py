"""What the per-image table says about a data set, with intervals; from nothing but the table."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bus_smp.classes import CLASSES, LABELS
from bus_smp.errors import EvaluationError
from bus_smp.measures.lesions import DETECTION_COLUMNS
from bus_smp.measures.overlap import PIXEL_COLUMNS, TARGETS
from bus_smp.measures.shape import SHAPE_COLUMNS, SHAPES, agreement
from bus_smp.statistics.bootstrap import (
    MIN_GROUPS,
    MOST_ENUMERATED,
    Resampled,
    bootstrap,
    estimate,
    rare_labels,
)
from bus_smp.statistics.estimators import Estimator, Unresampled
from bus_smp.statistics.metrics import HEADLINES, IMAGE_COLUMNS, METRICS, estimators, pixel_counts
from bus_smp.statistics.subgroups import levels
from bus_smp.text import counted, restored_table

TEXT_COLUMNS = ("dataset", "image_id", "patient_id", "group_id", "label", "flags", "predicted_label")

# Columns that every summary is made from, next to those of the metrics.
_ALWAYS = (
    "dataset", "image_id", "group_id", "label", "flags", "predicted_label", *PIXEL_COLUMNS, *DETECTION_COLUMNS, *SHAPE_COLUMNS,
)  # fmt: skip
NEEDED = tuple(
    dict.fromkeys(
        (*_ALWAYS, *(name for metric in METRICS for name in metric.columns if name not in IMAGE_COLUMNS))
    )
)


def read_per_image(path: Path) -> pd.DataFrame:
    """Read ``per_image.csv``; names such as "007" or "NA" stay text, empty numbers are NaN.

    Raises:
        EvaluationError: if the file is missing, is not a per-image table, or is one of an older version.
    """
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8")
        table = restored_table(table)
        for column in table.columns.difference(TEXT_COLUMNS):
            table[column] = pd.to_numeric(table[column].where(table[column] != ""))
    except FileNotFoundError:
        raise EvaluationError(
            f"{path}: no such file", hint="run `bus-smp evaluate` or `bus-smp crosseval` first"
        ) from None
    except ValueError as error:
        raise EvaluationError(f"{path}: is not a per-image table ({error})") from None
    try:
        check_per_image(table)
    except EvaluationError as error:
        raise EvaluationError(f"{path}: {error.what}", hint=error.hint) from None
    return table


def check_per_image(table: pd.DataFrame) -> None:
    """Refuse a table that would be summarised wrongly.

    Raises:
        EvaluationError: on missing columns, no rows, an image twice, no group, or an unknown label.
    """
    missing = [c for c in NEEDED if c not in table.columns]
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise EvaluationError(
            f"the per-image table lacks the columns {', '.join(missing[:5])}{more}: it is of an older version, or of another tool",
            hint="evaluate again (bus-smp evaluate, bus-smp crosseval)",
        )
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


def sorted_by_group(table: pd.DataFrame) -> tuple[pd.DataFrame, np.ndarray, np.ndarray, list[int]]:
    """A checked table in an order that does not depend on that of its rows.

    Returns:
        the table; int (images,) numbers of the groups, 0..; their strata and the rare labels, from ``rare_labels``.
    """
    table = table.copy()
    for column in ("dataset", "image_id", "group_id"):
        table[column] = table[column].astype(str)
    table = table.sort_values(["dataset", "group_id", "image_id"], ignore_index=True)
    # A group id that names its data set can be in several data sets, for pictures found in both: it is one group.
    own = table["dataset"] + "\n" + table["group_id"]
    group = np.unique(table["group_id"].where(table["group_id"].str.contains(":"), own), return_inverse=True)[
        1
    ]
    severity = table["label"].map(LABELS.index).to_numpy(int)
    return table, group, *rare_labels(severity, group)


def summarise(
    per_image: pd.DataFrame, draws: int = 5000, seed: int = 42, confidence: float = 0.95
) -> dict[str, Any]:
    """Summarise a per-image table. The result does not depend on the order of its rows.

    Every estimate is ``{mean, low, high, n, n_undefined, groups, undefined_draws, no_interval}``: the point estimate; its
    interval from widened percentiles (see ``tail``; None where there is none, ``no_interval`` gives the reason); the
    images and groups it is taken over; the other images, which it is *not* taken over; and how many bootstrap draws were
    left out because it was undefined in them. What each number is: ``statistics.metrics.METRICS``.

    Args:
        per_image: the table of ``per_image.csv``, one row per image.
        draws: number of bootstrap samples of whole groups, drawn with replacement; 0: no intervals. Of few groups all are
            taken (see ``bootstrap``).
        confidence: coverage of the intervals.

    Returns:
        A dict that ``json.dumps(..., allow_nan=False)`` takes:

        - ``counts``: images and groups, both by label too (a group has the label of each of its images), images
          whose reference shows each target, lesions in the reference.
        - ``metrics`` (of a target), ``rates`` (of images and lesions): key of ``METRICS`` -> estimate. ``image_ece`` has no interval:
          resampling adds to its upward bias.
        - ``strata``: way -> level (``levels``) -> images, groups, the estimates ``HEADLINES`` and, of sizes, ``bounds``.
        - ``agreement``: area (pixels), depth_to_width, circularity, solidity -> ``agreement`` of reference and
          prediction over the images whose lesion was found (lesion Dice > 0); NaN as None. ``agreement_head_truth``,
          ``agreement_head_mask``: the same of the shape head with the reference, and with the prediction.
        - ``image_confusion``, ``pixel_confusion``: rows truth, columns prediction.
        - ``never_predicted``: classes, background included, never predicted on any pixel.
        - ``bootstrap``: how the intervals were made; ``stratified_by`` the rare labels (``rare_labels``).

    Raises:
        EvaluationError: as ``check_per_image``.
    """
    check_per_image(per_image)
    table, group, stratum, rare = sorted_by_group(per_image)
    of_all = estimators(table)
    divided = levels(table)
    known: dict[tuple[str, ...], Estimator | Unresampled] = {(key,): one for key, one in of_all.items()}
    for by, parts in divided.items():
        for name, level in parts.items():
            known |= {(by, name, key): one for key, one in level.estimators(of_all).items()}
    drawn = {key: one for key, one in known.items() if not isinstance(one, Unresampled)}
    resampled = bootstrap(drawn, group, stratum, draws, seed)

    def estimated(key: tuple[str, ...], images: int) -> dict[str, Any]:
        one = known[key]
        if isinstance(one, Unresampled):
            point, counted = Resampled(one.point, np.empty(0)), (one.counted.astype(float),)
            return estimate(point, counted, group, stratum, confidence, images, unreliable=one.why)
        return estimate(resampled[key], one.kinds, group, stratum, confidence, images)

    strata = {
        by: {
            name: {
                "images": int(level.images.sum()),
                "groups": len(np.unique(group[level.images])),
                **({"bounds": list(level.bounds)} if level.bounds else {}),
                **{key: estimated((by, name, key), int(level.images.sum())) for key in HEADLINES},
            }
            for name, level in parts.items()
        }
        for by, parts in divided.items()
    }
    found: dict[str, dict[str, Any]] = {"metrics": {}, "rates": {}}
    for metric in METRICS:
        if metric.key in of_all:
            found[metric.part][metric.key] = estimated((metric.key,), len(table))

    exact = " of all possible draws" if draws and len(stratum) <= MOST_ENUMERATED else ""
    label, seen = table["label"].to_numpy(), table["predicted_label"].to_numpy()
    pixels = pixel_counts(table)
    predicted = pixels.sum(axis=(0, 1))
    return {
        "counts": {
            "images": len(table),
            "groups": len(stratum),
            "by_label": {name: int((label == name).sum()) for name in LABELS},
            "groups_by_label": {name: len(np.unique(group[label == name])) for name in LABELS},
            "with_reference": {
                target: int(pixels.sum(axis=2)[:, list(classes)].any(axis=1).sum())
                for target, classes in TARGETS.items()
            },
            "lesions_true": int(table["lesions_true"].sum()),
        },
        **found,
        "strata": strata,
        "agreement": _agreement(table, "truth", "predicted"),
        # of a run with a shape head
        **(
            {
                "agreement_head_truth": _agreement(table, "truth", "head"),
                "agreement_head_mask": _agreement(table, "predicted", "head"),
            }
            if f"{SHAPES[0]}_head" in table
            else {}
        ),
        "image_confusion": [[int(((label == t) & (seen == p)).sum()) for p in LABELS] for t in LABELS],
        "pixel_confusion": pixels.sum(axis=0).tolist(),
        "never_predicted": [c.name for c in CLASSES if predicted[c.index] == 0],
        "bootstrap": {
            "unit": "group",
            "draws": len(next(iter(resampled.values())).drawn),
            "seed": seed,
            "confidence": confidence,
            "interval": f"percentile{exact}, widened for few groups",
            "stratified_by": [LABELS[severity] for severity in rare],
        },
    }


def point_estimates(table: pd.DataFrame, keys: Sequence[str]) -> dict[str, float]:
    """Some metrics of a per-image table without intervals, the same numbers as in ``summarise``; NaN where undefined.

    Args:
        table: needs ``dataset, image_id, group_id, label``, the columns of ``image_row`` and those of the metrics; not checked.
        keys: of ``METRICS``.
    """
    table, group, stratum, _ = sorted_by_group(table)
    found = bootstrap(estimators(table, keys), group, stratum, draws=0, seed=0)
    return {key: found[key].point for key in keys}


def _agreement(table: pd.DataFrame, first: str, second: str) -> dict[str, dict[str, float | int | None]]:
    """Of the columns that end in ``first`` and in ``second``."""
    found = table[table["dice_lesion"] > 0]
    return {
        shape: {
            name: None if math.isnan(value) else value
            for name, value in agreement(
                found[f"{shape}_{first}"].to_numpy(float), found[f"{shape}_{second}"].to_numpy(float)
            ).items()
        }
        for shape in SHAPES
    }


def warnings_of(summary: Mapping[str, Any], unit: str = "group") -> list[str]:
    """What a reader must know before believing the numbers: one sentence each.

    Args:
        unit: "patient" where groups are known to be patients.
    """
    rates, counts = summary["rates"], summary["counts"]
    warnings = []
    auc = rates["auc_malignant"]
    if auc["mean"] is not None and auc["mean"] < 0.5:
        warnings.append(f"AUC below chance: {auc['mean']:.3f} (chance is 0.5)")
    elif auc["low"] is not None and auc["low"] <= 0.5:
        warnings.append(f"AUC not clearly above chance: its interval begins at {auc['low']:.3f}")
    for key, what, images in (
        ("false_alarm_rate", "false alarms on", "normal image"),
        ("miss_rate", "lesion missed in", "image"),
    ):
        share, n = rates[key]["mean"], rates[key]["n"]
        if share is not None and share > 0.5:
            number = (
                f"all {counted(n, images)}" if share == 1 else f"{round(share * n)} of {counted(n, images)}"
            )
            warnings.append(f"{what} {number}{' with a lesion' if key == 'miss_rate' else ''}")
    warnings += [f"{name} is never predicted on any pixel" for name in summary["never_predicted"]]
    if counts["groups"] < 10:
        warnings.append(f"only {counted(counts['groups'], unit)}: intervals are missing or too narrow")
    few = {name: number for name, number in counts["groups_by_label"].items() if 0 < number < MIN_GROUPS}
    if counts["groups"] >= MIN_GROUPS:
        warnings += [
            f"{name} images come from only {counted(number, unit)}: no interval for numbers about {name} images only"
            for name, number in few.items()
        ]
    return warnings
