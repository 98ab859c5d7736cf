"""A head for the whole image: normal, benign or malignant."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bus_smp.classes import LABELS


class ImageHead(nn.Linear):
    """One linear layer on the mean of the encoder's deepest feature.

    Mean, not AdaptiveAvgPool2d, whose backward pass on CUDA is not deterministic.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, len(LABELS))

    def forward(self, feature: Tensor) -> Tensor:
        """Return logits (N, 3), in the order of ``LABELS``, of a feature (N, channels, h, w)."""
        return super().forward(feature.mean((2, 3)))


def image_loss(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the mean over the batch of weight * cross entropy.

    Args:
        logits: float (N, 3).
        labels: int64 (N,), places in ``LABELS``.
        weights: float32 (N,), 1 on average over a training; None: all 1.
    """
    with torch.autocast(logits.device.type, enabled=False):
        losses = F.cross_entropy(logits.float(), labels, reduction="none")
    return (losses if weights is None else losses * weights).mean()
