"""How fast this machine trains, next to its own limits.

    python benchmarks/training.py [--manifest data_manifests/bus-uclm.csv] [--set train.batch_size=4] [--parts step]

limits   matrix products and copies in memory
loader   images per second that one core prepares: the fused augmentation and albumentations' list, against a copy
step     a training step against its own convolutions and a matrix product of as many FLOP; the wait for data
profile  where the time of one step goes, and the step against the sum of its kernels
epoch    the epochs of a short training: steps, waiting for data, validation, writing; peak memory

Without a manifest, synthetic images are used. Everything in one part is timed in turn; let the machine do nothing else.
On a GPU, please send us what --parts limits step profile epoch prints, with --set runtime.graph=true and without.
"""

import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

# The profiler reports to stderr that there is no GPU.
os.environ.setdefault("KINETO_LOG_LEVEL", "5")

import cv2
import numpy as np
import torch
from timing import (
    Work,
    arguments,
    matrix_product,
    peak_mb,
    quotient,
    row,
    show,
    spread,
    time_in_turn,
    wait_for,
)
from torch import Tensor
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from bus_smp.config import Settings, load_settings
from bus_smp.data.cache import Cache, open_cache
from bus_smp.data.geometry import Geometry
from bus_smp.data.loading import TrainingDataset, make_loader
from bus_smp.data.manifest import Manifest, read_manifest
from bus_smp.data.sampler import EpochSampler
from bus_smp.data.synthetic import write_bus_uclm
from bus_smp.system.engine import Engine, make_engine, set_determinism
from bus_smp.system.environment import device_name
from bus_smp.training import loop
from bus_smp.training.loop import count_workers
from bus_smp.training.start import train
from bus_smp.training.step import ImageTargets, TrainingStep

# Bytes of a copy in memory: many times the size of the last cache.
COPIED = {"cpu": 1 << 28, "cuda": 1 << 31}


@dataclass(frozen=True)
class Plan:
    """Device, settings of the training that is timed, its prepared images with their labels, readings per number."""

    engine: Engine
    settings: Settings
    cache: Cache
    labels: list[str]
    repeats: int
    manifest: Manifest | None = None

    def precisions(self) -> dict[str, torch.dtype]:
        """fp32, and the precision that training would choose, by name."""
        return {"fp32": torch.float32, self.engine.precision: self.engine.dtype}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--manifest", type=Path)
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="as for bus-smp train"
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=["limits", "loader", "step"])
    parser.add_argument("--repeats", type=int, default=5, help="readings of each number")
    options = parser.parse_args()
    settings = load_settings(None, options.set)
    engine = make_engine(settings.runtime.device, settings.train.precision)
    with tempfile.TemporaryDirectory() as name:
        manifest = read_manifest(options.manifest or synthetic_manifest(Path(name)))
        rows = manifest.used("train")
        cache = open_cache(manifest, rows, Geometry.of(settings.data.model_dump()), Path(name) / "cache")
        plan = Plan(engine, settings, cache, list(rows["label"]), options.repeats, manifest)
        set_determinism(settings.train.deterministic)
        print(
            f"{settings.model.encoder_name}, {settings.data.size} px, batch {settings.train.batch_size}, {engine.precision}, "
            f"{device_name(engine)}, torch {torch.__version__}\n"
        )
        for part in options.parts:
            show(part, PARTS[part](plan))


def synthetic_manifest(folder: Path) -> Path:
    """Write a synthetic data set and its manifest, with the command that users have."""
    tree = write_bus_uclm(folder / "data", size=(320, 240))
    command = [
        sys.executable,
        "-m",
        "bus_smp",
        "make-manifest",
        "--root",
        str(tree),
        "--out",
        str(folder / "manifests"),
    ]
    subprocess.run(command, check=True, capture_output=True)
    return folder / "manifests" / "bus-uclm.csv"


# --- limits


