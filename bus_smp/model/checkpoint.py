"""Checkpoints: a safetensors file whose header says everything needed to use the weights.

Layout (https://github.com/huggingface/safetensors#format): 8 bytes header length (little-endian), the
header as JSON, the tensors. Our own part of it is one metadata key, ``bus_smp``, with JSON. Loading never
unpickles. The module's top level is standard library only, so that ``bus-smp info`` needs no torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING

from bus_smp.errors import BusSmpError, CheckpointError
from bus_smp.files import replacing

if TYPE_CHECKING:
    import torch

    from bus_smp.model.hybrid import HybridResNet50

FORMAT = 1
_KEY = "bus_smp"
_MAX_HEADER_BYTES = 100_000_000  # safetensors' own limit


def write_checkpoint(path: str | Path, model: torch.nn.Module, about: dict) -> None:
    """Write the weights as float32 and ``about``, all or nothing; equal input gives equal bytes.

    Args:
        path: ends in ``.safetensors``.
        model: on any device and in any memory format or precision.
        about: JSON values; ``about["model"]`` holds the constructor's arguments. NaN and infinity become
            null, for JSON has none. ``format`` is added.

    Raises:
        BusSmpError: if the disk is full or the folder cannot be written to.
    """
    from safetensors.torch import save

    about = json.loads(json.dumps({**about, "format": FORMAT}), parse_constant=lambda _: None)
    # One metadata key, because safetensors writes several in random order.
    data = save(_plain_weights(model), metadata={_KEY: json.dumps(about, sort_keys=True)})
    with replacing(Path(path)) as temporary:
        temporary.write_bytes(data)


def read_header(path: str | Path) -> dict:
    """Return what ``write_checkpoint`` was told as ``about``, without reading the weights.

    Raises:
        CheckpointError: if the file is missing, truncated, damaged, of a newer version, or something else.
    """
    return _read_layout(Path(path))[0]


def load_model(path: str | Path, device: str | torch.device = "cpu") -> tuple[HybridResNet50, dict]:
    """Return the model in evaluation mode on ``device``, and the header.

    Raises:
        CheckpointError: as ``read_header``, and if the weights do not fit the model that the header describes.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from bus_smp.model.hybrid import HybridResNet50, compare_weights

    path = Path(path)
    header = read_header(path)
    try:
        with torch.device("meta"):  # no random weights drawn only to be overwritten
            model = HybridResNet50(**{**header["model"], "encoder_weights": None})
    except (KeyError, TypeError, BusSmpError) as error:
        reason = error.what if isinstance(error, BusSmpError) else error
        raise CheckpointError(f"{path}: describes no model that this version knows ({reason})") from error
    try:
        weights = load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"{path}: is damaged ({error})") from error
    if problems := compare_weights(model.state_dict(), weights):
        raise CheckpointError(f"{path}: the weights do not fit the model it describes: {problems}")
    # Copied, not assigned: a file's tensors are not aligned as torch's own, and kernels round by alignment.
    model.to_empty(device=device).load_state_dict(weights)
    return model.eval(), header


def weights_sha256(source: str | Path | torch.nn.Module) -> str:
    """Return the SHA-256 of all names, shapes and values, the same for a model and for its checkpoint.

    Two runs ended bit-identical if and only if these agree; ``about`` takes no part.

    Raises:
        CheckpointError: as ``read_header``.
    """
    digest = hashlib.sha256()
    if isinstance(source, str | Path):
        _, tensors, start = _read_layout(Path(source))
        with Path(source).open("rb") as file:
            for name in sorted(tensors):
                begin, end = tensors[name]["data_offsets"]
                file.seek(start + begin)
                digest.update(f"{name} {tensors[name]['shape']}\0".encode())
                digest.update(file.read(end - begin))
    else:
        for name, tensor in sorted(_plain_weights(source).items()):
            digest.update(f"{name} {list(tensor.shape)}\0".encode())
            digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def _plain_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the state dict on the CPU, contiguous, floating point as float32."""

    def plain(tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.detach().cpu()
        return (tensor.float() if tensor.is_floating_point() else tensor).contiguous()

    return {name: plain(tensor) for name, tensor in model.state_dict().items()}


def _read_layout(path: Path) -> tuple[dict, dict[str, dict], int]:
    """Return the header's ``about``, each tensor's dtype, shape and offsets, and where the tensors begin."""
    alien = CheckpointError(
        f"{path}: is not a bus_smp checkpoint", hint="expected outputs/<run>/best.safetensors"
    )
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size == 0:
                raise CheckpointError(f"{path}: is empty")
            prefix = file.read(9)
            # A header is JSON: this tells a truncated checkpoint from any other file.
            if len(prefix) < 9 or prefix[8:] != b"{":
                raise alien
            (length,) = struct.unpack("<Q", prefix[:8])
            if length > _MAX_HEADER_BYTES:
                raise alien
            start = 8 + length
            if start > size:
                raise _truncated(path, size, start)
            text = prefix[8:] + file.read(length - 1)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file", hint=alien.hint) from None
    except IsADirectoryError:
        raise CheckpointError(f"{path}: is a folder", hint=alien.hint) from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None

    try:
        tensors = json.loads(text)
        about = json.loads(tensors.pop("__metadata__")[_KEY])
        spans = sorted(
            (int(begin), int(stop)) for begin, stop in (t["data_offsets"] for t in tensors.values())
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise alien from None
    if not isinstance(about, dict) or not isinstance(about.get("format"), int):
        raise alien
    if about["format"] > FORMAT:
        raise CheckpointError(
            f"{path}: has format {about['format']}, this version reads up to {FORMAT}",
            hint="upgrade bus_smp",
        )
    end = 0
    for begin, stop in spans:
        if begin != end or stop < begin:
            raise CheckpointError(f"{path}: is damaged: its header leaves gaps between tensors")
        end = stop
    if size < start + end:
        raise _truncated(path, size, start + end)
    if size > start + end:
        raise CheckpointError(f"{path}: is damaged: {size - start - end} bytes too long")
    return about, tensors, start


def _truncated(path: Path, size: int, expected: int) -> CheckpointError:
    return CheckpointError(
        f"{path}: is truncated: {size} of {expected} bytes", hint="copy or download it again"
    )
