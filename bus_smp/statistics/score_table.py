"""Summaries as people read them: a few lines first, then the table of the model next to the trivial baselines."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from bus_smp.statistics.bootstrap import NO_INTERVAL, SAME
from bus_smp.statistics.latex import latex_table
from bus_smp.statistics.metrics import BY_KEY, HEADLINES, METRICS, Metric
from bus_smp.text import counted, folded


def format_estimate(estimate: Mapping, digits: int = 3) -> str:
    """An estimate as text, e.g. ``0.612 [0.550, 0.671] n=63``; ``-`` where it is undefined.

    Where there is no interval the reason takes its place, ``0.612 [one patient] n=7``; unless it
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
    """A mean over runs (``{mean, sd, n}``) as ``format_estimate`` takes it: its sd takes the place of the interval."""
    sd = "one run" if spread["sd"] is None else f"sd {spread['sd']:.3f}"
    return {**spread, "low": None, "high": None, "no_interval": sd}


def columns_of(summary: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The columns of the table of any summary: the model, or the mean of several runs; then the baselines."""
    summaries = summary["summaries"]
    if "members" not in summary:
        return summaries
    runs = summary["runs"]
    # nothing else: the subgroups of one run are not those of the mean
    mean = {key: summaries[runs[0]].get(key) for key in ("counts", "bootstrap")}
    mean |= {
        part: {name: estimate_over_runs(one) for name, one in summary["members"][part].items()}
        for part in ("metrics", "rates")
    }
    name = f"mean of {counted(len(runs), 'run')}"
    return {name: mean, **{key: one for key, one in summaries.items() if key not in runs}}


def digits_of(name: str) -> int:
    """Decimals of an estimate when printed; 3 for one that the table of metrics does not have (any more)."""
    return BY_KEY[name].digits if name in BY_KEY else 3


def estimate_rows(summaries: Mapping[str, Mapping]) -> Iterator[tuple[Metric, list[Mapping | None]]]:
    """The rows of the table people read: the metric, and its estimate in each summary.

    Optional rows (thresholds, millimetres) are left out where none of the summaries has them.
    """
    for metric in METRICS:
        found = [summary[metric.part].get(metric.key) for summary in summaries.values()]
        known = any(estimate is not None and estimate["mean"] is not None for estimate in found)
        if metric.printed and (known or not metric.optional):
            yield metric, found


def table_rows(summaries: Mapping[str, Mapping]) -> list[tuple[str, str, list[str]]]:
    """``estimate_rows`` as text: (heading, row name, one cell per summary in their order)."""
    return [
        (
            metric.question,
            metric.words,
            ["-" if one is None else format_estimate(one, metric.digits) for one in found],
        )
        for metric, found in estimate_rows(summaries)
    ]


def table_frame(summaries: Mapping[str, Mapping]) -> pd.DataFrame:
    """The rows of the printed table as ``table.csv`` holds them.

    Columns: ``key, metric, question``, and for each summary ``<name>``, ``<name>_low``, ``<name>_high`` (or
    ``<name>_sd`` between runs) and ``<name>_n``; ``no_interval``: why the first has none. What is undefined is NaN.
    """
    rows = []
    for metric, found in estimate_rows(summaries):
        row = {"key": metric.key, "metric": metric.words, "question": metric.question}
        for name, one in zip(summaries, found, strict=True):
            if one is not None:
                ends = ("sd",) if "sd" in one else ("low", "high")
                row |= {name: one["mean"], **{f"{name}_{key}": one[key] for key in (*ends, "n")}}
        first = found[0] or {}
        rows.append(row | {"no_interval": first.get("no_interval", "") if "sd" not in first else ""})
    return pd.DataFrame(rows)


def table_latex(summaries: Mapping[str, Mapping], title: str) -> str:
    """The rows of the printed table as LaTeX: the first summary with its interval (or sd) and n, of the others the value."""
    first, *others = summaries
    rows = [
        (
            metric.question,
            [metric.words, _value(of[0], metric), _n(of[0]), *(_mean(one, metric) for one in of[1:])],
        )
        for metric, of in estimate_rows(summaries)
    ]
    return latex_table(title, ["", first, "n", *others], rows)


def format_headlines(summaries: Mapping[str, Mapping]) -> list[str]:
    """The few numbers that a reader looks at first, with their intervals and counts, and ``verdict``; a line each.

    Args:
        summaries: name to result of ``summarise``; the first is the model (or the mean of several runs), the others
            the trivial baselines.
    """
    model = next(iter(summaries.values()))
    lines = []
    for key, words in HEADLINES.items():
        metric = BY_KEY[key]
        one = model[metric.part][key]
        text = _value(one, metric)
        if one["mean"] is not None and "sd" not in one:
            text += "" if one["low"] is not None else " (no interval)"
            text = f"{text:<22}{_taken_over(one, metric)}"
        lines.append(f"{words[0].upper() + words[1:]:<16}{text}".rstrip())
    return [*lines, f"{'Verdict':<16}{verdict(summaries)}", *_at_point(model)]


def _at_point(model: Mapping) -> list[str]:
    """The headline numbers at the operating point in one line; none, where there is no such point."""
    found = {
        words: (model[BY_KEY[key].part].get(key) or {}).get("mean")
        for words, key in (
            ("Dice", "dice_lesion_at_point"),
            ("missed", "miss_rate_at_point"),
            ("false alarms", "false_alarm_rate_at_point"),
        )
    }
    known = [f"{words} {value:.3f}" for words, value in found.items() if value is not None]
    return [f"{'Operating point':<16}{', '.join(known)}"] if known else []


def _taken_over(estimate: Mapping, metric: Metric) -> str:
    """What an estimate is taken over; of a share, how many."""
    is_share = metric.formula.startswith("share of images")
    count = f"{round(estimate['mean'] * estimate['n'])} of " if is_share else ""
    over = metric.over.removeprefix("all ").replace("that show lesion", "with a lesion")
    return f"{count}{estimate['n']} {over}"


# What a lesion Dice is to that of the better baseline.
BEATEN, BETWEEN_RUNS, NO_INTERVAL_ABOVE, CLEARLY, OVERLAP = (
    "no better", "above, over runs", "above, no interval", "clearly above", "above, overlapping",
)  # fmt: skip


def standing(summaries: Mapping[str, Mapping]) -> tuple[str, str] | None:
    """The lesion Dice of the first summary against the better baseline's; ``CLEARLY`` only where the intervals do not overlap.

    Returns:
        one of the words above, and the name of that baseline; None where there is no Dice, or no baseline that has one.
    """
    dice, *others = [
        {**summary["metrics"]["dice_lesion"], "name": name} for name, summary in summaries.items()
    ]
    others = [one for one in others if one["mean"] is not None]
    if dice["mean"] is None or not others:
        return None
    best = max(others, key=lambda one: one["mean"])
    if dice["mean"] <= best["mean"]:
        return BEATEN, best["name"]
    # An sd between runs is no interval.
    if "sd" in dice:
        return BETWEEN_RUNS, best["name"]
    if dice["low"] is None:
        return NO_INTERVAL_ABOVE, best["name"]
    is_clear = dice["low"] > (best["mean"] if best["high"] is None else best["high"])
    return CLEARLY if is_clear else OVERLAP, best["name"]


_STANDINGS = {
    BEATEN: "Dice no better than {}", BETWEEN_RUNS: "Dice above {}", NO_INTERVAL_ABOVE: "Dice above {}, no interval",
    CLEARLY: "Dice clearly above {}", OVERLAP: "Dice above {}, intervals overlap",
}  # fmt: skip


def verdict(summaries: Mapping[str, Mapping]) -> str:
    """``standing`` in a few words, with the baseline's Dice."""
    found = standing(summaries)
    if found is None:
        no_lesion = next(iter(summaries.values()))["metrics"]["dice_lesion"]["mean"] is None
        return "none: no image shows a lesion" if no_lesion else "none: no baseline to compare with"
    words, name = found
    dice = summaries[name]["metrics"]["dice_lesion"]["mean"]
    return _STANDINGS[words].format(f"trivial {name} ({dice:.3f})")


def format_table(summaries: Mapping[str, Mapping]) -> str:
    """Summaries side by side as aligned plain text, e.g. a model next to the trivial baselines.

    Args:
        summaries: name to result of ``summarise``; the first is the model. Only its numbers have intervals here; those
            of all are in ``table_frame``.

    Returns:
        Lines of at most 80 characters with LF between them: what was scored, the rows under their headings, how
        to read them. Print ``warnings_of`` with it.
    """
    names = list(summaries)
    reasons: list[str] = []
    rows: list[tuple[str, list[str]]] = []
    for metric, found in estimate_rows(summaries):
        others = [_mean(one, metric) for one in found[1:]]
        rows.append(
            (metric.question, [metric.words, _value(found[0], metric, reasons), _n(found[0]), *others])
        )
    # names of two words take two lines
    parts = [name.split("-", 1) if len(name) > 10 else ["", name] for name in names[1:]]
    heads = [
        ["", "", "", *(f"{first}-" if first else "" for first, _ in parts)],
        ["", names[0], "n", *(last for _, last in parts)],
    ]
    widths = [
        max(len(row[i]) for row in (*heads, *(cells for _, cells in rows))) for i in range(len(heads[0]))
    ]

    def line(cells: Sequence[str]) -> str:
        first, value, n, *others = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        # one space: distances of four digits still fit into 80 columns
        return f"  {first}  {' '.join([value, n, *others])}".rstrip()

    scored = {name: _scored(summary["counts"]) for name, summary in summaries.items()}
    if len(set(scored.values())) == 1:
        lines = [scored[names[0]]]
    else:
        lines = [f"{name}: {text}" for name, text in scored.items()]
    lines += ["", *map(line, heads[not any(heads[0]) :])]
    above = ""
    for heading, cells in rows:
        if heading != above:
            lines += ["", heading]
            above = heading
        lines.append(line(cells))
    confidence = next(iter(summaries.values()))["bootstrap"]["confidence"]
    if any("sd" in (found[0] or {}) for _, found in estimate_rows(summaries)):
        brackets = ["[sd]: standard deviation between the runs; n: runs."]
    else:
        brackets = [
            f"[low, high]: {100 * confidence:g} % interval, bootstrap over groups (patients, where known).",
            *(f"[{number}]: no interval: {why}." for number, why in enumerate(reasons, start=1)),
            "No bracket: no interval, because the number is the same in every image.",
            "n: images that the number is taken over. -: undefined.",
        ]
    lines += ["", *brackets]
    lines += folded(
        "Images without the target never enter its Dice. Distances leave out images where nothing is predicted. "
        "Threshold: fitted on validation; ROC: on these images. Larger class: the one with more pixels. Raw: before "
        "temperature. Intervals of the baselines: table.csv."
    )
    return "\n".join(text.rstrip() for text in lines)


def _value(estimate: Mapping | None, metric: Metric, reasons: list[str] | None = None) -> str:
    """An estimate with its interval, or sd between runs; ``reasons`` collects why there is none, and its number is shown."""
    if estimate is None or estimate["mean"] is None:
        return "-"
    value = f"{estimate['mean']:.{metric.digits}f}"
    if "sd" in estimate:
        sd = estimate["sd"]
        return f"{value} [one run]" if sd is None else f"{value} [sd {sd:.{metric.digits}f}]"
    if estimate["low"] is not None:
        return f"{value} [{estimate['low']:.{metric.digits}f}, {estimate['high']:.{metric.digits}f}]"
    reason = estimate["no_interval"].removeprefix(NO_INTERVAL)
    if reason == SAME or reasons is None:
        return value
    if reason not in reasons:
        reasons.append(reason)
    return f"{value} [{reasons.index(reason) + 1}]"


def _mean(estimate: Mapping | None, metric: Metric) -> str:
    return "-" if estimate is None or estimate["mean"] is None else f"{estimate['mean']:.{metric.digits}f}"


def _n(estimate: Mapping | None) -> str:
    return "" if estimate is None or estimate["mean"] is None else str(estimate["n"])


def _scored(counts: Mapping) -> str:
    by_label = ", ".join(f"{number} {label}" for label, number in counts["by_label"].items())
    return f"{counted(counts['images'], 'image')} of {counted(counts['groups'], 'group')}: {by_label}"