def memory_copy(device: torch.device) -> tuple[Work, int]:
    """A copy within the device's memory on all cores, and its bytes (each is read and written)."""
    # Of zeros that nobody has written, a system keeps one page and copies that from the cache.
    source = torch.ones(COPIED[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source).copy_(source)
    return lambda: target.copy_(source), source.numel()


def core_copy() -> tuple[Work, int]:
    """The same on one core of the CPU."""
    source = np.ones(COPIED["cpu"], np.uint8)
    target = source.copy()
    return lambda: np.copyto(target, source), source.nbytes


def measure_limits(plan: Plan) -> list[dict[str, Any]]:
    device = plan.engine.device
    products = {
        f"matrix product, {name}": matrix_product(dtype, device) for name, dtype in plan.precisions().items()
    }
    copies = {f"memory copy, {device.type}": memory_copy(device), "memory copy, one CPU core": core_copy()}
    both = products | copies
    readings = time_in_turn({name: work for name, (work, _) in both.items()}, plan.repeats, device)
    return [
        row(name, spread(readings[name]).rate(amount / 1e9), "GFLOP/s" if name in products else "GB/s")
        for name, (_, amount) in both.items()
    ]


# --- loader

# Images of one reading at least: an epoch of a small data set is over before the clock has ticked.
IMAGES = 400


def measure_loader(plan: Plan) -> list[dict[str, Any]]:
    """On one core: images per second of both implementations, in the training's own process and in one worker."""
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    copy, copied = core_copy()
    works: dict[str, Work] = {"copy": copy}
    counts = {}
    for implementation, workers in itertools.product(("fused", "albumentations"), (0, 1)):
        name = f"{implementation}, {workers} worker{'' if workers else 's'}"
        works[name], counts[name] = _epochs(plan, implementation, workers)
    readings = time_in_turn(works, plan.repeats)
    # Bytes of an image: three channels and a mask.
    copies = [seconds / copied * 4 * plan.settings.data.size**2 for seconds in readings["copy"]]
    rows = []
    for name, count in counts.items():
        each = [seconds / count for seconds in readings[name]]
        target = ">= 1,000" if name.startswith("fused") else ""
        rows.append(
            row(name, spread(each).rate(1), "images/s", quotient(each, copies), "copying its bytes", target)
        )
    return rows


def _epochs(plan: Plan, implementation: str, workers: int) -> tuple[Work, int]:
    """Work that draws whole epochs, each time other ones, and the number of images it draws."""
    settings, batch = plan.settings, plan.settings.train.batch_size
    augment = settings.augment.model_copy(update={"implementation": implementation})
    sampler = EpochSampler(plan.labels, settings.train.seed, settings.train.balanced_sampling)
    dataset = TrainingDataset(plan.cache, plan.labels, augment, settings.train.seed)
    loader = make_loader(dataset, sampler, batch, workers, plan.engine.device)
    drawn = len(plan.labels) if len(plan.labels) < batch else len(plan.labels) // batch * batch
    epochs = -(-IMAGES // drawn)
    numbers = itertools.count()

    def read() -> None:
        for number in itertools.islice(numbers, epochs):
            sampler.set_epoch(number)
            for _ in loader:
                pass

    return read, epochs * drawn


# --- step

# Of an epoch, in which the wait for data is measured.
STEPS = 4


def make_step(plan: Plan, dtype: torch.dtype, *, eager: bool = False) -> tuple[Work, TrainingStep]:
    """A step on one batch of random images, and the object behind it; ``eager``: not compiled, so that it can be watched."""
    settings = plan.settings
    if eager:
        settings = settings.model_copy(update={"train": settings.train.model_copy(update={"compile": False})})
    torch.manual_seed(settings.train.seed)
    step = TrainingStep(settings, Engine(plan.engine.device, dtype))
    step.model.train()
    size, batch = settings.data.size, settings.train.batch_size
    images = torch.randint(0, 256, (batch, size, size, 3), dtype=torch.uint8)
    masks = torch.randint(0, 3, (batch, size, size), dtype=torch.uint8)
    whole = ImageTargets(torch.randint(0, 3, (batch,)), torch.rand(batch, 4), torch.ones(batch))
    return lambda: step(images, masks, whole=whole), step


def measure_step(plan: Plan) -> list[dict[str, Any]]:
    """Seconds of a step and of its convolutions only, in each precision, and the share of the wait for data."""
    device, rows = plan.engine.device, []
    works: dict[str, Work] = {}
    gflop, flop_of_product, count = {}, {}, {}
    for name, dtype in plan.precisions().items():
        works[f"step {name}"], _ = make_step(plan, dtype)
        calls = record_convolutions(make_step(plan, dtype, eager=True)[0])
        works[f"convolutions {name}"] = repeat_convolutions(calls)
        with FlopCounterMode(display=False) as counter:
            works[f"convolutions {name}"]()
        gflop[name], count[name] = counter.get_total_flops() / 1e9, len(calls)
        works[f"product {name}"], flop_of_product[name] = matrix_product(dtype, device)
    readings = time_in_turn(works, plan.repeats, device)
    for name in plan.precisions():
        step, convolutions = readings[f"step {name}"], readings[f"convolutions {name}"]
        # The time of a matrix product of as many FLOP as the convolutions.
        limit = [
            seconds / flop_of_product[name] * gflop[name] * 1e9 for seconds in readings[f"product {name}"]
        ]
        rows.append(
            row(
                f"whole step, {name}",
                spread(step),
                "s",
                quotient(step, convolutions),
                "its convolutions",
                "ratio <= 1.15",
            )
        )
        what = f"its {count[name]} convolutions only, {name}, {gflop[name]:.0f} GFLOP"
        rows.append(
            row(what, spread(convolutions), "s", quotient(convolutions, limit), f"{name} matrix product")
        )
    if plan.engine.precision != "fp32":
        gain = quotient(readings["step fp32"], readings[f"step {plan.engine.precision}"])
        rows.append(row(f"{plan.engine.precision} instead of fp32", gain, "times as fast"))
    rows.append(row("waits for data", spread(_waiting(plan)), "% of the time", target="<= 3"))
    return rows


def _waiting(plan: Plan) -> list[float]:
    """Percentage of an epoch that the step waits for its batch, with the loader that training would use."""
    settings, device = plan.settings, plan.engine.device
    labels = plan.labels[: STEPS * settings.train.batch_size]
    sampler = EpochSampler(labels, settings.train.seed, settings.train.balanced_sampling)
    measure = settings.heads.shape > 0
    dataset = TrainingDataset(plan.cache, plan.labels, settings.augment, settings.train.seed, measure)
    workers = count_workers(settings, plan.engine)
    loader = make_loader(dataset, sampler, settings.train.batch_size, workers, device)
    _, step = make_step(plan, plan.engine.dtype)

    weights = torch.ones(settings.train.batch_size)

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
            step(batch.images, batch.masks, whole=ImageTargets(batch.labels, batch.shapes, weights))

    # The first epoch starts the workers and warms the network up.
    epoch(0)
    return [epoch(1 + repeat) for repeat in range(plan.repeats)]


# --- convolutions of a step

_FORWARD = torch.ops.aten.convolution.default
_BACKWARD = torch.ops.aten.convolution_backward.default


@dataclass(frozen=True)
class Layout:
    """Shape, strides, type and device of a tensor."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    def fill(self) -> Tensor:
        """Such a tensor with random numbers: zeros are less work for some kernels and processors."""
        made = torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=self.device)
        return made.normal_(std=0.1)


@dataclass(frozen=True)
class Call:
    """One convolution, forward or backward, with ``Layout`` in place of its tensors."""

    forward: bool
    arguments: tuple[Any, ...]

    def tensors(self) -> list[Layout]:
        """Forward: input, weight and perhaps bias. Backward: the output's gradient, input, weight."""
        return [argument for argument in self.arguments if isinstance(argument, Layout)]


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in (_FORWARD, _BACKWARD):
            self.calls.append(
                Call(function is _FORWARD, tuple(_layout(a) if isinstance(a, Tensor) else a for a in args))
            )
        return function(*args, **(kwargs or {}))


def _layout(tensor: Tensor) -> Layout:
    return Layout(tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device)


def record_convolutions(work: Work) -> list[Call]:
    """Call ``work`` once; return its convolutions in the order of their calls. Compiled code cannot be recorded.

    They are recorded below autograd and autocast. What is repeated has the same shapes, types and memory formats and
    computes the same gradients; nothing else of the network is in it.
    """
    with _Recorder() as recorder:
        work()
    return recorder.calls


def repeat_convolutions(calls: Sequence[Call]) -> Work:
    """Work that runs the recorded convolutions only. Each has tensors of its own, as in the step."""
    ready = [
        (
            _FORWARD if call.forward else _BACKWARD,
            [argument.fill() if isinstance(argument, Layout) else argument for argument in call.arguments],
        )
        for call in calls
    ]

    @torch.no_grad()
    def run() -> None:
        for function, values in ready:
            function(*values)

    return run


# --- profile

# An operator is of the first kind with a word that its name contains. Backward operators have the same words.
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


def measure_profile(plan: Plan) -> list[dict[str, Any]]:
    """Milliseconds and share of one step for each kind of work, largest first; the step against their sum."""
    readings = time_in_turn({"step": make_step(plan, plan.engine.dtype)[0]}, plan.repeats, plan.engine.device)
    run, step = make_step(plan, plan.engine.dtype, eager=True)
    run()
    run()
    on_cuda = plan.engine.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_cuda else [])]
    step.loss = _scoped(step.loss)
    with profile(activities=activities) as watched:
        run()
    times, calls = group_by_kind(watched.events(), on_cuda)
    whole = sum(times.values())
    kernels = sum(event.device_type != torch.autograd.DeviceType.CPU for event in watched.events())
    step_ms = [1000 * seconds for seconds in readings["step"]]
    against = row(
        "whole step", spread(step_ms), "ms", spread([ms / (whole / 1000) for ms in step_ms]),
        f"the sum of its {f'{kernels:,} kernels' if on_cuda else 'operators'}", "ratio <= 1.3",
    )  # fmt: skip
    return [against] + [
        row(
            f"{kind} ({calls[kind]} calls)",
            spread([spent / 1000]),
            "ms",
            spread([spent / whole]),
            "the profiled step",
        )
        for kind, spent in sorted(times.items(), key=lambda item: -item[1])
    ]


