"""Progress and notes on standard error: a bar where there is room for one, else a line now and then.

A notebook gives its commands a terminal of 0 columns, in which a bar shows nothing; a pipe and a log file have none.
"""

import contextlib
import os
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")

# Without a bar the first line comes after so many seconds, because most work is done by then.
_FIRST = 3.0


def has_columns() -> bool:
    """Whether standard error is a terminal that has room for a bar."""
    try:
        return sys.stderr.isatty() and os.get_terminal_size(sys.stderr.fileno()).columns > 0
    except (OSError, ValueError, AttributeError):
        return False


def note(text: str) -> None:
    """Print a line on standard error, above the bar if there is one."""
    tqdm.write(text, file=sys.stderr)


def duration(seconds: float) -> str:
    """``7 s``, ``12 min`` or ``3.4 h``."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5970 else f"{seconds / 3600:.1f} h"


class Progress:
    """Shows how far a piece of work is; from ``show_progress``."""

    def __init__(self, total: int, text: str, unit: str, done: int, every: float, wanted: bool) -> None:
        self._total, self._text, self._unit = total, text, unit
        self._done, self._first = done, done
        self._begun = time.monotonic()
        self._every, self._due = every, self._begun + _FIRST if wanted else float("inf")
        self.bar = tqdm(
            total=total,
            initial=done,
            desc=text,
            unit=unit,
            leave=False,
            dynamic_ncols=True,
            smoothing=0.02,
            disable=not (wanted and has_columns()),
        )

    def describe(self, text: str, more: str = "") -> None:
        """Change the words in front of the count and behind it."""
        self._text = text
        if not self.bar.disable:
            self.bar.set_description_str(text, refresh=False)
            self.bar.set_postfix_str(more)

    def update(self, count: int = 1) -> None:
        """So many more are done."""
        self._done += count
        self.bar.update(count)
        now = time.monotonic()
        if self.bar.disable and now >= self._due and self._done < self._total:
            self._due = now + self._every
            units = f" {self._unit}s" if self._unit else ""
            left = (now - self._begun) / (self._done - self._first) * (self._total - self._done)
            note(f"{self._text}: {self._done} of {self._total}{units}, about {duration(left)} left")


@contextlib.contextmanager
def show_progress(
    total: int, text: str, unit: str = "image", *, done: int = 0, every: float = 15, wanted: bool = True
) -> Iterator[Progress]:
    """Show progress on standard error while the block runs, which calls ``update``.

    Args:
        total: how many units there are, with those that are done already.
        text: what is being done, in front of the count.
        unit: its plural ends in s; "" for work whose parts mean nothing to the user.
        done: how many were done before.
        every: seconds between two lines, where there is no bar.
        wanted: False shows nothing.
    """
    progress = Progress(total, text, unit, done, every, wanted)
    with contextlib.closing(progress.bar):
        yield progress


def with_progress(items: Iterable[Item], total: int, text: str, unit: str = "") -> Iterator[Item]:
    """The items, with the progress of whoever takes them."""
    with show_progress(total, text, unit) as progress:
        for item in items:
            yield item
            progress.update()
