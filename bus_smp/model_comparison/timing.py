"""The clock: works are warmed up, timed in turn and repeated; a GPU is waited for."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

Work = Callable[[], object]

# Seconds that one reading lasts at least. Clock and scheduler are coarse, so a shorter work is called several times.
SHORTEST = 0.05

# Side of the square matrices: larger ones are no faster, and one product still takes well below a second.
MATRIX_SIDES = {"cpu": 2048, "cuda": 8192}


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
        """``amount`` per reading: of seconds, amount per second. The slowest reading gives the lowest rate."""
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
    shortest: float = SHORTEST,
) -> dict[str, list[float]]:
    """Time all works ``repeats`` times in the order A B C A B C, so that a drift of the machine affects all of them.

    Each work is called once untimed before each reading, so that it finds its own data in the caches. (A training
    step that was timed right after another work took 1.3 times as long.)

    Args:
        works: what to call, by name.
        device: a CUDA device is waited for before the clock is read.
        shortest: seconds; a shorter work is called several times for one reading.

    Returns:
        Seconds for one call: ``repeats`` readings for each work.
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
        # The first call also tunes and allocates, so a short work is read once more to count its calls.
        took = read(work, 1)
        if took < 20 * shortest:
            took = read(work, 1)
        calls[name] = max(1, round(shortest / max(took, 1e-7)))
    readings: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            work()
            readings[name].append(read(work, calls[name]))
    return readings


def wait_for(device: torch.device | None) -> None:
    """Return when a CUDA device has finished its work; at once on a CPU."""
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)


def matrix_product(dtype: torch.dtype, device: torch.device) -> tuple[Work, float]:
    """A product of two square matrices, and its FLOP (2 x side^3): the fastest that the machine computes."""
    side = MATRIX_SIDES[device.type]
    one, other = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(one)
    return lambda: torch.mm(one, other, out=out), 2.0 * side**3
