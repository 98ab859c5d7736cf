"""What makes a run this run and no other, so that files of another one are never taken for its own."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch

from bus_smp.config import Settings
from bus_smp.data.manifest import Manifest
from bus_smp.errors import CheckpointError
from bus_smp.model.checkpoint import read_header, weights_sha256
from bus_smp.system import ranks
from bus_smp.system.engine import Engine
from bus_smp.system.environment import cpu_capability, device_name
from bus_smp.training.progress import Progress


def identity_of(settings: Settings, manifest: Manifest) -> dict[str, str]:
    """The settings but for ``runtime``, as JSON, and the manifest's hash: ``settings`` and ``manifest_sha256``."""
    chosen = {key: value for key, value in settings.model_dump(mode="json").items() if key != "runtime"}
    return {
        "settings": json.dumps(chosen, sort_keys=True),
        "manifest_sha256": manifest.sha256,
    }


def place_of(engine: Engine) -> dict[str, str]:
    """What the bits of a result depend on beside settings and data."""
    return {
        "device": engine.device.type,
        "precision": engine.precision,
        "threads": str(torch.get_num_threads()),
        "torch": str(torch.__version__),  # plain text: its own type is refused when loaded
        "processes": str(ranks.count()),
        "hardware": f"{device_name(engine)} ({cpu_capability()})",
    }


def check_best(path: Path, identity: Mapping[str, str], progress: Progress) -> None:
    """Refuse to go on where the best weights so far are not the run's any more.

    Args:
        path: of ``best.safetensors``. A kill may leave weights of the epoch after ``progress``, which is repeated.
        identity: of the run.

    Raises:
        CheckpointError: if the file is gone, damaged, or holds other weights.
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
