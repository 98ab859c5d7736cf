"""The network: a ResNet encoder, a U-Net decoder, and one segmentation head per supervised stage."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from segmentation_models_pytorch.base import SegmentationHead
from segmentation_models_pytorch.base.initialization import initialize_decoder, initialize_head
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder
from segmentation_models_pytorch.encoders import encoders, get_encoder
from torch import Tensor, nn

from bus_smp.errors import CheckpointError, ConfigError
from bus_smp.model.tensor_files import load_tensors
from bus_smp.system.files import open_regular

# Of RGB in 0..1, as ImageNet-trained encoders expect them.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

DECODER_CHANNELS = (256, 128, 64, 32, 16)

_WAYS_OUT = (
    "start from random weights: --set model.encoder_weights=null, "
    "or from a local file: --set model.encoder_weights=path/to/file"
)


def normalise(
    images: Tensor, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD
) -> Tensor:
    """Return ``(images / 255 - mean) / std`` as float32 (N, 3, H, W), channels last in memory, on the same device.

    Args:
        images: uint8 (N, H, W, 3), RGB.
        mean, std: of each channel, in 0..1.
    """
    # permuting a (N, H, W, 3) tensor gives the channels_last strides for nothing
    pixels = images.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.channels_last)
    shift = torch.tensor(mean, device=images.device).view(1, 3, 1, 1)
    scale = torch.tensor(std, device=images.device).view(1, 3, 1, 1)
    return (pixels / 255.0 - shift) / scale


class HybridResNet50(nn.Module):
    """ResNet-50 U-Net that is supervised at full, 1/2, 1/4 and 1/8 size.

    Any H, W >= 1 (in training mode, batch norm needs more than one value per channel: two images, or
    more than 32 px). Weights are random as ``torch.manual_seed`` decides, unless loaded.

    Args:
        num_classes: channels of the logits.
        deep_supervision: whether there are auxiliary heads at 1/2, 1/4 and 1/8.
        attention: None, or "scse": concurrent spatial and channel attention in each decoder block
            (Roy et al., MICCAI 2018).
        bottleneck: None, or "aspp" between encoder and decoder.
        encoder_weights: "imagenet" (downloaded once), the path of a ResNet state dict, or None.
        encoder_name: "resnet50", another encoder of segmentation_models_pytorch, or "tu-" and the name of a network
            of timm, if it gives features at 1/2, 1/4, 1/8, 1/16 and 1/32 of the image's size.

    Raises:
        ConfigError: if an argument is none of those listed.
        CheckpointError: if the encoder's weights cannot be had or do not fit.
    """

    def __init__(
        self,
        num_classes: int = 3,
        deep_supervision: bool = True,
        attention: str | None = None,
        bottleneck: str | None = None,
        encoder_weights: str | Path | None = "imagenet",
        encoder_name: str = "resnet50",
    ) -> None:
        super().__init__()
        _check_choice("attention", attention, (None, "scse"))
        _check_choice("bottleneck", bottleneck, (None, "aspp"))
        _check_encoder(encoder_name)
        self.encoder = load_encoder(encoder_name, encoder_weights)
        *skip_channels, deepest = self.encoder.out_channels
        self.bottleneck = ASPP(deepest) if bottleneck == "aspp" else nn.Identity()
        self.decoder = StagedUnetDecoder(
            encoder_channels=(*skip_channels, ASPP.OUT_CHANNELS if bottleneck == "aspp" else deepest),
            decoder_channels=DECODER_CHANNELS,
            attention_type=attention,
        )
        supervised = DECODER_CHANNELS[:0:-1] if deep_supervision else DECODER_CHANNELS[-1:]
        self.heads = nn.ModuleList(
            SegmentationHead(channels, num_classes, kernel_size=3) for channels in supervised
        )
        initialize_decoder(self.bottleneck)
        initialize_decoder(self.decoder)
        initialize_head(self.heads)

    def forward(self, images: Tensor) -> tuple[Tensor, ...] | Tensor:
        """Return the logits of every head, full size first; without deep supervision that one tensor.

        Args:
            images: float (N, 3, H, W), normalised.

        Returns:
            Logits (N, num_classes, ceil(H / s), ceil(W / s)) for s = 1, 2, 4, 8, on the scale of softmax's input.
        """
        stages = self._decode(images)
        logits = tuple(head(stage) for head, stage in zip(self.heads, reversed(stages), strict=False))
        return logits if len(logits) > 1 else logits[0]

    def predict_logits(self, images: Tensor) -> Tensor:
        """Return the full-size logits (N, num_classes, H, W) alone; the auxiliary heads are not computed."""
        return self.heads[0](self._decode(images)[-1])

    def _decode(self, images: Tensor) -> list[Tensor]:
        *skips, deepest = self.encoder(images)
        return self.decoder([*skips, self.bottleneck(deepest)])


class StagedUnetDecoder(UnetDecoder):
    """smp's U-Net decoder; ``forward`` returns the output of every block, smallest first."""

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Return the blocks' outputs, at 1/16, 1/8, 1/4, 1/2 and 1/1 of the first feature's size.

        Args:
            features: the encoder's (N, C, h, w), largest first; the first one gives only its size.
                Each block takes the size of its skip connection, so sizes need not be divisible.
        """
        stages = []
        stage = self.center(features[-1])
        for block, level in zip(self.blocks, range(len(features) - 2, -1, -1), strict=True):
            height, width = features[level].shape[2:]
            stage = block(stage, height, width, skip_connection=features[level] if level else None)
            stages.append(stage)
        return stages


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling (Chen et al., DeepLabv3, 2017) for feature maps at 1/32 of the image.

    Differs from smp's: the rates suit the 8x8 map of a 256 px image, where the usual 6, 12 and 18 would see
    padding only; mean instead of AdaptiveAvgPool2d and no dropout, so that training is deterministic; no batch
    norm on the pooled branch, so that a batch of one can be trained on.

    Takes (N, in_channels, h, w), returns (N, 256, h, w).
    """

    OUT_CHANNELS = 256
    RATES = (1, 2, 4)

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        width = self.OUT_CHANNELS
        self.branches = nn.ModuleList(
            [_conv_bn_relu(in_channels, width, kernel=1)]
            + [_conv_bn_relu(in_channels, width, kernel=3, dilation=rate) for rate in self.RATES]
        )
        self.pooled = nn.Sequential(nn.Conv2d(in_channels, width, 1), nn.ReLU())
        self.project = _conv_bn_relu(width * (len(self.RATES) + 2), width, kernel=1)

    def forward(self, feature: Tensor) -> Tensor:
        branches = [branch(feature) for branch in self.branches]
        pooled = self.pooled(feature.mean((2, 3), keepdim=True)).expand_as(branches[0])
        return self.project(torch.cat([*branches, pooled], dim=1))


