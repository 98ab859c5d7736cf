"""The text of a manifest: CSV that is read strictly, and written the same for the same table."""

import csv
import io
from collections import Counter
from pathlib import Path

import pandas as pd

from bus_smp.errors import ManifestError
from bus_smp.system.files import open_regular
from bus_smp.text import harmless_table, restored, restored_table


def read_cells(path: Path) -> tuple[pd.DataFrame, list[int], list[str]]:
    """The cells of a CSV file as text (dtype object), the line of each row, and what is wrong with other lines.

    Cells that ``harmless_table`` changed are as they were before. The rows are read by ``csv``, because pandas
    takes a surplus column for an index and fills short rows up.

    Raises:
        ManifestError: if the file cannot be read, is not CSV in UTF-8, or names a column twice.
    """
    again = "make it with bus-smp make-manifest"
    try:
        with open_regular(path) as file:
            data = file.read()
    except FileNotFoundError:
        raise ManifestError(f"{path}: no such manifest", hint=again) from None
    except (OSError, ValueError) as error:
        # A ValueError means that no file can have this name.
        reason = error.strerror if isinstance(error, OSError) else error
        raise ManifestError(f"{path}: cannot be read ({reason})", hint=again) from None
    text = _decode(path, data, again)

    lines = csv.reader(
        io.StringIO(text, newline=""), delimiter=_delimiter(text.partition("\n")[0]), strict=True
    )
    rows, numbers, problems = [], [], []
    try:
        header = [restored(name.strip()) for name in next(lines, [])]
        for cells in lines:
            # Spreadsheets leave empty rows behind.
            if not any(cells):
                continue
            if len(cells) == len(header):
                rows.append(cells)
                numbers.append(lines.line_num)
            else:
                problems.append(f"line {lines.line_num} has {len(cells)} cells, the header {len(header)}")
    except csv.Error as error:
        raise ManifestError(f"{path}: line {lines.line_num} is not CSV ({error})", hint=again) from None
    if not any(header):
        raise ManifestError(f"{path}: is empty", hint=again)
    twice = sorted(name for name, count in Counter(header).items() if count > 1)
    if twice:
        named = ", ".join(map(repr, twice))[:500]
        raise ManifestError(f"{path}: two columns are named {named}", hint="rename one")
    table = pd.DataFrame(rows, columns=header, dtype=object)
    return restored_table(table).set_axis(header, axis=1).astype(object), numbers, problems


def _decode(path: Path, data: bytes, again: str) -> str:
    save = "save it as CSV in UTF-8"
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ManifestError(f"{path}: is UTF-16, not UTF-8", hint=save)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ManifestError(f"{path}: line {line} is not UTF-8 (byte {error.start})", hint=save) from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise ManifestError(f"{path}: line {line} holds a NUL byte; the file is damaged", hint=again)
    return text


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
