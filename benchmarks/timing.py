"""What the scripts here share: the clock of ``bus-smp compare-models``, tables, peak memory, fresh processes."""

import argparse
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd

from bus_smp.model_comparison.timing import (
    Spread,
    Work,
    matrix_product,
    quotient,
    spread,
    time_in_turn,
    wait_for,
)

__all__ = [
    "Spread", "Work", "arguments", "matrix_product", "median_and_range", "peak_mb", "quotient", "repeated", "row",
    "show", "spread", "time_in_turn", "timed", "wait_for",
]  # fmt: skip


def arguments(doc: str | None) -> argparse.ArgumentParser:
    """A parser that prints the script's docstring as its help."""
    return argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)


def row(
    what: str, value: Spread, unit: str, ratio: Spread | None = None, ratio_to: str = "", target: str = ""
) -> dict[str, Any]:
    """One line of a table: a number with its range, and how it compares with a limit that was timed in turn."""
    cells = {"": what, "median": _short(value.median), "low..high": _range(value), "unit": unit}
    cells |= {"ratio": "", "ratio low..high": "", "ratio to": ratio_to, "target": target}
    return cells | ({"ratio": _short(ratio.median), "ratio low..high": _range(ratio)} if ratio else {})


def show(title: str, rows: Sequence[dict[str, Any]]) -> None:
    """Print a table of rows."""
    print(f"{title}\n{pd.DataFrame(rows).to_string(index=False)}\n", flush=True)


def _range(value: Spread) -> str:
    return f"{_short(value.low)}..{_short(value.high)}"


def _short(number: float) -> str:
    return f"{number:,.0f}" if abs(number) >= 99.95 else f"{number:.3g}"


def peak_mb() -> float:
    """Largest resident size of this process so far, interpreter and libraries included, in MB (10^6 bytes)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def timed(name: str, work: Callable[..., Any], *values: object, **options: object) -> Any:
    """Call ``work``; print its seconds, those of all cores, and the peak memory since the process began."""
    start, cpu = time.perf_counter(), time.process_time()
    result = work(*values, **options)
    spent, cpu = time.perf_counter() - start, time.process_time() - cpu
    print(f"  {name:<28}{spent:7.1f} s ({cpu:5.1f} s of CPU)   peak {peak_mb():6.0f} MB", flush=True)
    return result


def repeated(times: int, work: Callable[..., Any], *values: object) -> list[Any]:
    """The results of ``work(*values)``, called ``times`` times, each in a new interpreter with a peak of its own."""
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        return [pool.apply(work, values) for _ in range(times)]


def median_and_range(readings: Sequence[float], digits: int = 1) -> str:
    """The median; if there are several readings, also the smallest and largest."""
    text = f"{statistics.median(readings):.{digits}f}"
    return text if len(readings) == 1 else f"{text} ({min(readings):.{digits}f}..{max(readings):.{digits}f})"
