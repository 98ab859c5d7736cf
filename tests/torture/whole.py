"""What must be true of a run folder and a cache at any moment, whatever happened to the training."""

from __future__ import annotations

import contextlib
import fcntl
import json
from pathlib import Path

import pandas as pd
import torch
from PIL import Image

from bus_smp.data.cache import is_whole
from bus_smp.model.checkpoint import load_model
from bus_smp.runs.run import Run
from bus_smp.system.engine import make_engine
from bus_smp.training.resume import read_state

SAME = ("best.safetensors", "metrics.csv", "loss_curves.png", "dice_curve.png", "manifest.csv")


def check_run(run: Path) -> None:
    """Every file under its final name is whole, and they agree with each other; AssertionError where not."""
    state = read_state(Run(run).state_path, make_engine("cpu", "fp32"))
    done = [] if state is None else state["history"]
    metrics, best = run / "metrics.csv", None
    if Run(run).has_weights():
        _, best = load_model(Run(run).best_path)
    if metrics.exists():
        text = metrics.read_text()
        rows = pd.read_csv(metrics)
        assert rows["epoch"].tolist() == list(range(1, len(rows) + 1)), "metrics.csv: epochs are missing"
        assert len(rows) >= len(done), f"metrics.csv has {len(rows)} epochs, last.ckpt {len(done)}"
        first = pd.DataFrame(done).to_csv(index=False, lineterminator="\n", float_format="%.6g")
        assert not done or text.startswith(first), "metrics.csv: other numbers than last.ckpt"
        assert text.endswith("\n") and best is not None
    else:
        assert not done, "last.ckpt is there, metrics.csv not"
    if done:
        assert best["epoch"] == state["best_epoch"] or best["epoch"] > len(done), (
            "best.safetensors: of another epoch"
        )
    for path in run.glob("[!.]*.png"):
        Image.open(path).load()
    if Run(run).exists():
        Run(run).settings(), Run(run).manifest()
    for path in run.glob("[!.]*.json"):
        json.loads(path.read_text())


def check_cache(folder: Path) -> None:
    """Every cache under its final name is whole."""
    for cache in folder.iterdir():
        if cache.name.startswith("."):
            continue
        assert is_whole(cache), f"{cache.name} is not whole"


def hidden(folder: Path) -> list[str]:
    """Names of hidden files and folders in ``folder``, but for a run's lock."""
    return sorted(path.name for path in folder.glob(".*") if path.name != ".lock")


def is_free(run: Path) -> bool:
    """Whether nobody holds the run's lock."""
    if not (run / ".lock").exists():
        return True
    with (run / ".lock").open("a") as file, contextlib.suppress(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def differences(run: Path, other: Path) -> list[str]:
    """In what two finished runs are not the same to the last bit."""
    found = [name for name in SAME if (run / name).read_bytes() != (other / name).read_bytes()]
    states = [read_state(Run(folder).state_path, make_engine("cpu", "fp32")) for folder in (run, other)]
    found += [f"last.ckpt: {name}" for name in _unequal("", *states)]
    evaluations = sorted(other.glob("eval-*/*"))
    for path in (path for path in evaluations if path.suffix in (".json", ".csv")):
        name = path.relative_to(other)
        if (run / name).read_bytes() != path.read_bytes():
            found.append(str(name))
    return found


def _unequal(name: str, one: object, other: object) -> list[str]:
    if isinstance(one, torch.Tensor):
        same = one.dtype == other.dtype and torch.equal(one, other)
        return [] if same else [name]
    if isinstance(one, dict):
        if one.keys() != other.keys():
            return [name or "its parts"]
        return [part for key in one for part in _unequal(f"{name}/{key}", one[key], other[key])]
    if isinstance(one, list | tuple):
        if len(one) != len(other):
            return [name]
        return [
            part
            for place, pair in enumerate(zip(one, other, strict=True))
            for part in _unequal(f"{name}/{place}", *pair)
        ]
    return [] if one == other or (one != one and other != other) else [name]
