"""The rows of a benchmark, and the files they are written to."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from bus_smp.benchmark.timing import Spread
from bus_smp.system.files import replacing, write_text
from bus_smp.text import harmless_table


@dataclass(frozen=True)
class Row:
    """One number: what it is of, its unit, and how far it is from the limit.

    Attributes:
        part: of ``PARTS``.
        name: what was measured.
        value: median, smallest and largest reading, in ``unit``; None where it could not be measured.
        ratio: how many times as long as ``ratio_of`` it takes, both timed in turn; 1 is the limit itself.
        target: what the ratio should be at most; with ``target_of="value"`` the value.
        note: how it was measured, or why not.
    """

    part: str
    name: str
    unit: str
    value: Spread | None = None
    ratio: Spread | None = None
    ratio_of: str = ""
    target: float | None = None
    target_of: str = "ratio"
    note: str = ""

    def met(self) -> bool | None:
        """Is the target reached? None where there is none, or nothing was measured."""
        found = self.value if self.target_of == "value" else self.ratio
        return None if self.target is None or found is None else found.median <= self.target

    def flat(self) -> dict[str, Any]:
        """The row as one line of a CSV; None where there is no number."""
        cells: dict[str, Any] = {"part": self.part, "name": self.name}
        for prefix, found in (("", self.value), ("ratio_", self.ratio)):
            numbers = asdict(found) if found else dict.fromkeys(("median", "low", "high", "readings"))
            cells |= {f"{prefix}{key}": numbers[key] for key in ("median", "low", "high")}
            cells |= {"unit": self.unit, "readings": numbers["readings"]} if not prefix else {}
        target = (
            {"target": self.target, "target_of": self.target_of}
            if self.target
            else dict.fromkeys(("target", "target_of"))
        )
        return {**cells, "ratio_of": self.ratio_of, **target, "met": self.met(), "note": self.note}


def write_table(rows: Sequence[Row], about: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Write benchmark.json, .csv and .md into ``folder``; return what the JSON holds.

    Args:
        about: hardware, versions and options, as JSON values.

    Raises:
        BusSmpError: if the disk is full or the folder cannot be written to.
    """
    document = {**about, "rows": [row.flat() for row in rows]}
    table = pd.DataFrame(document["rows"])
    with replacing(folder / "benchmark.csv") as temporary:
        harmless_table(table).to_csv(temporary, index=False, lineterminator="\n", float_format="%.6g")
    write_text(folder / "benchmark.json", json.dumps(document, indent=2, allow_nan=False) + "\n")
    write_text(folder / "benchmark.md", markdown(rows, about))
    return document


def markdown(rows: Iterable[Row], about: dict[str, Any]) -> str:
    """The table for a page or a terminal, below one paragraph on the machine."""
    machine = about["environment"]
    versions = {**machine["packages"], **about["packages"]}
    told = ", ".join(f"{name} {version}" for name, version in versions.items())
    lines = [
        f"{machine['device']}, {machine['cores']} cores, {machine['threads']} threads, {machine['system']}, "
        f"Python {machine['python']}. {told}.",
        f"Images: {about['images']}. Options: {about['options']}.",
        "",
        *aligned(
            ["part", "what", "median", "min..max", "unit", "ratio", "min..max", "to", "target"],
            [_cells(row) for row in rows],
        ),
        "",
    ]
    return "\n".join([*lines, *_notes(rows), ""])


def _notes(rows: Iterable[Row]) -> list[str]:
    """Every note once, with the rows it belongs to where they are not the whole part."""
    rows, lines = list(rows), []
    for part, note in dict.fromkeys((row.part, row.note) for row in rows if row.note):
        of = [row.name for row in rows if (row.part, row.note) == (part, note)]
        whole = len(of) == sum(row.part == part for row in rows)
        lines.append(f"- {part}: {note}" if whole else f"- {part}, {'; '.join(of)}: {note}")
    return lines


def _cells(row: Row) -> list[str]:
    met = {True: ": met", False: ": missed", None: ""}[row.met()]
    target = "" if row.target is None else f"{row.target_of} <= {row.target:g}{met}"
    value = [short(row.value.median), _range(row.value)] if row.value else ["-", ""]
    ratio = [short(row.ratio.median), _range(row.ratio)] if row.ratio else ["", ""]
    return [row.part, row.name, *value, row.unit, *ratio, row.ratio_of, target]


def _range(found: Spread) -> str:
    return f"{short(found.low)}..{short(found.high)}" if found.readings > 1 else ""


def short(value: float) -> str:
    """Three significant digits, without an exponent."""
    return f"{value:,.0f}" if abs(value) >= 99.95 else f"{value:.3g}"


def aligned(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table whose columns stand below each other also as plain text."""
    table = [head, *rows]
    widths = [max(3, *(len(line[column]) for line in table)) for column in range(len(head))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
        for line in table
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return [lines[0], rule, *lines[1:]]
