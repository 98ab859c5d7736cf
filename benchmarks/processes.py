"""Readings from processes of their own: none finds what another left in memory, and each has its own peak."""

import multiprocessing
import resource
import statistics
from collections.abc import Callable, Sequence


def peak_mb() -> float:
    """Largest resident size of this process so far, interpreter and libraries included, in MB (10^6 bytes)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def repeated(times: int, work: Callable, *arguments: object) -> list:
    """What ``work(*arguments)`` returns, ``times`` times, each in a new interpreter."""
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        return [pool.apply(work, arguments) for _ in range(times)]


def told(readings: Sequence[float], digits: int = 1) -> str:
    """The median, and beside it the smallest and largest reading if there are several."""
    text = f"{statistics.median(readings):.{digits}f}"
    return text if len(readings) == 1 else f"{text} ({min(readings):.{digits}f}..{max(readings):.{digits}f})"
