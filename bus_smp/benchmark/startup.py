"""How long a user waits for the first sign of life, each in a process of its own."""

import subprocess
import sys
from collections.abc import Iterator
from itertools import count

from bus_smp.benchmark.plan import Plan
from bus_smp.benchmark.table import Row
from bus_smp.benchmark.timing import Work, quotient, spread, time_in_turn
from bus_smp.errors import BusSmpError

MOST_HELP, MOST_INFO, MOST_TRAIN = 0.3, 0.4, 12.0  # seconds

# ``bus-smp train`` that says when its loader gives the first batch, and stops as Ctrl-C would stop it.
_FIRST_BATCH = """
import sys
import bus_smp.data.loading as dataset

real = dataset.make_loader

def make_loader(*arguments, **named):
    loader = real(*arguments, **named)
    kind = type(loader)
    drawn = kind.__iter__

    def first(self):
        for batch in drawn(self):
            print("FIRST BATCH", flush=True)
            raise KeyboardInterrupt
    kind.__iter__ = first
    return loader

dataset.make_loader = make_loader
from bus_smp.cli import main
main(sys.argv[1:])
"""


def measure(plan: Plan) -> Iterator[Row]:
    """Yield seconds until ``--help`` and ``info`` have answered, and until ``train`` has its first batch."""
    bare = [sys.executable, "-c", "pass"]
    bus_smp = [sys.executable, "-m", "bus_smp"]
    works: dict[str, Work] = {
        "bare": _answer(bare),
        "help": _answer([*bus_smp, "--help"]),
        "info": _answer([*bus_smp, "info", str(plan.manifest_path)]),
    }
    if plan.checkpoint:
        works["checkpoint"] = _answer([*bus_smp, "info", str(plan.checkpoint)])
    readings = time_in_turn(works, plan.repeats, settle=False)
    told = {
        "help": ("bus-smp --help", MOST_HELP),
        "info": ("bus-smp info MANIFEST.csv", MOST_INFO),
        "checkpoint": ("bus-smp info CHECKPOINT", MOST_INFO),
    }
    for key in [key for key in told if key in works]:
        name, most = told[key]
        yield _row(name, readings[key], readings["bare"], "python -c pass", most)

    training = {"import": _answer([sys.executable, "-c", "import torch"]), "train": _first_batch(plan)}
    readings = time_in_turn(training, plan.repeats, settle=False)
    rows = len(plan.manifest().used("train"))
    yield _row(
        "first batch of bus-smp train",
        readings["train"],
        readings["import"],
        "import torch",
        MOST_TRAIN,
        f"{plan.settings.model.encoder_name} with random weights, {rows} images, cache ready",
    )


def _row(
    name: str, readings: list[float], others: list[float], other: str, most: float, note: str = ""
) -> Row:
    return Row(
        "startup",
        name,
        "s",
        spread(readings),
        ratio=quotient(readings, others),
        ratio_of=other,
        target=most,
        target_of="value",
        note=note,
    )


def _answer(command: list[str]) -> Work:
    def run() -> None:
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise BusSmpError(f"{' '.join(command[1:])} failed: {done.stderr.strip()[-300:]}")

    return run


def _first_batch(plan: Plan) -> Work:
    """Start a training, each time under another name, and stop it at its first batch; stopping is in the time."""
    settings = plan.settings
    overrides = [
        f"data.train=[{plan.manifest_path.as_posix()}]",
        f"data.size={settings.data.size}",
        f"train.batch_size={settings.train.batch_size}",
        f"model.encoder_name={settings.model.encoder_name}",
        "model.encoder_weights=null",
        f"runtime.cache={plan.cache.as_posix()}",
        f"runtime.device={settings.runtime.device}",
        f"runtime.workers={settings.runtime.workers}",
    ]
    options = [part for text in overrides for part in ("--set", text)]
    names = count()

    def run() -> None:
        command = [sys.executable, "-c", _FIRST_BATCH, "train", "--out", str(plan.scratch / "outputs")]
        command += ["--run", f"start-{next(names)}", *options]
        done = subprocess.run(command, capture_output=True, text=True)
        if "FIRST BATCH" not in done.stdout:
            raise BusSmpError(f"bus-smp train gave no batch: {done.stderr.strip()[-300:]}")

    return run
