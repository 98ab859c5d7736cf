"""How many augmented images one core makes ready in a second, beside how many it could merely copy."""

import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager

import cv2
import torch

from bus_smp.benchmark.limits import core_copy
from bus_smp.benchmark.plan import Plan
from bus_smp.benchmark.table import Row
from bus_smp.benchmark.timing import Work, quotient, spread, time_in_turn
from bus_smp.data.loading import TrainingDataset, make_loader
from bus_smp.data.sampler import EpochSampler

# Images of one reading at least: an epoch of a small data set is over before the clock has ticked.
IMAGES = 400


def measure(plan: Plan) -> Iterator[Row]:
    """Yield images a second of the training loader: in the training's own process, and in one worker."""
    size = plan.settings.data.size
    copy, copied = core_copy()
    with _one_thread():
        works: dict[str, Work] = {"copy": copy}
        counts = {}
        for workers in (0, 1):
            name = f"loader, {workers} worker{'' if workers else 's'}"
            works[name], counts[name] = _reading(plan, workers)
        readings = time_in_turn(works, plan.repeats)
    bytes_each = 4 * size * size  # three channels and a mask
    copies = [seconds / copied * bytes_each for seconds in readings["copy"]]
    for name, count in counts.items():
        each = [seconds / count for seconds in readings[name]]
        yield Row(
            "loader",
            name,
            "images/s",
            spread(each).rate(1),
            ratio=quotient(each, copies),
            ratio_of="copying its bytes",
            note=f"{size} px, augmented, in batches of {plan.settings.train.batch_size}, on one core",
        )


def _reading(plan: Plan, workers: int) -> tuple[Work, int]:
    """Work that draws whole epochs, each another one, and the number of images it draws."""
    cache, labels = plan.images()
    sampler = EpochSampler(labels, plan.settings.train.seed, plan.settings.train.balanced_sampling)
    dataset = TrainingDataset(cache, plan.settings.augment, plan.settings.train.seed)
    batch = plan.settings.train.batch_size
    loader = make_loader(dataset, sampler, batch, workers, plan.engine.device)
    drawn = len(labels) if len(labels) < batch else len(labels) // batch * batch
    epochs = math.ceil(IMAGES / drawn)
    numbers = itertools.count()

    def read() -> None:
        for number in itertools.islice(numbers, epochs):
            sampler.set_epoch(number)
            for _ in loader:
                pass

    return read, epochs * drawn


@contextmanager
def _one_thread() -> Iterator[None]:
    """One core for OpenCV and torch, so that images a second are those of a core."""
    pools = cv2.getNumThreads(), torch.get_num_threads()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(pools[0])
        torch.set_num_threads(pools[1])
