"""What the per-image table says about a data set, with intervals; from the table alone.

An estimate is a mean over images (each image counts once, whatever its size), with a percentile
interval from a bootstrap over *groups*: images of one patient resemble each other, and drawing
images one by one would make the interval too narrow (Field & Welsh, JRSS B 2007).
"""

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from bus_smp.classes import CLASSES, LABELS, LESIONS, MALIGNANT
from bus_smp.errors import EvaluationError
from bus_smp.evaluation.metrics import METRIC_COLUMNS, METRICS, PIXEL_COLUMNS, TARGETS

TEXT_COLUMNS = ("dataset", "image_id", "patient_id", "group_id", "label", "flags", "predicted_label")

NORMAL = LABELS[0]

# An interval from the draws that happen to be defined leaves out the unlucky ones; beyond this
# share of undefined draws it is no longer shown.
MAX_UNDEFINED_DRAWS = 0.1

_NO_INTERVAL = "no interval: "
_SAME = "the same in every image"

# Draws are made in blocks, so that memory does not grow with draws x images.
_BLOCK_CELLS = 2_000_000

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
    sampled = _bootstrap(values, pairs, table["malignant_score"].to_numpy(float), group, draws, seed)
    estimates = {}
    for name, column in values.items():
        used = ~np.isnan(column)
        mean = float(column[used].mean()) if used.any() else math.nan
        estimates[name] = _estimate(mean, sampled[name], used, [used], group, confidence)
    for name, (positive, negative) in pairs.items():
        weight = np.ones((1, len(table)))
        auc = float(_auc(weight, table["malignant_score"].to_numpy(float), positive, negative)[0])
        used = positive | negative
        estimates[name] = _estimate(auc, sampled[name], used, [positive, negative], group, confidence)

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


def _auc(weights: np.ndarray, scores: np.ndarray, positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """ROC-AUC (Mann-Whitney, ties half) for each row of image weights (draws, images); NaN where one kind is absent."""
    used = np.flatnonzero(positive | negative)
    if used.size == 0:
        return np.full(len(weights), np.nan)
    used = used[np.argsort(scores[used], kind="stable")]
    ties = np.flatnonzero(np.r_[True, np.diff(scores[used]) != 0])
    won = np.add.reduceat(weights[:, used] * positive[used], ties, axis=1)
    lost = np.add.reduceat(weights[:, used] * negative[used], ties, axis=1)
    pairs = won.sum(axis=1) * lost.sum(axis=1)
    ordered = (won * (np.cumsum(lost, axis=1) - lost / 2)).sum(axis=1)
    return np.divide(ordered, pairs, out=np.full(len(weights), np.nan), where=pairs > 0)


def _bootstrap(
    values: Mapping[str, np.ndarray],
    pairs: Mapping[str, tuple[np.ndarray, np.ndarray]],
    scores: np.ndarray,
    group: np.ndarray,
    draws: int,
    seed: int,
) -> dict[str, np.ndarray]:
    """Every estimate in every draw of whole groups: float (draws,), NaN where undefined."""
    groups = int(group.max()) + 1
    columns = np.stack(list(values.values()), axis=1)
    defined = ~np.isnan(columns)
    # A mean over the images of a draw needs only each group's sum and count.
    sums, counts = np.zeros((2, groups, columns.shape[1]))
    np.add.at(sums, group, np.where(defined, columns, 0))
    np.add.at(counts, group, defined)

    random = np.random.default_rng(seed)
    block = max(1, _BLOCK_CELLS // len(group))
    means, areas = [], {name: [] for name in pairs}
    for start in range(0, draws, block):
        rows = min(block, draws - start)
        picks = random.integers(0, groups, size=(rows, groups)) + np.arange(rows)[:, None] * groups
        weights = np.bincount(picks.reshape(-1), minlength=rows * groups).reshape(rows, groups).astype(float)
        total = weights @ counts
        means.append(np.divide(weights @ sums, total, out=np.full(total.shape, np.nan), where=total > 0))
        for name, (positive, negative) in pairs.items():
            areas[name].append(_auc(weights[:, group], scores, positive, negative))
    drawn = np.concatenate(means) if means else np.empty((0, columns.shape[1]))
    sampled = {name: drawn[:, index] for index, name in enumerate(values)}
    return sampled | {name: np.concatenate(parts) if parts else np.empty(0) for name, parts in areas.items()}


def _estimate(
    mean: float,
    sampled: np.ndarray,
    used: np.ndarray,
    kinds: list[np.ndarray],
    group: np.ndarray,
    confidence: float,
) -> dict:
    """One estimate of ``summarise``; ``kinds`` are the images of which it needs more than one group each."""
    drawn = sampled[~np.isnan(sampled)]
    undefined = len(sampled) - len(drawn)
    low = high = None
    why = ""
    if math.isnan(mean):
        why = "undefined: no such image"
    elif min(len(np.unique(group[kind])) for kind in kinds) < 2:
        why = f"{_NO_INTERVAL}one patient"
    elif len(sampled) == 0:
        why = f"{_NO_INTERVAL}no draws"
    elif undefined > MAX_UNDEFINED_DRAWS * len(sampled):
        why = f"{_NO_INTERVAL}undefined in {undefined / len(sampled):.0%} of the draws"
    elif np.ptp(drawn) < 1e-12:
        # [0, 0] for "0 of 12 missed" would claim a certainty that 12 images do not give.
        why = f"{_NO_INTERVAL}{_SAME}"
    else:
        low, high = (float(q) for q in np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2]))
    return {
        "mean": None if math.isnan(mean) else mean,
        "low": low,
        "high": high,
        "n": int(used.sum()),
        "n_undefined": int((~used).sum()),
        "groups": len(np.unique(group[used])),
        "undefined_draws": undefined,
        "no_interval": why,
    }


