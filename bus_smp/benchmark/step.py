"""A training step beside its own convolutions, the machine's limit, and the wait for data."""

import time
from collections.abc import Iterator

import torch
from torch.utils.flop_counter import FlopCounterMode

from bus_smp.benchmark.convolutions import record_convolutions, repeat_convolutions
from bus_smp.benchmark.limits import matrix_product
from bus_smp.benchmark.plan import Plan, as_in_training
from bus_smp.benchmark.table import Row
from bus_smp.benchmark.timing import Work, quotient, spread, time_in_turn, wait_for
from bus_smp.data.loading import TrainingDataset, make_loader
from bus_smp.data.sampler import EpochSampler
from bus_smp.system.engine import Engine
from bus_smp.training.loop import count_workers
from bus_smp.training.step import TrainingStep

MOST_OVERHEAD = 1.15  # of the step's time over that of its convolutions
MOST_WAITING = 3.0  # per cent
STEPS = 4  # of an epoch, in which the wait for data is measured


def measure(plan: Plan) -> Iterator[Row]:
    """Yield seconds of a step in fp32 and mixed precision, of its convolutions alone, and the share of waiting."""
    with as_in_training(plan.settings):
        yield from _steps(plan)
        yield _waiting(plan)


def make_step(plan: Plan, dtype: torch.dtype, *, eager: bool = False) -> tuple[Work, TrainingStep]:
    """A step on one batch of random images, and the object behind it; ``eager``: not compiled, so that it can be watched."""
    settings = plan.settings
    if eager:
        train = settings.train.model_copy(update={"compile": False})
        settings = settings.model_copy(update={"train": train})
    torch.manual_seed(settings.train.seed)
    step = TrainingStep(settings, Engine(plan.engine.device, dtype))
    step.model.train()
    size, batch = settings.data.size, settings.train.batch_size
    images = torch.randint(0, 256, (batch, size, size, 3), dtype=torch.uint8)
    masks = torch.randint(0, 3, (batch, size, size), dtype=torch.uint8)
    return lambda: step(images, masks), step


def _steps(plan: Plan) -> Iterator[Row]:
    device, train = plan.engine.device, plan.settings.train
    works: dict[tuple[str, str], Work] = {}
    gflop, flop_of_product, count = {}, {}, {}
    for name, dtype in plan.precisions().items():
        works["step", name], _ = make_step(plan, dtype)
        calls = record_convolutions(make_step(plan, dtype, eager=True)[0])
        works["convolutions", name] = repeat_convolutions(calls)
        with FlopCounterMode(display=False) as counter:
            works["convolutions", name]()
        gflop[name], count[name] = counter.get_total_flops() / 1e9, len(calls)
        works["product", name], flop_of_product[name] = matrix_product(dtype, device)
    readings = time_in_turn(works, plan.repeats, device)
    settings = f"batch {train.batch_size}, {plan.settings.data.size} px, {plan.settings.model.encoder_name}"
    for name in plan.precisions():
        step, convolutions = readings["step", name], readings["convolutions", name]
        # the time that the machine would need for the convolutions' FLOP as a product of matrices
        limit = [seconds / flop_of_product[name] * gflop[name] * 1e9 for seconds in readings["product", name]]
        yield Row(
            "step",
            f"whole step, {name}",
            "s",
            spread(step),
            ratio=quotient(step, convolutions),
            ratio_of="its convolutions",
            target=MOST_OVERHEAD if name == plan.engine.precision else None,
            note=f"{settings}: normalise, forward, loss, backward, update",
        )
        yield Row(
            "step",
            f"its convolutions alone, {name}",
            "s",
            spread(convolutions),
            ratio=quotient(convolutions, limit),
            ratio_of=f"{name} matrix product",
            note=f"{count[name]} calls, forward and backward, {gflop[name]:.0f} GFLOP",
        )
    if plan.engine.precision != "fp32":
        name = plan.engine.precision
        yield Row(
            "step",
            f"{name} instead of fp32",
            "times as fast",
            quotient(readings["step", "fp32"], readings["step", name]),
        )


def _waiting(plan: Plan) -> Row:
    """Share of an epoch that the step waits for its batch, with the loader that training would use."""
    settings, device = plan.settings, plan.engine.device
    cache, labels = plan.images()
    labels = labels[: max(1, min(len(labels), STEPS * settings.train.batch_size))]
    sampler = EpochSampler(labels, settings.train.seed, settings.train.balanced_sampling)
    workers = count_workers(settings, plan.engine)
    dataset = TrainingDataset(cache, settings.augment, settings.train.seed)
    loader = make_loader(dataset, sampler, settings.train.batch_size, workers, device)
    _, step = make_step(plan, plan.engine.dtype)

    def epoch(number: int) -> float:
        sampler.set_epoch(number)
        waited, start = 0.0, time.perf_counter()
        batches = iter(loader)
        while True:
            asked = time.perf_counter()
            batch = next(batches, None)
            waited += time.perf_counter() - asked
            if batch is None:
                wait_for(device)
                return 100 * waited / (time.perf_counter() - start)
            step(batch[0], batch[1])

    epoch(0)  # starts the workers and warms the network up
    shares = [epoch(1 + repeat) for repeat in range(plan.repeats)]
    steps = len(loader)
    return Row(
        "step",
        "waits for data",
        "% of the time",
        spread(shares),
        target=MOST_WAITING,
        target_of="value",
        note=f"epochs of {steps} step{'s' if steps > 1 else ''}, first batch included, {workers} loader process(es)",
    )
