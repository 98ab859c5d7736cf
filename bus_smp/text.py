"""Text that comes from files and goes to terminals and spreadsheets, which would act on some of it."""

from __future__ import annotations

import difflib
import re
import textwrap
from collections.abc import Iterable, Sequence
from operator import itemgetter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

# What the page, figures and files say that may be read without their context.
NOT_CLINICAL = "Research software, not for clinical use"

# Characters of a line on the narrowest terminal that people use.
WIDTH = 80

# Control characters, those that reverse the direction of writing, and the bytes of a name that is not UTF-8.
_UNSHOWABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")

# What spreadsheets take for a formula (OWASP, CSV injection): at the start of a cell, and behind the semicolon
# that separates cells where the comma is the decimal sign. Apostrophes before it count, so that nothing is lost.
_STARTS = "=+\\-@\t\r\uff1d\uff0b\uff0d\uff20"
_FORMULA = re.compile(f"(^|;)('*[{_STARTS}])")
_HARMLESS = re.compile(f"(^|;)'('*[{_STARTS}])")
_NUMBER = re.compile(r"[+-]?\d*[.,]?\d+(?:[eE][+-]?\d+)?", re.ASCII)
_SUSPECT = frozenset(_STARTS) | {"'"}


def printable(text: str) -> str:
    r"""``text`` with everything that a terminal would act on, or could not show, as an escape such as ``\x1b``."""
    return _UNSHOWABLE.sub(lambda match: match.group().encode("unicode_escape").decode("ascii"), text)


def folded(text: str) -> list[str]:
    """``text`` as lines of at most ``WIDTH`` characters, all but the first indented by two more; an overlong name is broken."""
    start = " " * (len(text) - len(text.lstrip()))
    return textwrap.wrap(text, WIDTH, subsequent_indent=start + "  ", break_on_hyphens=False)


def counted(number: int, noun: str) -> str:
    """``1 image``, ``2 images``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def shortened(names: Sequence[str], most: int = 3) -> str:
    """The first names, ``a, b, c, ...``."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def did_you_mean(word: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """``did you mean busi?``, with the known word that is most like ``word`` in any case; "" if none is."""
    by_lower = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower(), by_lower, 1, cutoff)
    return f"did you mean {by_lower[close[0]]}?" if close else ""


def harmless(text: str) -> str:
    """``text`` as a cell that no spreadsheet runs: an apostrophe before what begins like a formula.

    A plain number such as -3 is left as it is. ``restored`` gives ``text`` back.
    """
    return text if _NUMBER.fullmatch(text) else _FORMULA.sub(r"\1'\2", text)


def restored(text: str) -> str:
    """The text that ``harmless`` was given; a text that is none of its results is returned as it is, or without an apostrophe."""
    return _HARMLESS.sub(r"\1\2", text)


def harmless_table(table: pd.DataFrame) -> pd.DataFrame:
    """The table with the names of its columns and all texts ``harmless``: what every CSV is written from."""
    return _mapped(table, harmless)


def restored_table(table: pd.DataFrame) -> pd.DataFrame:
    """The table that ``harmless_table`` was given, from its CSV."""
    return _mapped(table, restored)


def _mapped(table: pd.DataFrame, change) -> pd.DataFrame:
    changed = {
        column: [
            change(cell) if isinstance(cell, str) else cell for cell in table[column].to_numpy(dtype=object)
        ]
        for column in table.columns
        if _is_suspect(table[column])
    }
    return table.assign(**changed).rename(columns=change)


def _is_suspect(cells: pd.Series) -> bool:
    """Can ``harmless`` or ``restored`` change any? Mostly not, and a million cells are asked quickly."""
    if cells.dtype.kind in "biufM":
        return False
    texts = cells.to_numpy(dtype=object)
    if not set(map(type, texts)) <= {str}:
        texts = [cell for cell in texts if isinstance(cell, str)]
    return not _SUSPECT.isdisjoint(set(map(itemgetter(slice(1)), texts))) or ";" in "".join(texts)
