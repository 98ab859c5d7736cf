"""What every part is told: device, settings, images, how often."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from bus_smp.benchmark.backends import BACKENDS, choose_backends
from bus_smp.config import Settings
from bus_smp.data.cache import Cache, open_cache
from bus_smp.data.manifest import Manifest, read_manifest
from bus_smp.data.synthetic import write_bus_uclm
from bus_smp.errors import BusSmpError, ConfigError
from bus_smp.system.engine import Engine, make_engine, set_determinism


@dataclass(frozen=True)
class Plan:
    """What to measure, and with what.

    Attributes:
        engine: device, and the precision that training would take there.
        settings: of the training that is timed: size, batch, network, augmentation.
        manifest_path: manifest whose training images are read.
        scratch: folder for files that nobody keeps.
        cache: folder of prepared images.
        repeats: readings of each number.
        checkpoint: weights to infer with; None: random ones, which are as quick.
        backends: to infer with, of ``backends.BACKENDS``; what cannot run here is a row that says so.
    """

    engine: Engine
    settings: Settings
    manifest_path: Path
    scratch: Path
    cache: Path
    repeats: int = 5
    checkpoint: Path | None = None
    backends: tuple[str, ...] = BACKENDS

    def precisions(self) -> dict[str, torch.dtype]:
        """fp32, and what training would take, by name."""
        return {"fp32": torch.float32, self.engine.precision: self.engine.dtype}

    def manifest(self) -> Manifest:
        """The manifest, with its images."""
        return read_manifest(self.manifest_path)

    def images(self) -> tuple[Cache, list[str]]:
        """The prepared training images, and the label of each."""
        manifest = self.manifest()
        rows = manifest.used("train")
        cache = open_cache(manifest, rows, self.settings.data.size, self.cache)
        return cache, list(rows["label"])


@contextmanager
def make_plan(
    settings: Settings,
    *,
    manifest_path: Path | None = None,
    checkpoint: Path | None = None,
    repeats: int = 5,
    backends: str | None = None,
) -> Iterator[Plan]:
    """Yield a plan, with synthetic images where no manifest is given; its scratch folder is removed in the end.

    Raises:
        ConfigError: if there is no such device or backend.
        ManifestError: if the manifest cannot be read.
    """
    engine = make_engine(settings.runtime.device, settings.train.precision)
    chosen = BACKENDS if backends is None else choose_backends(backends, engine)
    with tempfile.TemporaryDirectory(prefix="bus-smp-benchmark-") as name:
        scratch = Path(name)
        cache = scratch / "cache" if manifest_path is None else Path(settings.runtime.cache)
        path = manifest_path or _synthetic_manifest(scratch)
        read_manifest(path)  # before the first minute of work
        yield Plan(engine, settings, path.resolve(), scratch, cache, repeats, checkpoint, chosen)


def _synthetic_manifest(folder: Path) -> Path:
    """Made by the command itself, so that a benchmark reads what a user's training reads."""
    tree = write_bus_uclm(folder / "data", size=(320, 240))
    run_command("make-manifest", "--root", str(tree), "--out", str(folder / "data_manifests"))
    return folder / "data_manifests" / "bus-uclm.csv"


def run_command(*arguments: str) -> None:
    """Run ``bus-smp`` in a process of its own.

    Raises:
        BusSmpError: with the last line that it said, if it fails.
    """
    done = subprocess.run([sys.executable, "-m", "bus_smp", *arguments], capture_output=True, text=True)
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["without a word"]
        raise BusSmpError(f"bus-smp {' '.join(arguments)} failed: {said[-1]}")


@contextmanager
def as_in_training(settings: Settings) -> Iterator[None]:
    """PyTorch in the mode that the settings ask for, and afterwards as it was."""
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    tuned = torch.backends.cudnn.benchmark
    filled = torch.utils.deterministic.fill_uninitialized_memory
    try:
        set_determinism(settings.train.deterministic)
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)
        torch.backends.cudnn.benchmark = tuned
        torch.utils.deterministic.fill_uninitialized_memory = filled


def check_parts(names: str, known: tuple[str, ...]) -> list[str]:
    """``limits,loader`` as a list in the order of ``known``.

    Raises:
        ConfigError: naming what is unknown.
    """
    asked = [name.strip() for name in names.split(",") if name.strip()]
    unknown = [name for name in asked if name not in known]
    if unknown or not asked:
        raise ConfigError(
            f"--parts {names}: no part is called {unknown[0]}" if unknown else "--parts names no part",
            hint=f"there are {', '.join(known)}",
        )
    return [name for name in known if name in asked]
