"""What a comparison found, as people read it: an answer, a table, the tables for a paper."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from bus_smp.statistics.bootstrap import NO_INTERVAL
from bus_smp.statistics.latex import latex_table
from bus_smp.statistics.metrics import BY_KEY
from bus_smp.text import counted, folded


def answer(found: Mapping[str, Any], names: Sequence[str]) -> str:
    """One sentence about the primary metric. "better" only where its interval excludes 0 and p is below .05.

    Args:
        found: the result of ``compare_pairs``.
        names: of A and B.
    """
    one = found["metrics"][found["primary"]]
    words = BY_KEY[found["primary"]].words
    if one["difference"] is None:
        return f"{words}: undefined on these images"
    text = f"in {words}: {_difference(one)}, p {_p(one['p'])}"
    if one["low"] is None or one["p"] is None or one["p"] >= 0.05 or one["low"] <= 0 <= one["high"]:
        return f"no clear difference {text}"
    return f"{names[0] if one['difference'] > 0 else names[1]} is better {text}"


def format_comparison(found: Mapping[str, Any], names: Sequence[str]) -> str:
    """The whole comparison as aligned plain text of at most 80 columns.

    Args:
        found: the result of ``compare_pairs``.
        names: of A and B.
    """
    reasons: list[str] = []
    rows = [["", "A", "B", "A - B", "p"], *comparison_rows(found, reasons)]
    notes = [
        f"{BY_KEY[key].words}: without {counted(one['n_unpaired'], 'image')} where only one run has it."
        for key, one in found["metrics"].items()
        if one["n_unpaired"]
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [line for side, name in zip("AB", names, strict=True) for line in folded(f"{side}: {name}")]
    lines += [""]
    lines += [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    primary = found["metrics"][found["primary"]]
    permutation = found["permutation"]
    how = (
        f"p: two-sided, A and B swapped in whole groups, {'all' if permutation['exact'] else 'random'} "
        f"{permutation['number']:,} ways"
        if permutation
        else f"Interval and p (two-sided) include the chance between the {found['pairs']} pairs of runs"
    )
    lines += [
        "",
        f"[low, high]: {100 * found['bootstrap']['confidence']:g} % interval of the difference, from draws of groups.",
    ]
    lines += [f"[{number}]: no interval: {why}." for number, why in enumerate(reasons, start=1)]
    lines += folded(
        f"{how}; {BY_KEY[found['primary']].words} is the primary metric, the other p are adjusted (Holm)."
    )
    lines += [line for note in notes for line in folded(note)]
    if primary["p_least"] is not None and primary["p_least"] > 0.05:
        lines += folded(
            f"With {counted(primary['groups'], 'group')} no p can be below {primary['p_least']:.3g}: too few to tell."
        )
    return "\n".join(lines)


def comparison_rows(found: Mapping[str, Any], reasons: list[str] | None = None) -> list[list[str]]:
    """A row for each metric: its words, A, B, the difference with its interval, and p (Holm, but for the primary metric).

    Args:
        found: the result of ``compare_pairs``.
        reasons: collects why a difference has no interval; its number is shown.
    """
    rows = []
    for key, one in found["metrics"].items():
        digits = BY_KEY[key].digits
        values = ["-" if one[side] is None else f"{one[side]:.{digits}f}" for side in ("a", "b")]
        p = one["p"] if key == found["primary"] else one["p_holm"]
        rows.append([BY_KEY[key].words, *values, _difference(one, digits, reasons), _p(p)])
    return rows


def comparison_frame(comparisons: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """``table.csv`` of a comparison: a row for each metric of each data set.

    Args:
        comparisons: as in ``comparison.json``: ``target, split`` and the result of ``compare_pairs``.
    """
    keys = ("a", "b", "difference", "low", "high", "p", "p_holm", "n", "n_unpaired", "groups", "no_interval")
    return pd.DataFrame(
        {
            "target": of["target"],
            "split": of["split"],
            "key": key,
            "metric": BY_KEY[key].words,
            "pairs": of["pairs"],
        }
        | {name: one[name] for name in keys}
        for of in comparisons
        for key, one in of["metrics"].items()
    )


def comparison_latex(comparisons: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    """``table.tex`` of a comparison; ``names`` of A and B."""
    rows = [(f"{of['target']}, {of['split']}", row) for of in comparisons for row in comparison_rows(of)]
    title = f"A: {names[0]}; B: {names[1]}; p of the first metric, of the others adjusted (Holm)"
    return latex_table(title, ["", *names, "difference", "p"], rows)


def _difference(one: Mapping[str, Any], digits: int = 3, reasons: list[str] | None = None) -> str:
    """The difference with its interval; ``reasons`` collects why there is none, and its number is shown."""
    if one["difference"] is None:
        return "-"
    value = f"{one['difference']:+.{digits}f}"
    if one["low"] is not None:
        return f"{value} [{one['low']:+.{digits}f}, {one['high']:+.{digits}f}]"
    if reasons is None:
        return value
    reason = one["no_interval"].removeprefix(NO_INTERVAL)
    if reason not in reasons:
        reasons.append(reason)
    return f"{value} [{reasons.index(reason) + 1}]"


def _p(value: float | None) -> str:
    return "-" if value is None else "<.001" if value < 0.001 else f"{value:.3f}"
