"""The networks that are compared: the hybrid model, and smp's with the same encoder."""

import segmentation_models_pytorch as smp
import torch
from segmentation_models_pytorch.encoders.resnet import resnet_encoders
from torch import Tensor, nn

from bus_smp.classes import CLASSES
from bus_smp.errors import ConfigError
from bus_smp.inference.folding import MainHead, fold_batch_norms
from bus_smp.model.hybrid import HybridResNet50

# the second also computes its auxiliary heads, as in training; in prediction they are dropped
HYBRID, HYBRID_HEADS = "hybrid", "hybrid-heads"

SMP = {
    "unet": smp.Unet,
    "unetplusplus": smp.UnetPlusPlus,
    "manet": smp.MAnet,
    "deeplabv3plus": smp.DeepLabV3Plus,
}

NETWORKS = (HYBRID, HYBRID_HEADS, *SMP)


class Plain(nn.Module):
    """Encoder, decoder and head of smp's network, without its check of the image's size."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.encoder, self.decoder, self.head = network.encoder, network.decoder, network.segmentation_head
        self.check_size = network.check_input_shape

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, classes, H, W) of float (N, 3, H, W)."""
        return self.head(self.decoder(self.encoder(images)))


def check_encoder(name: str) -> None:
    """Refuse an encoder that no network here has.

    Raises:
        ConfigError: with names that look like it.
    """
    known = smp.encoders.get_encoder_names()
    if name in known or name.startswith("tu-"):
        return
    import difflib

    close = difflib.get_close_matches(name, known, 3, cutoff=0.4)
    raise ConfigError(
        f"--encoder {name}: is not known to segmentation_models_pytorch",
        hint=f"did you mean {' or '.join(close)}?" if close else "for example resnet50",
    )


def choose_networks(text: str | None) -> tuple[str, ...]:
    """``hybrid,unet`` as names of ``NETWORKS``, in their order; None means all.

    Raises:
        ConfigError: naming what is unknown.
    """
    words = NETWORKS if text is None else [word.strip() for word in text.split(",") if word.strip()]
    unknown = [word for word in words if word not in NETWORKS]
    if unknown or not words:
        raise ConfigError(
            f"--models {text}: there is no {unknown[0]}" if unknown else "--models names none",
            hint=f"there are {', '.join(NETWORKS)}",
        )
    return tuple(name for name in NETWORKS if name in words)


def build(name: str, encoder: str) -> nn.Module:
    """A network with random weights, from float (N, 3, H, W) to logits; ``hybrid-heads`` returns a tuple.

    Args:
        name: of ``NETWORKS``.

    Raises:
        Exception: of whatever type smp raises for an encoder that this network cannot have.
    """
    torch.manual_seed(0)
    if name in SMP:
        return Plain(SMP[name](encoder, encoder_weights=None, in_channels=3, classes=len(CLASSES)))
    if encoder not in resnet_encoders:
        raise ConfigError("the hybrid model takes smp's ResNets alone")
    heads = name == HYBRID_HEADS
    model = HybridResNet50(len(CLASSES), deep_supervision=heads, encoder_weights=None, encoder_name=encoder)
    return model if heads else MainHead(model)


@torch.inference_mode()
def try_size(network: nn.Module, size: int) -> tuple[Tensor, ...] | Tensor:
    """What the network, in evaluation mode, answers one black image of ``size`` px.

    Raises:
        Exception: of smp's or torch's, if it cannot take the size.
    """
    image = torch.zeros(1, 3, size, size)
    try:
        return network(image)
    except RuntimeError:
        if isinstance(network, Plain):
            network.check_size(image)  # smp says what would fit; torch, which tensors did not
        raise


def for_prediction(network: nn.Module) -> nn.Module:
    """The network in evaluation mode, batch norms folded into convolutions where torch.fx can follow it."""
    network.eval()
    try:
        return fold_batch_norms(network)
    except Exception:  # torch.fx has many ways of saying that it cannot follow
        return network


def count_parameters(network: nn.Module) -> int:
    """Number of weights, each tensor once."""
    return sum(parameter.numel() for parameter in network.parameters())
