"""Encoders of segmentation_models_pytorch and timm, with random weights, ImageNet's or those of a local file."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from segmentation_models_pytorch.encoders import encoders, get_encoder
from torch import Tensor, nn

from bus_smp.errors import CheckpointError, ConfigError
from bus_smp.model.pretrained import RANDOM_WEIGHTS, load_imagenet
from bus_smp.model.tensor_files import load_tensors
from bus_smp.system.files import open_regular
from bus_smp.text import did_you_mean, shortened

_WAYS_OUT = f"{RANDOM_WEIGHTS}, or from a local file: --set model.encoder_weights=path/to/file"


def check_encoder(name: str) -> None:
    """Refuse an encoder whose features are not what the decoder needs, before anything is downloaded.

    Raises:
        ConfigError: naming encoders that fit.
    """
    hint = (
        "some that fit: resnet18, resnet50, efficientnet-b0, mobilenet_v2, "
        "tu-tf_efficientnet_lite0, tu-mobilenetv3_large_100, tu-regnety_002"
    )
    is_known = isinstance(name, str) and (
        timm.is_model(name.removeprefix("tu-")) if name.startswith("tu-") else name in encoders
    )
    if not is_known:
        near = did_you_mean(str(name), [*encoders, *(f"tu-{one}" for one in timm.list_models())])
        raise ConfigError(f"model.encoder_name={name} is unknown", hint=f"{near} {hint}".strip())
    # Neither multiple of 32 nor square: some networks work only with multiples.
    size = (75, 101)
    try:
        # On this device nothing is computed and no random number is drawn. Checkpoints are loaded through it, too.
        with torch.device("meta"), torch.no_grad():
            encoder = get_encoder(name, weights=None).eval()
            found = [tuple(feature.shape[1:]) for feature in encoder(torch.empty(1, 3, *size))[1:]]
    except Exception as error:  # smp and timm raise many types
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ConfigError(
            f"model.encoder_name={name} does not fit the decoder ({reason})", hint=hint
        ) from error
    # Rounded up or down: the decoder takes the size of each feature as it is.
    fits = len(found) == 5 and all(
        channels > 0
        and all(have in (whole // scale, -(-whole // scale)) for have, whole in zip(shape, size, strict=True))
        for (channels, *shape), scale in zip(found, (2, 4, 8, 16, 32), strict=True)
    )
    if not fits:
        raise ConfigError(
            f"model.encoder_name={name} does not fit the decoder, which needs features at 1/2, 1/4, 1/8, 1/16 and "
            f"1/32 of the image's size: of {size[0]} x {size[1]} px it makes "
            + ", ".join(f"{height} x {width} ({channels} channels)" for channels, height, width in found),
            hint=hint,
        )


def load_encoder(name: str, weights: str | Path | None) -> tuple[nn.Module, str]:
    """Return the encoder with random weights (None), ImageNet's, or those of a file; and in words which they are.

    Raises:
        CheckpointError: if the download or the file fails, or the file holds another network.
    """
    if weights is None:
        return get_encoder(name, weights=None), "random"
    if weights == "imagenet":
        encoder, origin = load_imagenet(name)
        return encoder, f"ImageNet, {origin}"
    path = Path(weights).expanduser()
    encoder = get_encoder(name, weights=None)
    expected = encoder.state_dict()
    # Old files lack batch norm's counters, which nothing here reads.
    counters = {key: value for key, value in expected.items() if key.endswith("num_batches_tracked")}
    state = _read_encoder_weights(path)
    for inner in _without_prefixes(state):
        if not compare_weights(expected, counters | inner):
            encoder.load_state_dict(counters | inner)
            return encoder, f"the file {path.name}"
        # a file as the libraries themselves distribute it: with a classifier, or under other names
        if (loaded := _load_as_published(name, encoder, inner)) is not None:
            return loaded, f"the file {path.name}"
    # the innermost network is the one to compare with
    raise CheckpointError(
        f"{path}: does not fit the encoder {name}: {compare_weights(expected, counters | inner)}",
        hint=_WAYS_OUT,
    )


def _without_prefixes(state: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Yield the weights as they are, then without what a wrapper or a larger network puts in front of their names."""
    yield state
    for prefix in ("module.", "model.", "encoder."):
        inner = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        if inner:
            yield from _without_prefixes(inner)
            return


def _load_as_published(name: str, encoder: nn.Module, state: dict[str, Tensor]) -> nn.Module | None:
    """Return the encoder with the weights of a whole classification network, as smp or timm load it; None if it is another one."""
    try:
        if not name.startswith("tu-"):
            encoder.load_state_dict(dict(state))
            return encoder
        with torch.device("meta"):
            whole = timm.create_model(name.removeprefix("tu-")).state_dict()
        # timm takes what fits and leaves the rest random, so the names are compared before
        if {key for key in whole if not key.endswith("num_batches_tracked")} <= state.keys() <= whole.keys():
            return get_encoder(name, weights=True, pretrained_cfg_overlay={"state_dict": dict(state)})
    except (RuntimeError, KeyError):
        # of another network
        pass
    return None


def _read_encoder_weights(path: Path) -> dict[str, Tensor]:
    """Read a state dict, bare or as ``state_dict`` of a training's state."""
    state: Any
    try:
        if path.suffix == ".safetensors":
            _refuse_own_checkpoint(path)
            state = load_file(path)
        else:
            state = load_tensors(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file of encoder weights", hint=_WAYS_OUT) from None
    except CheckpointError:
        raise
    except Exception as error:  # torch's reader fails in many ways on bytes that are no pickle
        raise CheckpointError(
            f"{path}: cannot be read as weights ({type(error).__name__})",
            hint="expected a state dict of tensors, saved as .pth or .safetensors",
        ) from error
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    if not isinstance(state, Mapping) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()
    ):
        raise CheckpointError(f"{path}: holds no state dict of tensors", hint=_WAYS_OUT)
    return dict(state)


def _refuse_own_checkpoint(path: Path) -> None:
    """Refuse a run's weights: they have seen its data sets, which the new run would not know and call external."""
    # safetensors would wait for what is no file, as a pipe
    open_regular(path).close()
    with safe_open(path, framework="pt") as file:
        own = "bus_smp" in (file.metadata() or {})
    if own:
        raise CheckpointError(
            f"{path}: is the checkpoint of a run; what it was trained on could later pass for unseen",
            hint="train on all data sets together instead: --data one --data two",
        )


def compare_weights(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    """Return in one line how the names and shapes of ``found`` differ from ``expected``; "" if they fit."""
    missing = [key for key in expected if key not in found]
    unexpected = [key for key in found if key not in expected]
    reshaped = [
        f"{key} {tuple(found[key].shape)} instead of {tuple(expected[key].shape)}"
        for key in expected
        if key in found and found[key].shape != expected[key].shape
    ]
    kinds = (("missing", missing), ("unexpected", unexpected), ("of another shape", reshaped))
    return "; ".join(f"{len(names)} {kind} ({shortened(names)})" for kind, names in kinds if names)
