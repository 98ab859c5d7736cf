"""Summaries as the table people read: the model beside the trivial baselines."""

from collections.abc import Mapping

from bus_smp.evaluation.bootstrap import NO_INTERVAL, SAME
from bus_smp.evaluation.metrics import TARGETS

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
        reason = estimate["no_interval"].removeprefix(NO_INTERVAL)
        interval = "" if reason == SAME else f"[{reason}] "
    return f"{estimate['mean']:.3f} {interval}n={estimate['n']}"


def table_rows(summaries: Mapping[str, Mapping]) -> list[tuple[str, str, list[str]]]:
    """The table people read, as (heading, row name, one cell per summary in their order)."""
    return [
        (heading, words, [format_estimate(summary[part][key]) for summary in summaries.values()])
        for heading, rows in _ROWS.items()
        for words, part, key in rows
    ]


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
    return "\n".join(line.rstrip() for line in lines)


def _scored(counts: Mapping) -> str:
    by_label = ", ".join(f"{number} {label}" for label, number in counts["by_label"].items())
    return f"{counts['images']} images of {counts['groups']} groups: {by_label}"