# The rows of the table people read: heading -> (words, where in the summary).
_ROWS = {
    "Is a lesion found?": [
        ("Missed lesions (share of lesion images)", "rates", "miss_rate"),
        ("False alarms (share of normal images)", "rates", "false_alarm_rate"),
        ("False-alarm area (share of a normal image)", "rates", "false_alarm_area"),
    ],
    "Is malignancy recognised? (by image)": [
        ("Sensitivity malignant", "rates", "image_sensitivity_malignant"),
        ("Specificity malignant", "rates", "image_specificity_malignant"),
        ("AUC malignant vs all others", "rates", "auc_malignant"),
        ("AUC malignant vs benign", "rates", "auc_malignant_among_lesions"),
    ],
    "How well is it outlined? (by pixel, images that show the target)": [
        (f"{words} {target}", "metrics", f"{metric}_{target}")
        for target in TARGETS
        for words, metric in (
            ("Dice", "dice"), ("IoU", "iou"), ("Sensitivity", "sensitivity"),
            ("Specificity", "specificity"), ("Precision", "precision"),
        )
    ],
}  # fmt: skip


def format_estimate(estimate: Mapping) -> str:
    """An estimate as text, e.g. ``0.612 [0.550, 0.671] n=63``; ``-`` where it is undefined.

    Where there is no interval the reason stands in its place, ``0.612 [one patient] n=7``; unless it
    is that all images agree, which the number itself (0 or 1, as a rule) lets one guess.
    """
    if estimate["mean"] is None:
        return "-"
    if estimate["low"] is not None:
        interval = f"[{estimate['low']:.3f}, {estimate['high']:.3f}] "
    else:
        reason = estimate["no_interval"].removeprefix(_NO_INTERVAL)
        interval = "" if reason == _SAME else f"[{reason}] "
    return f"{estimate['mean']:.3f} {interval}n={estimate['n']}"


def table_rows(summaries: Mapping[str, Mapping]) -> list[tuple[str, str, list[str]]]:
    """The table people read, as (heading, row name, one cell per summary in their order)."""
    return [
        (heading, words, [format_estimate(summary[part][key]) for summary in summaries.values()])
        for heading, rows in _ROWS.items()
        for words, part, key in rows
    ]


def warnings_of(summary: Mapping) -> list[str]:
    """What a reader must know before believing the numbers: one sentence each."""
    warnings = [f"{name} is never predicted on any pixel" for name in summary["never_predicted"]]
    groups = summary["counts"]["groups"]
    if groups < 10:
        warnings.append(f"only {groups} group(s) of images: intervals are missing or too narrow")
    return warnings


def format_table(summaries: Mapping[str, Mapping]) -> str:
    """Summaries side by side as aligned plain text, e.g. a model beside the trivial baselines.

    Args:
        summaries: name to result of ``summarise``; the first is the one that the baselines stand beside.

    Returns:
        Lines with LF between them: what was scored, the rows under their headings, how to read
        them. ``warnings_of`` belongs beside it.
    """
    rows = table_rows(summaries)
    names = list(summaries)
    first = max(len(words) for _, words, _ in rows) + 2
    widths = [max(len(name), *(len(cells[i]) for _, _, cells in rows)) for i, name in enumerate(names)]

    def line(words: str, cells: list[str]) -> str:
        padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        return f"{words:<{first}}  {'  '.join(padded)}".rstrip()

    scored = {name: _scored(summary["counts"]) for name, summary in summaries.items()}
    if len(set(scored.values())) == 1:
        lines = [scored[names[0]]]
    else:
        lines = [f"{name}: {text}" for name, text in scored.items()]
    lines += ["", line("", names)]
    above = ""
    for heading, words, cells in rows:
        if heading != above:
            lines += ["" if above else line("", ["-" * width for width in widths]), heading]
            above = heading
        lines.append(line(f"  {words}", cells))
    confidence = next(iter(summaries.values()))["bootstrap"]["confidence"]
    lines += [
        "",
        f"[low, high]: {confidence:.0%} interval, bootstrap over groups (patients, where known);",
        "n: images the number is taken over; -: undefined. Images without the target never enter its Dice.",
    ]
    lines += [
        f"Warning, {name}: {text}" for name, summary in summaries.items() for text in warnings_of(summary)
    ]
    return "\n".join(line.rstrip() for line in lines)


def _scored(counts: Mapping) -> str:
    by_label = ", ".join(f"{number} {label}" for label, number in counts["by_label"].items())
    return f"{counts['images']} images of {counts['groups']} groups: {by_label}"
