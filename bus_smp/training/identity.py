"""What makes a run this run and no other, so that files of another one are never taken for its own."""

import json
from collections.abc import Mapping
from pathlib import Path

from bus_smp.config import Settings
from bus_smp.data.manifest import Manifest
from bus_smp.errors import CheckpointError
from bus_smp.model.checkpoint import read_header, weights_sha256


def identity_of(settings: Settings, manifest: Manifest) -> dict[str, str]:
    """The settings but for ``runtime``, as JSON, and the manifest's hash: ``settings`` and ``manifest_sha256``."""
    chosen = {key: value for key, value in settings.model_dump(mode="json").items() if key != "runtime"}
    return {
        "settings": json.dumps(chosen, sort_keys=True),
        "manifest_sha256": manifest.sha256,
    }


def check_best(path: Path, identity: Mapping[str, str], weights: str, epoch: int, done: int) -> None:
    """Refuse to go on where the best weights so far are not the run's any more.

    Args:
        path: of ``best.safetensors``.
        identity: of the run.
        weights: what ``weights_sha256`` said of the best weights.
        epoch: when they were the best.
        done: finished epochs. A kill may leave weights of the next one, which is repeated.

    Raises:
        CheckpointError: if the file is gone, damaged, or holds other weights.
    """
    found = "is gone: it held"
    if path.is_file():
        header = read_header(path)
        theirs = {
            "settings": json.dumps(header.get("settings"), sort_keys=True),
            "manifest_sha256": header.get("manifest_sha256"),
        }
        if (theirs == identity and header["epoch"] > done) or weights_sha256(path) == weights:
            return
        found = "does not hold"
    raise CheckpointError(
        f"{path} {found} this run's weights of epoch {epoch}",
        hint="put it back, or delete the run folder to start again, or use --run NAME",
    )