def _conv_bn_relu(in_channels: int, out_channels: int, kernel: int, dilation: int = 1) -> nn.Sequential:
    padding = dilation * (kernel // 2)
    convolution = nn.Conv2d(in_channels, out_channels, kernel, padding=padding, dilation=dilation, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels), nn.ReLU())


def _check_choice(name: str, value: object, choices: tuple) -> None:
    if value not in choices:
        known = ", ".join("null" if choice is None else str(choice) for choice in choices)
        raise ConfigError(f"model.{name}={value} is unknown", hint=f"use one of: {known}")


def _check_encoder(name: str) -> None:
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
    from huggingface_hub.utils import get_session

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
        if not timm.models.is_model_pretrained(name.removeprefix("tu-")):
            raise ValueError("timm has none")
        return timm.get_pretrained_cfg(name.removeprefix("tu-")).hf_hub_id, None
    known = encoders[name]["pretrained_settings"]
    if "imagenet" not in known:
        raise ValueError(f"smp has weights of {', '.join(known)} only")
    return known["imagenet"]["repo_id"], known["imagenet"]["revision"]


def _read_encoder_weights(path: Path) -> dict[str, Tensor]:
    """Read a state dict with torchvision's or timm's names, bare or inside a larger model's ``encoder.``."""
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
    """A run's weights have seen its data sets, which the new run would not know and call external."""
    open_regular(path).close()  # what is no file would be waited for
    with safe_open(path, framework="pt") as file:
        own = "bus_smp" in (file.metadata() or {})
    if own:
        raise CheckpointError(
            f"{path}: is the checkpoint of a run; what it was trained on could later pass for unseen",
            hint="train on all data sets together instead: --set data.train=[one,two]",
        )


def compare_weights(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    """Say in one line how the names and shapes of ``found`` differ from ``expected``; "" if they fit."""
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
