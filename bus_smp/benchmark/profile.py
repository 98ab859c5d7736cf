"""Where the time of one training step goes, by kind of work."""

import os
from collections import defaultdict
from collections.abc import Iterator

import torch
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function

from bus_smp.benchmark.plan import Plan, as_in_training
from bus_smp.benchmark.step import make_step
from bus_smp.benchmark.table import Row
from bus_smp.benchmark.timing import spread

os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # the profiler reports to stderr that there is no GPU

# The first kind that has one of its words in the operator's name. Backward operators bear the same words.
KINDS = {
    "convolution": ("conv", "mkldnn_linear"),
    "batch norm": ("batch_norm",),
    "ReLU": ("relu", "threshold", "clamp_min"),
    "upsampling": ("upsample", "interpolate"),
    "pooling": ("pool",),
    "concatenation": ("aten::cat", "aten::narrow", "aten::slice", "aten::split"),
    "addition": ("aten::add",),
    "copies and casts": ("copy_", "aten::to", "clone", "contiguous"),
    "filling": ("zero", "fill_", "aten::empty"),
}
LOSS, OPTIMISER, REST = "loss", "optimiser", "other"


def measure_profile(plan: Plan) -> Iterator[Row]:
    """Yield milliseconds and share of one step for each kind, largest first."""
    with as_in_training(plan.settings):
        run, step = make_step(plan, plan.engine.dtype, eager=True)
        run()
        run()
        on_cuda = plan.engine.device.type == "cuda"
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_cuda else [])]
        loss, step.loss = step.loss, _scoped(step.loss)
        try:
            with profile(activities=activities) as watched:
                run()
        finally:
            step.loss = loss
    times, calls = group_by_kind(watched.events(), on_cuda)
    whole = sum(times.values())
    for kind in sorted(times, key=times.__getitem__, reverse=True):
        yield Row(
            "profile",
            f"{kind} ({calls[kind]} calls)",
            "ms",
            spread([times[kind] / 1000]),
            ratio=spread([times[kind] / whole]),
            ratio_of="the profiled step",
            note=f"one step in {plan.engine.precision}, watched by torch.profiler, which costs some per cent",
        )


def _scoped(loss: torch.nn.Module):
    def call(*arguments):
        with record_function(LOSS):
            return loss(*arguments)

    return call


def group_by_kind(events: list[FunctionEvent], on_cuda: bool) -> tuple[dict[str, float], dict[str, int]]:
    """Microseconds and number of calls of each kind; every event's own time is counted once.

    What runs inside the loss is the loss, and so is its backward pass: autograd gives it the number of the
    forward call. What runs inside the optimiser is the optimiser.
    """
    times: dict[str, float] = defaultdict(float)
    calls: dict[str, int] = defaultdict(int)
    loss_numbers = {event.sequence_nr for event in events if event.sequence_nr >= 0 and _scope(event) == LOSS}
    for event in events:
        if event.device_type != torch.autograd.DeviceType.CPU:
            continue  # a kernel: its time is already with the operator that started it
        spent = event.self_device_time_total if on_cuda else event.self_cpu_time_total
        if spent <= 0:
            continue
        kind = _kind(event, loss_numbers)
        times[kind] += spent
        calls[kind] += 1
    return dict(times), dict(calls)


def _scope(event: FunctionEvent) -> str | None:
    """The loss or the optimiser, if the event is inside it in the forward direction."""
    while event is not None:
        if event.name == LOSS:
            return LOSS
        if event.name.startswith("Optimizer."):
            return OPTIMISER
        event = event.cpu_parent
    return None


def _kind(event: FunctionEvent, loss_numbers: set[int]) -> str:
    if scope := _scope(event):
        return scope
    ancestor = event
    while ancestor is not None:
        if ancestor.name.startswith("autograd::engine") and ancestor.sequence_nr in loss_numbers:
            return LOSS
        ancestor = ancestor.cpu_parent
    name = event.name.lower()
    return next((kind for kind, words in KINDS.items() if any(word in name for word in words)), REST)
