"""Summaries as the table people read: the model beside the trivial baselines."""

from collections.abc import Mapping

from bus_smp.measures.overlap import TARGETS
from bus_smp.measures.surfaces import TOLERANCE
from bus_smp.statistics.bootstrap import NO_INTERVAL, SAME

# The rows of the table people read: heading -> (words, where in the summary).
_ROWS = {
    "Is a lesion found?": [
        ("Missed lesions, by image", "rates", "miss_rate"),
        ("Lesions found, IoU >= .1", "rates", "lesion_sensitivity_iou10"),
        ("Lesions found, IoU >= .5", "rates", "lesion_sensitivity_iou50"),
        ("False lesions per image", "rates", "false_lesions_per_image_iou10"),
        ("False alarms, normal images", "rates", "false_alarm_rate"),
        ("False-alarm area, normal", "rates", "false_alarm_area"),
    ],
    "Is malignancy recognised? (by image)": [
        ("AUC malignant vs all others", "rates", "auc_malignant"),
        ("AUC malignant vs benign", "rates", "auc_malignant_among_lesions"),
        ("Sensitivity, larger class", "rates", "image_sensitivity_malignant"),
        ("Specificity, larger class", "rates", "image_specificity_malignant"),
        ("Sensitivity, threshold", "rates", "called_sensitivity"),
        ("Specificity, threshold", "rates", "called_specificity"),
        ("Sensitivity, threshold 90 %", "rates", "called_sensitivity_90"),
        ("Specificity, threshold 90 %", "rates", "called_specificity_90"),
        ("Sensitivity, threshold 95 %", "rates", "called_sensitivity_95"),
        ("Specificity, threshold 95 %", "rates", "called_specificity_95"),
        ("ROC: sens. at 90 % spec.", "rates", "sensitivity_at_90_specificity"),
        ("ROC: sens. at 95 % spec.", "rates", "sensitivity_at_95_specificity"),
        ("Right class, lesions found", "rates", "class_accuracy_given_detection"),
    ],
    "How well is it outlined? (images that show the target)": [
        *(
            (f"{words} {target}", "metrics", f"{metric}_{target}")
            for target in TARGETS
            for words, metric in (
                ("Dice", "dice"), ("IoU", "iou"), ("Sensitivity", "sensitivity"),
                ("Specificity", "specificity"), ("Precision", "precision"),
            )
        ),
        ("HD95 lesion, px", "metrics", "hd95_lesion"),
        ("HD95 lesion, mm", "metrics", "hd95_lesion_mm"),
        ("Surface distance lesion, px", "metrics", "asd_lesion"),
        ("Surface distance lesion, mm", "metrics", "asd_lesion_mm"),
        (f"Surface Dice lesion, {TOLERANCE} px", "metrics", "surface_dice_lesion"),
    ],
    "Can its probabilities be believed? (0 is best)": [
        ("Brier score, malignant", "rates", "image_brier"),
        ("Brier score, malignant, raw", "rates", "image_brier_raw"),
        ("ECE, malignant", "rates", "image_ece"),
        ("ECE, malignant, raw", "rates", "image_ece_raw"),
        ("Brier score, pixels", "rates", "pixel_brier"),
        ("Brier score, pixels, raw", "rates", "pixel_brier_raw"),
    ],
}  # fmt: skip
# What not every run or data set has: thresholds, a pixel size.
_OPTIONAL = ("called_", "hd95_lesion_mm", "asd_lesion_mm")

WORDS = {key: words for rows in _ROWS.values() for words, _, key in rows}


def format_estimate(estimate: Mapping, digits: int = 3) -> str:
    """An estimate as text, e.g. ``0.612 [0.550, 0.671] n=63``; ``-`` where it is undefined.

    Where there is no interval the reason stands in its place, ``0.612 [one patient] n=7``; unless it
    is that all images agree, which the number itself (0 or 1, as a rule) lets one guess.
    """
    if estimate["mean"] is None:
        return "-"
    if estimate["low"] is not None:
        interval = f"[{estimate['low']:.{digits}f}, {estimate['high']:.{digits}f}] "
    else:
        reason = estimate["no_interval"].removeprefix(NO_INTERVAL)
        interval = "" if reason == SAME else f"[{reason}] "
    return f"{estimate['mean']:.{digits}f} {interval}n={estimate['n']}"


def estimate_over_runs(spread: Mapping) -> dict:
    """A mean over runs (``{mean, sd, n}``) as ``format_estimate`` takes it: its sd stands where an interval would."""
    sd = "one run" if spread["sd"] is None else f"sd {spread['sd']:.3f}"
    return {**spread, "low": None, "high": None, "no_interval": sd}


def digits_of(name: str) -> int:
    """Decimals of an estimate: nobody reads a thousandth of a pixel."""
    return (2 if name.endswith("_mm") else 1) if name.startswith(("hd95_", "asd_")) else 3


def table_rows(summaries: Mapping[str, Mapping]) -> list[tuple[str, str, list[str]]]:
    """The table people read, as (heading, row name, one cell per summary in their order).

    Rows of thresholds and of millimetres are left out where none of the summaries has them.
    """
    rows = []
    for heading, of_heading in _ROWS.items():
        for words, part, key in of_heading:
            found = [summary[part].get(key) for summary in summaries.values()]
            known = any(estimate is not None and estimate["mean"] is not None for estimate in found)
            if known or not key.startswith(_OPTIONAL):
                digits = digits_of(key)
                cells = ["-" if estimate is None else format_estimate(estimate, digits) for estimate in found]
                rows.append((heading, words, cells))
    return rows


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
        "Distances leave out images where nothing is predicted. Threshold: fitted on validation; ROC: on these images.",
        "Larger class: the one with more pixels. Raw: before temperature.",
    ]
    return "\n".join(line.rstrip() for line in lines)


def _scored(counts: Mapping) -> str:
    by_label = ", ".join(f"{number} {label}" for label, number in counts["by_label"].items())
    return f"{counts['images']} images of {counts['groups']} groups: {by_label}"
