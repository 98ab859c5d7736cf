"""Checkpoints: a safetensors file whose header holds everything needed to use the weights.

Layout (https://github.com/huggingface/safetensors#format): 8 bytes header length (little-endian), the
header as JSON, the tensors. Our own part of it is one metadata key, ``bus_smp``, with JSON. Loading never
unpickles. The module's top level is standard library only, so that ``bus-smp info`` needs no torch.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bus_smp.errors import BusSmpError, CheckpointError
from bus_smp.system.files import open_regular, replacing

if TYPE_CHECKING:
    import torch

    from bus_smp.data.manifest import Manifest
    from bus_smp.model.hybrid import HybridResNet50

# 1 is also what a checkpoint has whose images are stretched and in colour, which is all that earlier versions can do.
FORMAT = 2
_KEY = "bus_smp"
_UNUSED = "decoder.blocks.4.attention1."
# A ResNet-152's has 150 kB; JSON takes some twenty times its size in memory.
_MAX_HEADER_BYTES = 10_000_000


def _is_number(value: object, least: float, most: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most


def _is_whole(value: object, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most


def _are_channels(value: object, least: float) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(_is_number(one, least, 1) for one in value)


def _is_calibration(value: object) -> bool:
    if not isinstance(value, dict):
        return value is None
    point, head = value.get("operating_point") or {}, value.get("image") or {"temperature": 1}
    return (
        _is_number(value.get("temperature"), 1e-3, 1e3)
        and isinstance(point, dict)
        and isinstance(head, dict)
        and _is_number(head.get("temperature"), 1e-3, 1e3)
        and all(
            one is None or _is_number(one, 0, 2)
            for one in (
                value.get("threshold"),
                *(point.get(key) for key in ("least_probability", "least_area", "most_normal")),
            )
        )
    )


def _is_reference(value: object) -> bool:
    if not isinstance(value, dict) or value.get("version") != 1:
        return isinstance(value, dict)
    try:
        features = base64.b64decode(value["features"], validate=True)
    except (KeyError, TypeError, ValueError):
        return False
    # rows of 128 numbers of 2 bytes
    return (
        _is_number(value.get("limit"), 1e-9, 1e9) and 0 < len(features) < 300_000 and len(features) % 256 == 0
    )


def _are_ancestors(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(one, dict)
        and isinstance(one.get("run"), str)
        and isinstance(one.get("manifest_sha256"), str)
        # it is part of a file's name
        and re.fullmatch("[0-9a-f]{64}", one["manifest_sha256"])
        for one in value
    )


# What a header must hold, because the weights are used by it, and which values are possible.
_FACTS: dict[str, Callable[[Any], bool]] = {
    "model": lambda value: isinstance(value, dict),
    "size": lambda value: _is_whole(value, 1, 4096),
    "mean": lambda value: _are_channels(value, 0),
    "std": lambda value: _are_channels(value, 1e-6),
    "epoch": lambda value: _is_whole(value, 1, 10**9),
    "precision": lambda value: value in ("fp32", "bf16", "fp16"),
    "datasets": lambda value: isinstance(value, list) and all(isinstance(name, str) for name in value),
}
_MORE_FACTS: dict[str, Callable[[Any], bool]] = {
    "calibration": _is_calibration,
    "ancestors": _are_ancestors,
    "ood": _is_reference,
    "geometry": lambda value: value in ("stretch", "letterbox"),
    "grey": lambda value: isinstance(value, bool),
    "score": lambda value: (
        isinstance(value, dict) and all(one is None or _is_number(one, -1e9, 1e9) for one in value.values())
    ),
}


def write_checkpoint(path: str | Path, model: torch.nn.Module, about: dict) -> None:
    """Write the weights as float32 and ``about``, all or nothing; equal input gives equal bytes.

    Args:
        path: ends in ``.safetensors``.
        model: on any device and in any memory format or precision.
        about: JSON values, among them those of ``_FACTS``; ``about["model"]`` holds the constructor's arguments.
            NaN and infinity become null, for JSON has none. ``format`` is added.

    Raises:
        BusSmpError: if the disk is full or the folder cannot be written to.
    """
    from safetensors.torch import save

    plain = about.get("geometry", "stretch") == "stretch" and not about.get("grey")
    about = {**about, "format": 1 if plain else FORMAT}
    about = json.loads(json.dumps(about), parse_constant=lambda _: None)
    # One metadata key, because safetensors writes several in random order.
    data = save(_plain_weights(model), metadata={_KEY: json.dumps(about, sort_keys=True)})
    with replacing(Path(path)) as temporary:
        temporary.write_bytes(data)


def read_header(path: str | Path) -> dict:
    """Return the ``about`` of ``write_checkpoint``, without reading the weights.

    Raises:
        CheckpointError: if the file is missing, truncated, damaged, of a newer version, or something else.
    """
    return _read_layout(Path(path))[0]


def check_trained_on(path: str | Path, header: dict, manifest: Manifest) -> None:
    """Refuse weights next to a manifest that they were not trained on: leaks could not be found then.

    Args:
        path: of the weights; named in the error.
        header: of the weights.

    Raises:
        CheckpointError: if the manifest holds other rows; the folder of its images does not matter.
    """
    if header.get("manifest_sha256") != manifest.sha256:
        raise CheckpointError(
            f"{path}: these weights were not trained on the manifest.csv next to them; one of the two was replaced",
            hint="restore the file that belongs here, or train again: bus-smp train --run NAME",
        )


def load_model(path: str | Path, device: str | torch.device = "cpu") -> tuple[HybridResNet50, dict]:
    """Return the model in evaluation mode on ``device``, and the header.

    Raises:
        CheckpointError: as ``read_header``, and if the weights do not fit the model that the header describes.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from bus_smp.model.encoders import compare_weights
    from bus_smp.model.hybrid import HybridResNet50

    path = Path(path)
    header = read_header(path)
    try:
        # no random weights are drawn only to be overwritten
        with torch.device("meta"):
            model = HybridResNet50(**{**header["model"], "encoder_weights": None})
    except (KeyError, TypeError, ValueError, RuntimeError, ArithmeticError, BusSmpError) as error:
        reason = " ".join(str(error.what if isinstance(error, BusSmpError) else error).split())[:300]
        raise CheckpointError(f"{path}: describes no model that this version knows ({reason})") from error
    try:
        weights = load_file(path)
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: is damaged ({error})") from error
    # earlier versions kept an attention module that no forward pass uses
    weights = {name: value for name, value in weights.items() if not name.startswith(_UNUSED)}
    if problems := compare_weights(model.state_dict(), weights):
        raise CheckpointError(f"{path}: the weights do not fit the model it describes: {problems}")
    if {name for name, _ in model.named_buffers()} <= weights.keys():
        model.to_empty(device=device)
    else:
        # Some encoders have buffers that no file holds; they are computed where the network is built for real.
        with torch.random.fork_rng(devices=[]):
            model = HybridResNet50(**{**header["model"], "encoder_weights": None}).to(device)
    # Copied, not assigned: a file's tensors are not aligned like torch's own, and kernels round by alignment.
    model.load_state_dict(weights)
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
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size == 0:
                raise CheckpointError(f"{path}: is empty")
            prefix = file.read(9)
            # A header is JSON: this distinguishes a truncated checkpoint from any other file.
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
        json.dumps(
            [about, tensors], ensure_ascii=False
        ).encode()  # fails on half a character, which JSON can spell
        spans = sorted(map(_span, tensors.values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise alien from None
    if not isinstance(about, dict) or not isinstance(about.get("format"), int):
        raise alien
    if about["format"] > FORMAT:
        raise CheckpointError(
            f"{path}: has format {about['format']}, this version reads up to {FORMAT}",
            hint="upgrade bus_smp",
        )
    for name, is_possible in (_FACTS | {key: _MORE_FACTS[key] for key in about.keys() & _MORE_FACTS}).items():
        if not is_possible(about.get(name)):
            found = repr(about[name])[:100] if name in about else "nothing"
            raise CheckpointError(f"{path}: cannot be used: as {name} its header gives {found}")
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


def _span(tensor: dict) -> tuple[int, int]:
    """Return where a tensor begins and ends, from its entry in the header."""
    begin, stop = tensor["data_offsets"]
    if not (type(begin) is type(stop) is int and isinstance(tensor["shape"], list)):
        raise ValueError("no offsets")
    return begin, stop


def _truncated(path: Path, size: int, expected: int) -> CheckpointError:
    return CheckpointError(
        f"{path}: is truncated: {size} of {expected} bytes", hint="copy or download it again"
    )
