"""What befalls a training in the middle: each ends in one clear message, and once it is over the run goes on to the same bytes.

Disks, mounts, processes and limits are real. Where the machine allows no mount, those tests are skipped and say so.
"""

import contextlib
import gc
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from conftest import TINY, invoke, settings_options

sys.path.append(str(Path(__file__).parent / "torture"))

from whole import check_run, differences, hidden, is_free

from bus_smp.config import load_settings
from bus_smp.data import synthetic
from bus_smp.data.manifest import read_manifest
from bus_smp.errors import BusSmpError
from bus_smp.figures.training_curves import write_loss_curves
from bus_smp.model.checkpoint import write_checkpoint
from bus_smp.runs.run import Run
from bus_smp.system.files import replacing
from bus_smp.training.resume import write_state
from bus_smp.training.start import train
from bus_smp.training.tensorboard import EventFile

SETTINGS = (*TINY, "train.epochs=2", "train.precision=fp32", "train.batch_size=16")

# The suite runs one of each kind; `make torture` sets the variable and runs all.


class Disk:
    """A disk in memory, which can be filled and write-protected from outside."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _mount(self, options: str, *more: str) -> None:
        subprocess.run(
            ["mount", "-o", options, *more, str(self.folder)], check=True, capture_output=True, text=True
        )

    def leave(self, free: int) -> None:
        """Let it have so many bytes free, to the next 4096."""
        self._mount(f"remount,size={shutil.disk_usage(self.folder).used + free}")

    def give_room(self) -> None:
        """Let it have a lot of room."""
        self._mount("remount,size=3g")

    def protect(self, wanted: bool) -> None:
        """Let nobody write to it, or everybody."""
        self._mount("remount,ro" if wanted else "remount,rw")


@pytest.fixture
def disk(tmp_path):
    disk = Disk(tmp_path / "disk")
    disk.folder.mkdir()
    try:
        disk._mount("size=3g", "-t", "tmpfs", "tmpfs")
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no disk can be mounted here ({getattr(error, 'stderr', error)})")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk.folder)], check=True)


class Lab:
    """A training on images of its own, which something befalls when it says a certain thing."""

    def __init__(self, folder: Path) -> None:
        self.tree = synthetic.write_bus_uclm(folder / "tree", size=(64, 48))
        self.cache = folder / "cache"
        made = invoke("make-manifest", "--root", self.tree, "--out", folder / "data_manifests")
        assert made.exit_code == 0, made.stderr
        self.manifest = folder / "data_manifests" / "bus-uclm.csv"

    def train(self, run: Path, when: str = "", then=lambda: None, workers: int = 0) -> list[str]:
        """Train in ``run``; when a line begins with ``when``, once, something befalls it. What was said."""
        settings = load_settings(
            None, (*SETTINGS, f"runtime.cache={self.cache}", f"runtime.workers={workers}")
        )
        said = []

        def say(text: str) -> None:
            if when and text.startswith(when) and not any(line.startswith(when) for line in said):
                then()
            said.append(text)

        train(settings, read_manifest(self.manifest), run, say=say)
        return said


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Lab:
    return Lab(tmp_path_factory.mktemp("lab"))


@pytest.fixture(scope="module")
def whole(lab, tmp_path_factory) -> Path:
    """The run that nothing befell."""
    run = tmp_path_factory.mktemp("whole") / "run"
    lab.train(run)
    return run


def befalls(lab, run, when, then, match, workers=0) -> BusSmpError:
    """Train until the error; everything is whole after it, and nothing is left behind."""
    with pytest.raises(BusSmpError, match=match) as caught:
        lab.train(run, when, then, workers)
    error = caught.value
    assert error.hint, "it says what to do"
    # as at the end of the process: the frames that the error holds on to let go of the workers, and those of the lock
    error.__traceback__ = error.__context__ = None
    del caught
    gc.collect()
    check_run(run)
    assert hidden(run) == [] and is_free(run)
    assert not multiprocessing.active_children()
    return error


def goes_on(lab, run, whole, workers=0) -> None:
    """The same command ends with the bytes of the run that nothing befell."""
    said = lab.train(run, workers=workers)
    assert said[0].startswith(("Continuing", "Calibrating")), said
    assert differences(run, whole) == [] and hidden(run) == []


@pytest.mark.parametrize(
    ("when", "free", "what"),
    [
        ("Training", 0, r"events\.out"),
        pytest.param("Training", 40_000_000, r"best\.safetensors", marks=pytest.mark.slow),
        pytest.param("epoch 1", 20_000_000, r"last\.ckpt", marks=pytest.mark.slow),
    ],
)
def test_a_disk_that_fills_up(lab, whole, disk, capfd, when, free, what):
    run = disk.folder / "run"
    befalls(lab, run, when, lambda: disk.leave(free), f"{what}.*: the disk is full")
    assert "Traceback" not in capfd.readouterr().err  # of another thread
    disk.give_room()
    if when == "epoch 1":
        goes_on(lab, run, whole)


WRITERS = {
    "metrics.csv": lambda folder: Run(folder).write_metrics([{"epoch": 1, "train_loss": 0.5}]),
    "last.ckpt": lambda folder: write_state(folder / "last.ckpt", {"history": ["x" * 10_000]}),
    "best.safetensors": lambda folder: write_checkpoint(folder / "best.safetensors", _small(), {}),
    "loss_curves.png": lambda folder: write_loss_curves(
        pd.DataFrame({"epoch": [1, 2], "train_loss": [2.0, 1.0], "lr": [1e-3, 1e-4], "val_dice_lesion": [0.1, 0.2]}),
        folder / "loss_curves.png",
    ),
    "events": lambda folder: [EventFile(folder, 1).add({"val/dice": 0.5}, step) for step in range(1, 1000)],
}  # fmt: skip


def _small():
    import torch

    return torch.nn.Linear(100, 100)


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("trouble", ["full", "read-only"])
def test_every_file_of_a_run_meets_a_full_and_a_protected_disk(disk, name, trouble):
    before = b"as it was"
    (disk.folder / name).write_bytes(before)
    disk.leave(0) if trouble == "full" else disk.protect(True)
    words = "the disk is full" if trouble == "full" else r"cannot be written \(Read-only file system\)"
    with pytest.raises(BusSmpError, match=words) as caught:
        WRITERS[name](disk.folder)
    assert caught.value.hint
    disk.give_room() if trouble == "full" else disk.protect(False)
    assert (disk.folder / name).read_bytes() == before
    assert hidden(disk.folder) == []


def freeze(folder: Path, wanted: bool) -> None:
    """Let nothing be made or renamed in a folder, not even by root; no mount can be made read-only while a run is in it."""
    done = subprocess.run(["chattr", "+i" if wanted else "-i", str(folder)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no folder can be made immutable here ({done.stderr.strip()})")


@pytest.mark.slow
def test_an_output_folder_that_becomes_read_only(lab, whole, tmp_path):
    (run := tmp_path / "run").mkdir()
    try:
        freeze(run, True)
        freeze(run, False)
        error = befalls(lab, run, "epoch 1", lambda: freeze(run, True), r"cannot be written \(")
        assert str(run) in error.what
        with pytest.raises(BusSmpError, match="cannot be written"):  # still so
            lab.train(run)
    finally:
        freeze(run, False)
    goes_on(lab, run, whole)


def test_an_output_folder_that_is_read_only(lab, disk):
    disk.protect(True)
    options = settings_options(lab.manifest.parents[1], *SETTINGS, f"runtime.cache={lab.cache}")
    result = invoke("train", "--out", disk.folder, "--run", "run", *options)
    assert result.exit_code == 1 and result.stderr.count("Error: ") == 1, result.stderr
    assert "cannot be written (Read-only file system)" in result.stderr


@contextlib.contextmanager
def moved(tree: Path):
    """Data that are elsewhere from the first call of what is yielded until the end of the block."""
    away = tree.with_name("away")
    try:
        yield lambda: tree.rename(away)
    finally:
        away.rename(tree)


def test_data_that_vanish_before_they_were_all_read(lab, tmp_path):
    with moved(lab.tree) as move:
        befalls(lab, tmp_path / "run", "Training", move, r"\.png: no such file")
        with pytest.raises(BusSmpError, match="is not there") as caught:
            lab.train(tmp_path / "run")
        assert "--root FOLDER" in caught.value.hint


def test_data_that_vanish_after_the_first_epoch_are_not_needed_again(lab, whole, tmp_path):
    """Every image is decoded and checked once a run: training images for the cache, validation images in the first epoch."""
    with moved(lab.tree) as move:
        lab.train(tmp_path / "run", "epoch 1", move)
    assert differences(tmp_path / "run", whole) == []


def kill_a_worker():
    os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)


def starve_the_workers():
    """Let them have no more memory than they have."""
    for child in multiprocessing.active_children():
        status = Path(f"/proc/{child.pid}/statm").read_text().split()
        now = int(status[0]) * resource.getpagesize()
        resource.prlimit(child.pid, resource.RLIMIT_AS, (now, now))


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize(
    ("then", "match"),
    [
        pytest.param(kill_a_worker, "data-loading process died", marks=pytest.mark.slow),
        (starve_the_workers, "data-loading process"),
    ],
)
def test_a_worker_that_is_killed_or_gets_no_memory(lab, whole, tmp_path, capfd, then, match):
    error = befalls(lab, tmp_path / "run", "epoch 1", then, match, workers=2)
    assert "runtime.workers=0" in error.hint
    assert "Traceback" not in capfd.readouterr().err
    goes_on(lab, tmp_path / "run", whole)


@contextlib.contextmanager
def limited(group: Path):
    """A memory cgroup (version 1) in which whoever takes more is killed."""
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no memory cgroup can be made here ({error.strerror})")
    try:
        yield
    finally:
        group.rmdir()


@pytest.mark.slow
def test_a_worker_that_the_system_kills_for_its_memory(lab, tmp_path):
    group = Path("/sys/fs/cgroup/memory") / f"bus-smp-{os.getpid()}"
    with limited(group):

        def shrink():
            (group / "memory.limit_in_bytes").write_text("200K")
            (group / "cgroup.procs").write_text(str(multiprocessing.active_children()[0].pid))

        error = befalls(lab, tmp_path / "run", "epoch 1", shrink, "data-loading process died", workers=1)
        assert "memory may be full" in error.hint


@pytest.mark.parametrize("number", [5, 107, 116])  # EIO; ENOTCONN and ESTALE as Linux numbers them
def test_a_disk_that_goes_away_is_one_clear_error(tmp_path, number):
    with pytest.raises(BusSmpError, match=r"cannot be written") as caught, replacing(tmp_path / "x") as _:
        raise OSError(number, os.strerror(number))
    assert "run the command again" in caught.value.hint
