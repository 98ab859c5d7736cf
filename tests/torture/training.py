"""A real training in a process of its own, watched from outside, and stopped at a chosen moment of its work.

Its moment is known from the changes of its files, which the system reports at once (inotify), and from what it prints.
Linux only.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import select
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]

# Moments of a training. "start" ends when it prints that it trains.
MOMENTS = (
    "start", "cache", "step", "validation", "best.safetensors", "metrics.csv", "curves", "last.ckpt", "calibration",
)  # fmt: skip

_OPEN, _MODIFY, _MOVED_TO, _CREATE = 0x20, 0x2, 0x80, 0x100
# A file that is being replaced, by its hidden name; or by its own name, if it were written in place.
_WRITTEN = re.compile(
    r"\.?(last|best|metrics|loss_curves|dice_curve)(\.[0-9a-f]{8})?\.(ckpt|safetensors|csv|png)"
)
_PARTS = {
    "last": "last.ckpt",
    "best": "best.safetensors",
    "metrics": "metrics.csv",
    "loss_curves": "curves",
    "dice_curve": "curves",
}


@dataclass(frozen=True)
class Training:
    """A training that can be started anywhere and any number of times."""

    # The images as downloaded.
    tree: Path
    manifests: Path
    settings: tuple[str, ...]
    # The folder that holds the package bus_smp.
    code: Path = CHECKOUT

    def start(self, run: Path, cache: Path, workers: int, **environment: str) -> subprocess.Popen:
        """Start or continue the training in the folder ``run``, as leader of a session; stderr is a pipe."""
        return self.command(
            "train", "--out", run.parent, "--run", run.name, *self.options(cache, workers), **environment
        )

    def options(self, cache: Path, workers: int) -> list[str]:
        """The ``--set`` options."""
        own = (f"data.manifests={self.manifests}", f"runtime.cache={cache}", f"runtime.workers={workers}")
        return [part for setting in (*self.settings, *own) for part in ("--set", setting)]

    def command(self, *arguments: object, **environment: str) -> subprocess.Popen:
        """Start any ``bus-smp`` command with this code."""
        hear_ctrl_c()
        return subprocess.Popen(
            [sys.executable, "-m", "bus_smp", *map(str, arguments)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            cwd=self.manifests.parent,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": str(self.code), "OMP_NUM_THREADS": "1", **environment},
        )

    @property
    def images(self) -> Path:
        """The folder whose files validation opens; training itself reads the cache."""
        return self.tree / "images"


class Watched:
    """A running training and where it is in its work, ``at``, one of ``MOMENTS``, ``between`` or ``end``."""

    def __init__(self, training: Training, run: Path, cache: Path, workers: int) -> None:
        for folder in (run, cache):
            folder.mkdir(parents=True, exist_ok=True)
        self._folders: dict[int, Path] = {}
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._events = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._events < 0:
            raise OSError(ctypes.get_errno(), "inotify")
        self._watch(run, _CREATE | _MODIFY | _MOVED_TO)
        self._watch(cache, _CREATE | _MOVED_TO)
        self._watch(training.images, _OPEN)
        self._run, self._cache, self._images = run, cache, training.images
        self.at = "start"
        self.since = time.monotonic()
        self.occurred = dict.fromkeys(MOMENTS, 0) | {"start": 1}
        self.shown = ""
        self._calibrates = False
        self.process = training.start(run, cache, workers)
        self.pid = self.process.pid
        # The watcher has priority, or short moments would be over before it looks.
        os.setpriority(os.PRIO_PROCESS, self.pid, min(19, os.nice(0) + 5))
        os.set_blocking(self.process.stderr.fileno(), False)

    def _watch(self, folder: Path, mask: int) -> None:
        number = self._libc.inotify_add_watch(self._events, os.fsencode(folder), mask)
        if number < 0:
            raise OSError(ctypes.get_errno(), "inotify", str(folder))
        self._folders[number] = folder

    def close(self) -> None:
        """Stop watching."""
        os.close(self._events)
        self.process.stderr.close()

    def ended(self) -> bool:
        """Whether the process is over."""
        return self.process.poll() is not None

    def look(self, seconds: float) -> None:
        """Wait until something happens, at most ``seconds``, and record it."""
        sources = [self._events] if self.process.stderr.closed else [self._events, self.process.stderr]
        select.select(sources, [], [], max(0.0, seconds))
        self._read_output()
        for folder, mask, name in self._happened():
            self._note(folder, mask, name)

    def _read_output(self) -> None:
        while data := self._read(self.process.stderr.fileno()):
            before, self.shown = self.shown, self.shown + data.decode(errors="replace")
            new = self.shown[before.rfind("\n") + 1 :]
            if re.search(r"^(Training|Continuing) .*\n", new, re.M):
                self._enter("step")
            if re.search(r"^Calibrating .*\n", new, re.M):
                self._calibrates = True
                self._enter("calibration")
            if re.search(r"^Next: .*\n", new, re.M):
                self._enter("end")

    @staticmethod
    def _read(descriptor: int) -> bytes:
        try:
            return os.read(descriptor, 1 << 16)
        except BlockingIOError:
            return b""

    def _happened(self) -> Iterator[tuple[Path, int, str]]:
        data = self._read(self._events)
        while data:
            number, mask, _, length = struct.unpack_from("iIII", data)
            yield self._folders.get(number, Path()), mask, os.fsdecode(data[16 : 16 + length].rstrip(b"\0"))
            data = data[16 + length :]

    def _note(self, folder: Path, mask: int, name: str) -> None:
        if folder == self._cache:
            if name.endswith(".unfinished") or (mask & _CREATE and not name.startswith(".")):
                self._enter("cache")
            elif mask & _MOVED_TO and not name.startswith("."):
                self._enter("start")
        elif self._calibrates or self.at in ("start", "cache", "end"):
            return
        elif folder == self._images:
            if self.at == "step":
                self._enter("validation")
        elif written := _WRITTEN.fullmatch(name):
            part = _PARTS[written[1]]
            if not mask & _MOVED_TO:
                self._enter(part)
            else:
                self._enter("step" if part == "last.ckpt" else "between")

    def _enter(self, moment: str) -> None:
        if moment != self.at:
            self.at, self.since = moment, time.monotonic()
            if moment in self.occurred:
                self.occurred[moment] += 1

    def freeze_at(self, moment: str, occurrence: int, delay: Callable[[], float], deadline: float) -> bool:
        """Let the training go on until it is at ``moment`` for the ``occurrence``-th time, and ``delay()`` longer; then freeze it.

        Returns:
            Whether it is frozen. If not, it ended, is at its end, or did not reach the moment before ``deadline``.
        """
        with _first_in_line():
            while time.monotonic() < deadline:
                self.look(0.05)
                if self.ended() or self.at == "end":
                    return False
                if self.at != moment or self.occurred[moment] < occurrence:
                    continue
                due, entered = self.since + delay(), self.since
                while time.monotonic() < due and self.since == entered:
                    self.look(due - time.monotonic())
                os.kill(self.pid, signal.SIGSTOP)
                self.look(0.02)
                if self.at == moment and not self.ended():
                    return True
                os.kill(self.pid, signal.SIGCONT)
        return False

    def finish(self, seconds: float) -> int | None:
        """Let it go on to its end; its exit code, None if that takes longer."""
        deadline = time.monotonic() + seconds
        while not self.ended() and time.monotonic() < deadline:
            self.look(0.05)
        self._read_output()
        return self.process.returncode


def hear_ctrl_c() -> None:
    """Undo that SIGINT is ignored: a shell ignores it in what it starts with ``&``, and processes inherit that."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def catches_sigterm(pid: int) -> bool:
    """Whether the process handles SIGTERM itself; at its very beginning it does not, and the system ends it."""
    status = Path(f"/proc/{pid}/status").read_text()
    return bool(int(re.search(r"SigCgt:\s*(\w+)", status)[1], 16) >> (signal.SIGTERM - 1) & 1)


@contextlib.contextmanager
def _first_in_line() -> Iterator[None]:
    """Where that is allowed, run as soon as something happens, however busy the machine is."""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(1))
    except OSError:
        yield
        return
    try:
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def of_session(leader: int) -> list[int]:
    """The processes that descend from a session's leader and are alive."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == leader and fields[0] != "Z":
            found.append(int(entry.name))
    return found
