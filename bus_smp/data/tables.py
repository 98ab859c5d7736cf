"""Tables as users have them: CSV of any separator and encoding, as Excel saves it again, and Excel workbooks."""

import contextlib
import csv
import datetime
import io
import re
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from bus_smp.errors import DataError
from bus_smp.system.files import open_regular

WORKBOOKS = (".xlsx", ".xlsm")

# Rows that are not empty, each with its number as a spreadsheet counts. Cells are stripped text.
Rows = list[tuple[int, list[str]]]

_MOST_UNPACKED = 100_000_000  # bytes
_MOST_ROWS, _MOST_COLUMNS = 200_000, 1_000


def read_sheets(path: Path) -> list[Rows]:
    """The sheets of a workbook, or a CSV once per separator: the right one is the one that has the columns.

    Raises:
        DataError: if the file cannot be read, or is no such table.
    """
    if path.suffix.lower() in WORKBOOKS:
        return read_workbook(path)
    try:
        with open_regular(path) as file:
            data = file.read()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    text, _ = decode(data)
    if "\0" in text:
        raise DataError(f"{path}: is not a text table", hint="restore it as it was downloaded")
    try:
        return [_parse(text, separator) for separator in (";", ",", "\t")]
    except csv.Error as error:
        raise DataError(f"{path}: is not a CSV table ({error})", hint="restore it as downloaded") from None


def decode(data: bytes) -> tuple[str, str]:
    """The text of a CSV file and its encoding: UTF-8 or UTF-16, else cp1252, which Excel writes in Western Europe."""
    encoding = "utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    try:
        return data.decode(encoding), encoding
    except UnicodeDecodeError:
        if encoding == "utf-16":
            return data.decode(encoding, errors="replace"), encoding
        return data.decode("cp1252", errors="replace"), "cp1252"


def _parse(text: str, separator: str) -> Rows:
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    rows = [(number, [cell.strip() for cell in row]) for number, row in enumerate(lines, start=1)]
    # A first line "sep=;" tells Excel the separator.
    if rows and re.fullmatch(r"sep=.?", separator.join(rows[0][1]), re.IGNORECASE):
        del rows[0]
    return [(number, row) for number, row in rows if any(row)]


def read_workbook(path: Path) -> list[Rows]:
    """The sheets of an Excel workbook, values as they were last computed.

    Raises:
        DataError: if it is none, or unpacks to more than a table of images needs.
    """
    import openpyxl

    try:
        # openpyxl prints what it cannot use: not among a command's results
        with open_regular(path) as file, contextlib.redirect_stdout(io.StringIO()):
            _refuse_bomb(file)
            # what other files a formula or a link names is not followed
            book = openpyxl.load_workbook(file, read_only=True, data_only=True, keep_links=False)
            try:
                return [
                    [(number, [_text(value) for value in row]) for number, row in _rows(sheet)]
                    for sheet in book.worksheets
                ]
            finally:
                book.close()
    except Exception as error:  # openpyxl lets zip, XML and key errors through
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise DataError(
            f"{path}: cannot be read as an Excel table ({reason})",
            hint="download it again, or save it as CSV under the same name",
        ) from None


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    # Excel keeps a day as its midnight.
    if isinstance(value, datetime.datetime) and value.time() == datetime.time():
        return value.date().isoformat()
    return str(value).strip()


def _refuse_bomb(file: BinaryIO) -> None:
    """Refuse a workbook that would unpack to what no table of images needs; zipfile reads no more than is declared."""
    with zipfile.ZipFile(file) as parts:
        size = sum(part.file_size for part in parts.infolist())
    if size > _MOST_UNPACKED:
        raise ValueError(f"it would unpack to {size / 1e6:.0f} MB")
    file.seek(0)


def _rows(sheet) -> Iterator[tuple[int, Iterable]]:
    """The rows without the empty ones: a single cell far below would bring a million of them."""
    for number, row in enumerate(sheet.iter_rows(values_only=True), start=1):
        if number > _MOST_ROWS or len(row) > _MOST_COLUMNS:
            raise ValueError(f"it has more than {_MOST_ROWS} rows or {_MOST_COLUMNS} columns")
        if row.count(None) < len(row):
            yield number, row