def _scoped(loss: torch.nn.Module) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        with record_function(LOSS):
            return loss(*arguments)

    return call


def group_by_kind(events: list[FunctionEvent], on_cuda: bool) -> tuple[dict[str, float], dict[str, int]]:
    """Microseconds and number of calls of each kind; every event's own time is counted once.

    Everything inside the loss counts as loss, and so does its backward pass: autograd gives it the number of the
    forward call. Everything inside the optimiser counts as optimiser.
    """
    times: dict[str, float] = defaultdict(float)
    calls: dict[str, int] = defaultdict(int)
    loss_numbers = {event.sequence_nr for event in events if event.sequence_nr >= 0 and _scope(event) == LOSS}
    for event in events:
        if event.device_type != torch.autograd.DeviceType.CPU:
            # A kernel: its time is already counted with the operator that started it.
            continue
        spent = event.self_device_time_total if on_cuda else event.self_cpu_time_total
        if spent <= 0:
            continue
        kind = _kind(event, loss_numbers)
        times[kind] += spent
        calls[kind] += 1
    return dict(times), dict(calls)


def _scope(event: FunctionEvent | None) -> str | None:
    """Loss or optimiser, if the event is inside it in the forward direction."""
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


# --- epoch


class _Watched:
    """A loader, and the seconds that the training waits for it."""

    def __init__(self, loader: Any, spent: dict[str, list[float]]) -> None:
        self._loader, self._spent = loader, spent

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self):
        waited, batches = 0.0, iter(self._loader)
        while True:
            asked = time.perf_counter()
            batch = next(batches, None)
            waited += time.perf_counter() - asked
            if batch is None:
                break
            yield batch
        self._spent["waiting for data"].append(waited)


