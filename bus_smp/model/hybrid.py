"""The network: an encoder, a U-Net decoder, and one segmentation head per supervised stage."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from segmentation_models_pytorch.base import SegmentationHead
from segmentation_models_pytorch.base.initialization import initialize_decoder, initialize_head
from torch import Tensor, nn

from bus_smp.errors import ConfigError
from bus_smp.model.decoder import ASPP, StagedUnetDecoder
from bus_smp.model.encoders import check_encoder, load_encoder
from bus_smp.model.image_head import ImageHead
from bus_smp.model.shape_head import ShapeHead

# Of RGB in 0..1, as ImageNet-trained encoders expect them.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

DECODER_CHANNELS = (256, 128, 64, 32, 16)


def normalise(
    images: Tensor,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    grey: bool = False,
) -> Tensor:
    """Return ``(images / 255 - mean) / std`` as float32 (N, 3, H, W), channels last in memory, on the same device.

    Args:
        images: uint8 (N, H, W, 3), RGB.
        mean, std: of each channel, in 0..1.
        grey: whether the mean of the channels, a whole number as in ``Geometry.fit``, takes the place of each.
    """
    # permuting a (N, H, W, 3) tensor gives the channels_last strides for nothing
    pixels = images.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.channels_last)
    if grey:
        pixels = pixels.mean(1, keepdim=True).round()
    shift = torch.tensor(mean, device=images.device).view(1, 3, 1, 1)
    scale = torch.tensor(std, device=images.device).view(1, 3, 1, 1)
    return (pixels / 255.0 - shift) / scale


class Output(NamedTuple):
    """What the heads return for a batch; another head is another field.

    Attributes:
        logits: (N, num_classes, H, W), on the scale of softmax's input.
        aux: of the auxiliary heads, at 1/2, 1/4 and 1/8 of the size; empty without deep supervision.
        image: (N, 3), logits of normal, benign and malignant for the whole image; None without an image head.
        shape: (N, 4), of the shape head, in its own units (``shapes_of``); None without one.
        features: (N, channels), mean of the encoder's feature at 1/16 over the image; only of ``predict``.
    """

    logits: Tensor
    aux: tuple[Tensor, ...] = ()
    image: Tensor | None = None
    shape: Tensor | None = None
    features: Tensor | None = None


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
        encoder_weights: "imagenet" (found in the hub's cache, on the hub or in a package), the path of a ResNet state dict, or None.
        encoder_name: "resnet50", another encoder of segmentation_models_pytorch, or "tu-" and the name of a network
            of timm, if it gives features at 1/2, 1/4, 1/8, 1/16 and 1/32 of the image's size.
        decoder_norm: None, batch norm; or "instance", which sees no other image and needs images of more than 16 px.
        image_head, shape_head: whether there is a head for normal, benign or malignant, and for the lesion's shape.
        detached_heads: whether the heads for the whole image leave the encoder to the other losses.

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
        decoder_norm: str | None = None,
        image_head: bool = False,
        shape_head: bool = False,
        detached_heads: bool = True,
    ) -> None:
        super().__init__()
        _check_choice("decoder_norm", decoder_norm, (None, "instance"))
        _check_choice("attention", attention, (None, "scse"))
        _check_choice("bottleneck", bottleneck, (None, "aspp"))
        check_encoder(encoder_name)
        encoder: Any
        encoder, self.encoder_origin = load_encoder(encoder_name, encoder_weights)
        self.encoder = encoder
        *skip_channels, deepest = encoder.out_channels
        self.bottleneck = ASPP(deepest) if bottleneck == "aspp" else nn.Identity()
        self.decoder = StagedUnetDecoder(
            encoder_channels=(*skip_channels, ASPP.OUT_CHANNELS if bottleneck == "aspp" else deepest),
            decoder_channels=DECODER_CHANNELS,
            attention_type=attention,
            use_norm={"type": "instancenorm", "affine": True} if decoder_norm else "batchnorm",
        )
        supervised = DECODER_CHANNELS[:0:-1] if deep_supervision else DECODER_CHANNELS[-1:]
        self.heads = nn.ModuleList(
            SegmentationHead(channels, num_classes, kernel_size=3) for channels in supervised
        )
        initialize_decoder(self.bottleneck)
        initialize_decoder(self.decoder)
        initialize_head(self.heads)
        # not earlier: the random weights of everything else stay the same
        self.decoder.drop_unused()
        self.detached_heads = detached_heads
        self.image_head = ImageHead(deepest) if image_head else None
        self.shape_head = ShapeHead(deepest) if shape_head else None

    def forward(self, images: Tensor) -> tuple[Tensor, ...] | Tensor:
        """Return the logits of every head, full size first; without deep supervision that one tensor.

        Args:
            images: float (N, 3, H, W), normalised.

        Returns:
            Logits (N, num_classes, ceil(H / s), ceil(W / s)) for s = 1, 2, 4, 8, on the scale of softmax's input.
        """
        output = self.compute(images)
        return (output.logits, *output.aux) if output.aux else output.logits

    def compute(self, images: Tensor) -> Output:
        """Return the output of every head by its name; arguments as of ``forward``."""
        features = self.encoder(images)
        stages = self._decode(features)
        logits, *aux = (head(stage) for head, stage in zip(self.heads, reversed(stages), strict=False))
        return Output(logits, tuple(aux), *self._describe(features[-1]))

    def predict(self, images: Tensor) -> Output:
        """Return the same without the auxiliary heads, which are not computed."""
        features = self.encoder(images)
        logits = self.heads[0](self._decode(features)[-1])
        image, shape = self._describe(features[-1])
        return Output(logits, (), image, shape, features[-2].mean((2, 3)))

    def _describe(self, deepest: Tensor) -> list[Tensor | None]:
        """The output of the image head and of the shape head."""
        feature = deepest.detach() if self.detached_heads else deepest
        return [None if head is None else head(feature) for head in (self.image_head, self.shape_head)]

    def _decode(self, features: list[Tensor]) -> list[Tensor]:
        *skips, deepest = features
        return self.decoder([*skips, self.bottleneck(deepest)])


def _check_choice(name: str, value: object, choices: tuple) -> None:
    if value not in choices:
        known = ", ".join("null" if choice is None else str(choice) for choice in choices)
        raise ConfigError(f"model.{name}={value} is unknown", hint=f"use one of: {known}")
