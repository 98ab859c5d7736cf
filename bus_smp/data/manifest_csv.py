"""The text of a manifest: CSV read strictly, and written the same for the same table; in parts, as tables get long.

csv rather than pandas: pandas takes a surplus column for an index and fills short rows up.
"""

import csv
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from bus_smp.errors import ManifestError
from bus_smp.system.files import open_regular
from bus_smp.text import harmless_table, restored, restored_table

_ROWS_AT_ONCE = 10_000  # read and written together


def read_cells(path: Path) -> tuple[pd.DataFrame, np.ndarray, list[str]]:
    """The cells of a CSV file (text; objects), the line of each row, and what is wrong with lines that are no rows.

    Cells that ``harmless_table`` had changed are as they were before.

    Raises:
        ManifestError: if the file cannot be read, is no CSV in UTF-8, or names a column twice.
    """
    again = "make it with bus-smp make-manifest"
    try:
        with open_regular(path) as file:
            data = file.read()
    except FileNotFoundError:
        raise ManifestError(f"{path}: no such manifest", hint=again) from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error  # ValueError: no possible name
        raise ManifestError(f"{path}: cannot be read ({reason})", hint=again) from None
    save = "save it as CSV in UTF-8"
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ManifestError(f"{path}: is UTF-16, not UTF-8", hint=save)
    try:
        data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ManifestError(f"{path}: line {line} is not UTF-8 (byte {error.start})", hint=save) from None
    if b"\0" in data:
        line = data.count(b"\n", 0, data.index(b"\0")) + 1
        raise ManifestError(f"{path}: line {line} holds a NUL byte; the file is damaged", hint=again)

    first = data[: data.find(b"\n") % (len(data) + 1)].decode("utf-8-sig")
    content = io.TextIOWrapper(io.BytesIO(data), encoding="utf-8-sig", newline="")  # never the whole as text
    lines = csv.reader(content, delimiter=_delimiter(first), strict=True)
    rows, numbers, problems = [], [], []
    try:
        header = [name.strip() for name in next(lines, [])]
        columns = [_Cells() for _ in header]
        for cells in lines:
            if not any(cells):  # spreadsheets leave such rows behind
                continue
            if len(cells) == len(header):
                rows.append(cells)
                numbers.append(lines.line_num)
                if len(rows) == _ROWS_AT_ONCE:
                    _move(rows, columns)
            else:
                problems.append(f"line {lines.line_num} has {len(cells)} cells, the header {len(header)}")
    except csv.Error as error:
        raise ManifestError(f"{path}: line {lines.line_num} is not CSV ({error})", hint=again) from None
    _move(rows, columns)
    if not any(header):
        raise ManifestError(f"{path}: is empty", hint=again)
    names = list(map(restored, header))
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        named = ", ".join(map(repr, sorted(twice)))[:500]
        raise ManifestError(f"{path}: two columns are named {named}", hint="rename one")
    text = pd.DataFrame(
        {name: pd.Series(column.cells, dtype=object) for name, column in zip(header, columns, strict=True)}
    )
    return restored_table(text).astype(object), np.array(numbers, dtype=int), problems


def _delimiter(first: str) -> str:
    return max(",;\t", key=first.count)


def header_names(first: str) -> list[str]:
    """The names of the columns, from a file's first line; none where it is no CSV."""
    try:
        cells = next(csv.reader([first], delimiter=_delimiter(first)), [])
    except csv.Error:
        return []
    return [restored(name.strip()) for name in cells]


class _Cells:
    """A column being read. A text that stands in many cells is kept once, which saves half of a long table's memory."""

    def __init__(self):
        self.cells: list[str] = []
        self._known: dict[str, str] | None = {}

    def add(self, cells: Sequence[str]) -> None:
        if self._known is not None and len(self._known) > len(self.cells) / 2:
            self._known = None  # nearly every cell is another, as hashes are
        self.cells += cells if self._known is None else map(self._known.setdefault, cells, cells)


def _move(rows: list[list[str]], columns: Sequence[_Cells]) -> None:
    """Add the rows to the columns and empty them: as rows they take three times the memory."""
    for column, cells in zip(columns, zip(*rows, strict=True), strict=bool(rows)):
        column.add(cells)
    rows.clear()


def csv_parts(text: pd.DataFrame) -> Iterator[bytes]:
    """A table's one text as CSV: UTF-8, LF, no cell that a spreadsheet would run; in parts."""
    table = harmless_table(text)
    columns = [table[column].to_numpy() for column in table.columns]
    for start in range(-1, len(table), _ROWS_AT_ONCE):
        part = io.StringIO()
        rows = csv.writer(part, lineterminator="\n")
        if start < 0:
            rows.writerow(table.columns)
        rows.writerows(zip(*(c[max(0, start) : start + _ROWS_AT_ONCE] for c in columns), strict=True))
        yield part.getvalue().encode("utf-8")
