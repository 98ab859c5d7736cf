"""Continuing a run: its state on disk, and the settings and data that identify it."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from bus_smp.config import Settings
from bus_smp.data.manifest import Manifest
from bus_smp.errors import CheckpointError
from bus_smp.model.checkpoint import read_header, weights_sha256
from bus_smp.model.tensor_files import load_tensors
from bus_smp.system import ranks
from bus_smp.system.engine import Engine
from bus_smp.system.environment import cpu_capability, device_name
from bus_smp.system.files import replacing
from bus_smp.training.progress import Progress

# 2: the state names the run that it belongs to
STATE_FORMAT = 2


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
        path: of the best weights. A kill may leave weights of the epoch after ``progress``; that epoch is repeated.
        identity: of the run, from ``run_identity``.

    Raises:
        CheckpointError: if the file is missing, damaged, or holds other weights.
    """
    if not progress.best_epoch:
        return
    found = "is gone: it held"
    if path.is_file():
        header = read_header(path)
        theirs = {
            "settings": json.dumps(header.get("settings"), sort_keys=True),
            "manifest_sha256": header.get("manifest_sha256"),
        }
        is_next = theirs == identity and header["epoch"] > progress.done
        if is_next or weights_sha256(path) == progress.best_weights:
            return
        found = "does not hold"
    raise CheckpointError(
        f"{path} {found} this run's weights of epoch {progress.best_epoch}",
        hint="put it back, or delete the run folder to start again, or use --run NAME",
    )
