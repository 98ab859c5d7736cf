"""The clock: warmed up, repeated, taken in turn, and waiting for the device."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

Work = Callable[[], object]

# Seconds that one reading lasts at least: shorter works are called several times, for the clock and the
# scheduler are coarse.
SHORTEST = 0.05


@dataclass(frozen=True)
class Spread:
    """Median, smallest and largest of the readings."""

    median: float
    low: float
    high: float
    readings: int

    def scaled(self, factor: float) -> "Spread":
        """Every reading times ``factor`` > 0, e.g. seconds to milliseconds."""
        return Spread(self.median * factor, self.low * factor, self.high * factor, self.readings)

    def rate(self, amount: float) -> "Spread":
        """``amount`` per reading: of seconds, amount per second. The slowest reading is the lowest rate."""
        return Spread(amount / self.median, amount / self.high, amount / self.low, self.readings)


def spread(readings: Sequence[float]) -> Spread:
    """Summarise at least one reading."""
    return Spread(statistics.median(readings), min(readings), max(readings), len(readings))


def quotient(readings: Sequence[float], others: Sequence[float]) -> Spread:
    """Spread of reading / other, each pair from the same turn: what slows the machine down slows both."""
    return spread([one / other for one, other in zip(readings, others, strict=True)])


def time_in_turn(
    works: Mapping[str, Work],
    repeats: int,
    device: torch.device | None = None,
    *,
    warm_up: int = 1,
    shortest: float = SHORTEST,
    settle: bool = True,
) -> dict[str, list[float]]:
    """Time all works ``repeats`` times in the order A B C A B C, so that a drift of the machine meets all of them.

    Before each reading the work is called once untimed: what it finds in caches, and the memory that it gets, then
    are its own, as when it runs all day. (A training step right after another work took 1.3 times as long.)

    Args:
        works: what to call, by name.
        device: a CUDA device is waited for before the clock is read.
        warm_up: calls of each before the first reading: caches, tuning, lazy allocation.
        shortest: seconds; a shorter work is called several times for one reading.
        settle: False leaves the untimed calls out, for works that share nothing: processes of their own.

    Returns:
        seconds for one call: ``repeats`` readings for each work.
    """

    def read(work: Work, calls: int) -> float:
        wait_for(device)
        start = time.perf_counter()
        for _ in range(calls):
            work()
        wait_for(device)
        return (time.perf_counter() - start) / calls

    calls = {}
    for name, work in works.items():
        took = min(read(work, 1) for _ in range(warm_up))
        if took < 20 * shortest:  # else it is long, however much slower the first call is than the next
            took = read(work, 1)
        calls[name] = max(1, round(shortest / max(took, 1e-7)))
    readings: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            if settle:
                work()
            readings[name].append(read(work, calls[name]))
    return readings


def wait_for(device: torch.device | None) -> None:
    """Return when a CUDA device has done all that it was given; at once on a CPU."""
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
