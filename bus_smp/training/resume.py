"""Continuing a run: its state on disk, and the settings and data that identify it."""

import io
import json
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from bus_smp.config import Settings, differing_keys
from bus_smp.data.manifest import Manifest
from bus_smp.errors import BusSmpError, CheckpointError
from bus_smp.model.checkpoint import read_header, weights_sha256
from bus_smp.model.tensor_files import load_tensors
from bus_smp.system import ranks
from bus_smp.system.engine import Engine
from bus_smp.system.environment import cpu_capability, device_name
from bus_smp.system.files import replacing
from bus_smp.training.progress import Progress

# 2: the state names the run that it belongs to
STATE_FORMAT = 2


class StateWriter:
    """Writes the state of a run next to its steps, at most every so many seconds, and at the end.

    Args:
        path: of the state file.
        every: seconds between two writes; 0 writes each state before ``keep`` returns.
    """

    def __init__(self, path: Path, every: float) -> None:
        self._path, self._every = path, every
        self._due = time.monotonic() + every
        self._pool = ThreadPoolExecutor(1)
        self._writing: Future | None = None
        self._kept: dict[str, Any] | None = None

    def __enter__(self) -> "StateWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            # also after Ctrl-C: what was reached is worth the second it takes
            self.begin_write()
            self._wait()
        except BusSmpError:
            # the error that ended the training is the one to show
            if kind is None:
                raise
        finally:
            self._pool.shutdown()

    def keep(self, state: dict[str, Any]) -> None:
        """Take a copy of the state after an epoch, and write it if it is time.

        Raises:
            BusSmpError: if this write or the one before failed.
        """
        if self._writing is not None and self._writing.done():
            self._wait()
        self._kept = _copied(state)
        if time.monotonic() >= self._due:
            self.begin_write()
        if not self._every:
            self._wait()

    def begin_write(self) -> None:
        """Start to write the newest state, if it is not written yet."""
        if self._kept is None:
            return
        self._wait()
        self._due = time.monotonic() + self._every
        self._writing = self._pool.submit(write_state, self._path, self._kept)
        self._kept = None

    def _wait(self) -> None:
        if self._writing is not None:
            try:
                self._writing.result()
            finally:
                self._writing = None


def _copied(value: Any) -> Any:
    """The same value, whose tensors no later step changes; on a GPU the copy stays there."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: _copied(part) for key, part in value.items()}
    return type(value)(map(_copied, value)) if isinstance(value, list | tuple) else value


def write_state(path: Path, state: dict[str, Any]) -> None:
    """Replace the state file of a run. ``state`` holds only tensors, numbers, texts, lists and dicts."""
    # through memory: torch's own file writer hides a full disk behind an unspecific error
    buffer = io.BytesIO()
    torch.save({"format": STATE_FORMAT, **state}, buffer)
    with replacing(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def read_state(path: Path, engine: Engine) -> dict[str, Any] | None:
    """The state after the last finished epoch, or None if no epoch is finished.

    Raises:
        CheckpointError: if the file is damaged. Nothing in it is ever executed.
    """
    if not path.exists():
        return None
    try:
        state = load_tensors(path, engine.device)
    except CheckpointError as error:
        raise CheckpointError(
            error.what, hint="delete the run folder to start again, or use --run NAME"
        ) from None
    if not isinstance(state, dict) or state.get("format") != STATE_FORMAT:
        raise CheckpointError(f"{path} was written by another version of bus-smp")
    return state


def run_identity(settings: Settings, manifest: Manifest) -> dict[str, str]:
    """What a run is: ``settings`` (without ``runtime``, as JSON) and ``manifest_sha256``.

    The state and the weights record it, so that those of another run are never used.
    """
    chosen = settings.model_dump(mode="json", exclude={"runtime": True})
    # so that a run from before this setting keeps its identity
    if settings.model.init is None:
        del chosen["model"]["init"]
    return {
        "settings": json.dumps(chosen, sort_keys=True),
        "manifest_sha256": manifest.sha256,
    }


def is_same_run(identity: Mapping[str, str], settings: Any, manifest_sha256: Any) -> bool:
    """Whether settings and manifest that a file records are those of ``identity``.

    Args:
        settings: a dict; a key that did not exist when it was written has its default.
    """
    now = Settings.model_validate(json.loads(identity["settings"]))
    try:
        before = Settings.model_validate(settings)
    # also pydantic's
    except ValueError:
        return False
    return manifest_sha256 == identity["manifest_sha256"] and not differing_keys(before, now)


def describe_place(engine: Engine) -> dict[str, str]:
    """What the bits of a result depend on, besides settings and data: device, precision, threads, torch, hardware."""
    return {
        "device": engine.device.type,
        "precision": engine.precision,
        "threads": str(torch.get_num_threads()),
        # as plain text, because torch's own version type is refused when the state is loaded
        "torch": str(torch.__version__),
        "processes": str(ranks.count()),
        "hardware": f"{device_name(engine)} ({cpu_capability()})",
    }


def check_best(path: Path, identity: Mapping[str, str], progress: Progress) -> None:
    """Refuse to continue if the file of the best weights does not hold this run's best weights.

    Args:
        path: of the best weights. A kill may leave weights of an epoch after ``progress``; that epoch is repeated.
        identity: of the run, from ``run_identity``.

    Raises:
        CheckpointError: if the file is missing, damaged, or holds other weights.
    """
    if not progress.best_epoch:
        return
    found = "is gone: it held"
    if path.is_file():
        header = read_header(path)
        same = is_same_run(identity, header.get("settings"), header.get("manifest_sha256"))
        is_next = same and header["epoch"] > progress.done
        if is_next or weights_sha256(path) == progress.best_weights:
            return
        found = "does not hold"
    raise CheckpointError(
        f"{path} {found} this run's weights of epoch {progress.best_epoch}",
        hint="put it back, or delete the run folder to start again, or use --run NAME",
    )
