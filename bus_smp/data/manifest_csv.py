"""The text of a manifest: CSV that is read strictly, also as a spreadsheet saved it, and written the same for the same table."""

import csv
import io
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from bus_smp.data.tables import WORKBOOKS, decode, read_workbook
from bus_smp.errors import DataError, ManifestError
from bus_smp.system.files import open_regular
from bus_smp.text import harmless_table, restored, restored_table

# True and false as Excel saves them in English, German, French, Spanish, Italian and Portuguese.
TRUTH = {
    **dict.fromkeys(("true", "wahr", "vrai", "verdadero", "vero", "verdadeiro"), "true"),
    **dict.fromkeys(("false", "falsch", "faux", "falso"), "false"),
}


def read_cells(path: Path) -> tuple[pd.DataFrame, list[int], list[str]]:
    """The cells of a CSV or Excel file as text (dtype object), the line of each row, and what is wrong with other lines.

    Cells that ``harmless_table`` changed are as they were before. What a spreadsheet changes when it saves a manifest
    again is undone: its encoding, its words for true and false, decimal commas, empty columns at the end.

    Raises:
        ManifestError: if the file cannot be read, is no table, or names a column twice.
    """
    again = "make it with bus-smp make-manifest"
    if path.suffix.lower() in WORKBOOKS and path.is_file():
        try:
            sheets = read_workbook(path)
        except DataError as error:
            raise ManifestError(error.what, hint=again) from None
        lines, lossy = next((rows for rows in sheets if rows), []), False
        # A workbook leaves out empty cells at the end of a row.
        longest = max((len(cells) for _, cells in lines), default=0)
        lines = [(number, cells + [""] * (longest - len(cells))) for number, cells in lines]
    else:
        lines, lossy = _read_lines(path, again)
    names = [restored(name.strip()) for name in lines[0][1]] if lines else []
    width = max((number for number, name in enumerate(names, start=1) if name), default=0)
    if not width:
        raise ManifestError(f"{path}: is empty", hint=again)
    header, rows, numbers, problems = names[:width], [], [], []
    for number, cells in lines[1:]:
        if len(cells) == len(names) and not any(cells[width:]):
            rows.append(cells[:width])
            numbers.append(number)
        else:
            problems.append(f"line {number} has {len(cells)} cells, the header {width}")
    twice = sorted(name for name, count in Counter(header).items() if count > 1)
    if twice:
        named = ", ".join(map(repr, twice))[:500]
        raise ManifestError(f"{path}: two columns are named {named}", hint="rename one")
    table = pd.DataFrame(rows, columns=header, dtype=object)
    table = restored_table(table).set_axis(header, axis=1).astype(object)
    if lossy:
        problems += _find_lost_letters(table, numbers)
    return _without_spreadsheet(table), numbers, problems


def _read_lines(path: Path, again: str) -> tuple[list[tuple[int, list[str]]], bool]:
    """The lines that are not empty, each with its number, and whether the encoding lacks most letters.

    Raises:
        ManifestError: if the file cannot be read or is not CSV.
    """
    try:
        with open_regular(path) as file:
            data = file.read()
    except FileNotFoundError:
        raise ManifestError(f"{path}: no such manifest", hint=again) from None
    except (OSError, ValueError) as error:
        # A ValueError means that no file can have this name.
        reason = error.strerror if isinstance(error, OSError) else error
        raise ManifestError(f"{path}: cannot be read ({reason})", hint=again) from None
    text, encoding = decode(data)
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise ManifestError(f"{path}: line {line} holds a NUL byte; the file is damaged", hint=again)
    # The rows are read by csv, because pandas takes a surplus column for an index and fills short rows up.
    delimiter = _delimiter(text.partition("\n")[0])
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        # Spreadsheets leave empty rows behind.
        return [(lines.line_num, cells) for cells in lines if any(cells)], encoding == "cp1252"
    except csv.Error as error:
        raise ManifestError(f"{path}: line {lines.line_num} is not CSV ({error})", hint=again) from None


def _find_lost_letters(table: pd.DataFrame, numbers: list[int]) -> list[str]:
    """Rows in which Excel wrote ? for letters that cp1252 lacks: no file has such a name."""
    names = table[[column for column in ("image", "masks", "image_id") if column in table.columns]]
    lost = [numbers[i] for i in np.flatnonzero(names.map(lambda cell: "?" in cell).any(axis=1))]
    if not lost:
        return []
    rows = f"{len(lost)} rows, first row {lost[0]}" if len(lost) > 1 else f"row {lost[0]}"
    return [f"{rows}: a name has ? for letters that the file's encoding lacks; save it as 'CSV UTF-8'"]


def _without_spreadsheet(table: pd.DataFrame) -> pd.DataFrame:
    """The cells as ``make-manifest`` wrote them, before a spreadsheet used its own words and numbers."""

    def change(column: str, by: Callable[[str], str]) -> None:
        if column in table.columns:
            table[column] = table[column].map(by)

    change("patient_known", lambda cell: TRUTH.get(cell.strip().casefold(), cell))
    change("pixel_mm", lambda cell: re.sub(r"^(\d*),(\d+)$", r"\1.\2", cell))
    for column in ("width", "height", "fold"):
        change(column, lambda cell: re.sub(r"^(\d+)[.,]0+$", r"\1", cell))
    return table


def _delimiter(first: str) -> str:
    return max(",;\t", key=first.count)


def header_names(first: str) -> list[str]:
    """The names of the columns, from a file's first line; none where it is not CSV."""
    try:
        cells = next(csv.reader([first], delimiter=_delimiter(first)), [])
    except csv.Error:
        return []
    return [restored(name.strip()) for name in cells]


def to_csv(text: pd.DataFrame) -> bytes:
    """The CSV of a table of text: UTF-8, LF, no cell that a spreadsheet would run."""
    return harmless_table(text).to_csv(index=False, lineterminator="\n").encode("utf-8")