def measure_epoch(plan: Plan) -> list[dict[str, Any]]:
    """Seconds of an epoch of a training as users have it, by what they are spent on, and the peak memory."""
    device, spent = plan.engine.device, defaultdict(list)
    parts = {
        "_one_epoch": "whole epoch",
        "_train_epoch": "steps",
        "_validate": "validation",
        "_record": "writing",
    }

    def watched(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            wait_for(device)
            start = time.perf_counter()
            result = function(*arguments)
            wait_for(device)
            spent[name].append(time.perf_counter() - start)
            return result

        return call

    # the first epoch warms up: it decodes the validation images and chooses algorithms
    settings = plan.settings.model_copy(
        update={"train": plan.settings.train.model_copy(update={"epochs": plan.repeats + 1, "patience": 0})}
    )
    make = loop.make_loader
    with (
        tempfile.TemporaryDirectory() as name,
        mock.patch.multiple(
            loop._Training,
            **{part: watched(words, getattr(loop._Training, part)) for part, words in parts.items()},
        ),
        mock.patch.object(loop, "make_loader", lambda *given: _Watched(make(*given), spent)),
    ):
        start = time.perf_counter()
        train(settings, plan.manifest, Path(name) / "run", say=lambda text: None)
        whole = time.perf_counter() - start
    steps = [a - b for a, b in zip(spent["steps"], spent["waiting for data"], strict=True)]
    spent["steps"] = steps
    rows = [
        row(
            name, spread(readings[1:]), "s",
            spread([a / b for a, b in zip(readings[1:], steps[1:], strict=True)]), "the steps",
            "ratio <= 1.15 (CPU: 1.10)" if name == "whole epoch" else "",
        )
        for name, readings in spent.items()
    ]  # fmt: skip
    rows.append(row(f"training of {plan.repeats + 1} epochs, calibration included", spread([whole]), "s"))
    on_gpu = device.type == "cuda"
    peak = torch.cuda.max_memory_reserved(device) / 1e6 if on_gpu else peak_mb()
    return [*rows, row(f"peak memory of the {'GPU' if on_gpu else 'process'}", spread([peak]), "MB")]


PARTS: dict[str, Callable[[Plan], list[dict[str, Any]]]] = {
    "limits": measure_limits,
    "loader": measure_loader,
    "step": measure_step,
    "profile": measure_profile,
    "epoch": measure_epoch,
}

if __name__ == "__main__":
    main()
