"""The networks that are compared: the hybrid model, and smp's with the same encoder."""

from collections.abc import Callable
from typing import Any

import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn

from bus_smp.classes import CLASSES
from bus_smp.errors import ConfigError
from bus_smp.inference.folding import MainHead, fold_batch_norms
from bus_smp.model.hybrid import HybridResNet50, Output

# "hybrid-heads" also computes its auxiliary heads, as in training; prediction leaves them out.
HYBRID, HYBRID_HEADS = "hybrid", "hybrid-heads"

# The same with a part that is off by default.
VARIANTS = {"hybrid-scse": {"attention": "scse"}, "hybrid-aspp": {"bottleneck": "aspp"}}

SMP = {
    "unet": smp.Unet,
    "unetplusplus": smp.UnetPlusPlus,
    "manet": smp.MAnet,
    "deeplabv3plus": smp.DeepLabV3Plus,
}

NETWORKS = (HYBRID, HYBRID_HEADS, *VARIANTS, *SMP)


class Plain(nn.Module):
    """Encoder, decoder and head of an smp network, without smp's check of the image's size; trained as a hybrid model is."""

    image_head = shape_head = None

    def __init__(self, network: smp.base.SegmentationModel) -> None:
        super().__init__()
        self.encoder, self.decoder = network.encoder, network.decoder
        self.heads = nn.ModuleList([network.segmentation_head])
        self.encoder_origin = None
        self.check_size: Callable[[Tensor], None] = network.check_input_shape

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, classes, H, W) of float (N, 3, H, W)."""
        return self.heads[0](self.decoder(self.encoder(images)))

    def compute(self, images: Tensor) -> Output:
        """Return the same as ``HybridResNet50.compute``; there are no other heads."""
        return Output(self(images))

    def predict(self, images: Tensor) -> Output:
        """Return the same as ``HybridResNet50.predict``."""
        features = self.encoder(images)
        return Output(self.heads[0](self.decoder(features)), features=features[-2].mean((2, 3)))


def check_encoder(name: str) -> None:
    """Refuse an encoder that segmentation_models_pytorch does not know.

    Raises:
        ConfigError: with similar names.
    """
    known = smp.encoders.get_encoder_names()
    if name in known or name.startswith("tu-"):
        return
    import difflib

    close = difflib.get_close_matches(name, known, 3, cutoff=0.4)
    raise ConfigError(
        f"--encoder {name}: segmentation_models_pytorch does not know it",
        hint=f"did you mean {' or '.join(close)}?" if close else "for example resnet50",
    )


def choose_networks(text: str | None) -> tuple[str, ...]:
    """``hybrid,unet`` as names of ``NETWORKS``, in their order; None means all.

    Raises:
        ConfigError: if a name is unknown or there is none.
    """
    words = NETWORKS if text is None else [word.strip() for word in text.split(",") if word.strip()]
    unknown = [word for word in words if word not in NETWORKS]
    if unknown or not words:
        raise ConfigError(
            f"--models {text}: there is no {unknown[0]}" if unknown else "--models names no network",
            hint=f"there are {', '.join(NETWORKS)}",
        )
    return tuple(name for name in NETWORKS if name in words)


def build(name: str, encoder: str, seed: int = 0) -> nn.Module:
    """A network with random weights, from float (N, 3, H, W) to logits; one with auxiliary heads returns a tuple.

    Args:
        name: one of ``NETWORKS``.

    Raises:
        Exception: of any type that smp raises for an encoder that this network cannot have.
    """
    torch.manual_seed(seed)
    if name in SMP:
        return Plain(SMP[name](encoder, encoder_weights=None, in_channels=3, classes=len(CLASSES)))
    heads = name != HYBRID
    more: Any = VARIANTS.get(name, {})
    model = HybridResNet50(
        len(CLASSES), deep_supervision=heads, encoder_weights=None, encoder_name=encoder, **more
    )
    return model if heads else MainHead(model)


@torch.inference_mode()
def try_size(network: nn.Module, size: int) -> tuple[Tensor, ...] | Tensor:
    """The network's output, in evaluation mode, for one black image of ``size`` px.

    Raises:
        Exception: of smp or torch, if the network cannot take the size.
    """
    image = torch.zeros(1, 3, size, size)
    try:
        return network(image)
    except RuntimeError:
        if isinstance(network, Plain):
            # smp's error names a size that fits; torch's names two tensors.
            network.check_size(image)
        raise


def for_prediction(network: nn.Module) -> nn.Module:
    """The network in evaluation mode, batch norms folded into convolutions where torch.fx can follow it."""
    network.eval()
    try:
        return fold_batch_norms(network)
    except Exception:
        # torch.fx raises errors of many types where it cannot follow a network.
        return network


def count_parameters(network: nn.Module) -> int:
    """Number of weights; a shared tensor counts once."""
    return sum(parameter.numel() for parameter in network.parameters())
