"""Summaries as the table people read: the model next to the trivial baselines."""

from collections.abc import Mapping

from bus_smp.statistics.bootstrap import NO_INTERVAL, SAME
from bus_smp.statistics.metrics import BY_KEY, METRICS


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


def digits_of(name: str) -> int:
    """Decimals of an estimate when printed; 3 for one that the table of metrics does not have (any more)."""
    return BY_KEY[name].digits if name in BY_KEY else 3


def table_rows(summaries: Mapping[str, Mapping]) -> list[tuple[str, str, list[str]]]:
    """The table people read, as (heading, row name, one cell per summary in their order).

    Optional rows (thresholds, millimetres) are left out where none of the summaries has them.
    """
    rows = []
    for metric in METRICS:
        found = [summary[metric.part].get(metric.key) for summary in summaries.values()]
        known = any(estimate is not None and estimate["mean"] is not None for estimate in found)
        if metric.printed and (known or not metric.optional):
            cells = [
                "-" if estimate is None else format_estimate(estimate, metric.digits) for estimate in found
            ]
            rows.append((metric.question, metric.words, cells))
    return rows


def format_table(summaries: Mapping[str, Mapping]) -> str:
    """Summaries side by side as aligned plain text, e.g. a model next to the trivial baselines.

    Args:
        summaries: name to result of ``summarise``; the first is the model.

    Returns:
        Lines with LF between them: what was scored, the rows under their headings, how to read
        them. Print ``warnings_of`` with it.
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
