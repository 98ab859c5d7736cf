"""Encoders of segmentation_models_pytorch and timm, with random weights, ImageNet's or those of a local file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from segmentation_models_pytorch.encoders import encoders, get_encoder
from torch import Tensor, nn

from bus_smp.errors import CheckpointError, ConfigError
from bus_smp.model.tensor_files import load_tensors
from bus_smp.system.files import open_regular

_WAYS_OUT = (
    "start from random weights: --set model.encoder_weights=null, "
    "or from a local file: --set model.encoder_weights=path/to/file"
)


def check_encoder(name: str) -> None:
    """Refuse an encoder whose features are not what the decoder needs, before anything is downloaded.

    Raises:
        ConfigError: naming encoders that fit.
    """
    hint = (
        "some that fit: resnet18, resnet50, efficientnet-b0, mobilenet_v2, "
        "tu-resnet18, tu-mobilenetv3_large_100, tu-regnety_002"
    )
    is_known = isinstance(name, str) and (
        timm.is_model(name.removeprefix("tu-")) if name.startswith("tu-") else name in encoders
    )
    if not is_known:
        raise ConfigError(f"model.encoder_name={name} is unknown", hint=hint)
    # Neither multiple of 32 nor square: some networks work with multiples only.
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


def load_encoder(name: str, weights: str | Path | None) -> nn.Module:
    """Return the encoder with random weights (None), ImageNet's, or those of a file.

    Raises:
        CheckpointError: if the download or the file fails, or the file holds another network.
    """
    if weights is None:
        return get_encoder(name, weights=None)
    if weights == "imagenet":
        return _download_encoder(name)
    path = Path(weights).expanduser()
    encoder = get_encoder(name, weights=None)
    expected = encoder.state_dict()
    # Old files lack batch norm's counters, which nothing here reads.
    counters = {key: value for key, value in expected.items() if key.endswith("num_batches_tracked")}
    state = counters | _read_encoder_weights(path)
    if problems := compare_weights(expected, state):
        raise CheckpointError(f"{path}: does not fit the encoder {name}: {problems}", hint=_WAYS_OUT)
    encoder.load_state_dict(state)
    return encoder


def _download_encoder(name: str) -> nn.Module:
    from huggingface_hub import constants, try_to_load_from_cache
    from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

    try:
        repository, revision = _imagenet_source(name)
        cached = try_to_load_from_cache(repository, "model.safetensors", revision=revision)
        if not isinstance(cached, str):
            # Asked once here, because a download without a network retries for half a minute.
            get_session().head(constants.ENDPOINT, timeout=10)
        return get_encoder(name, weights=True if name.startswith("tu-") else "imagenet")
    except Exception as error:  # of several libraries, by the version of the hub's client
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"the ImageNet weights of {name} could not be downloaded ({reason})", hint=_WAYS_OUT
        ) from error


def _imagenet_source(name: str) -> tuple[str, str | None]:
    """Return the repository on the hub and its revision."""
    if name.startswith("tu-"):
        source = timm.get_pretrained_cfg(name.removeprefix("tu-"))
        if source is None or not source.hf_hub_id:
            raise ValueError("timm has none")
        return str(source.hf_hub_id), None
    known = encoders[name]["pretrained_settings"]
    if "imagenet" not in known:
        raise ValueError(f"smp has weights of {', '.join(known)} only")
    return known["imagenet"]["repo_id"], known["imagenet"]["revision"]


def _read_encoder_weights(path: Path) -> dict[str, Tensor]:
    """Read a state dict with torchvision's or timm's names, bare or inside a larger model's ``encoder.``."""
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
    inner = {key.removeprefix("encoder."): state[key] for key in state if key.startswith("encoder.")}
    return {key: value for key, value in (inner or state).items() if not key.startswith("fc.")}


def _refuse_own_checkpoint(path: Path) -> None:
    """Refuse a run's weights: they have seen its data sets, which the new run would not know and call external."""
    # safetensors would wait for what is no file, as a pipe
    open_regular(path).close()
    with safe_open(path, framework="pt") as file:
        own = "bus_smp" in (file.metadata() or {})
    if own:
        raise CheckpointError(
            f"{path}: is the checkpoint of a run; what it was trained on could later pass for unseen",
            hint="train on all data sets together instead: --set data.train=[one,two]",
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
    return "; ".join(
        f"{len(names)} {kind} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for kind, names in kinds
        if names
    )
