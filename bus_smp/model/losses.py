"""Cross-entropy plus Dice at every head of the network, weighted to sum 1.

Every operation has a deterministic CUDA implementation: cross-entropy is log_softmax and gather,
because ``torch.nn.functional.cross_entropy`` on images has none.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bus_smp.classes import BACKGROUND, IGNORED
from bus_smp.errors import ConfigError


class DeepSupervisionLoss(nn.Module):
    """Weighted mean over the heads of ``cross_entropy * CE + dice * Dice``.

    Args:
        num_classes: classes of the logits; class 0 is background and takes no part in Dice.
        cross_entropy, dice: weights of the two terms, >= 0 and not both 0.
        head_weights: one weight > 0 per head, full size first; divided by their sum. A single head
            (deep supervision off) uses only the first, which then is 1.
        padded: whether targets may hold ``IGNORED``; such pixels then take no part.

    Raises:
        ConfigError: if a weight is out of its range or not finite.
    """

    def __init__(
        self,
        num_classes: int = 3,
        cross_entropy: float = 1.0,
        dice: float = 1.0,
        head_weights: Sequence[float] = (1.0, 0.5, 0.25, 0.125),
        padded: bool = False,
    ) -> None:
        super().__init__()
        # A head with weight 0 would silently not be trained, which is the bug this project began with.
        if not head_weights or not all(weight > 0 and math.isfinite(weight) for weight in head_weights):
            raise ConfigError(
                f"loss.head_weights must be numbers > 0, got {list(head_weights)}",
                hint="to train without auxiliary heads: --set model.deep_supervision=false",
            )
        terms = (cross_entropy, dice)
        if not all(weight >= 0 and math.isfinite(weight) for weight in terms) or sum(terms) == 0:
            raise ConfigError(
                f"loss.cross_entropy={cross_entropy} and loss.dice={dice} must be numbers >= 0, one of them > 0",
                hint="for example --set loss.cross_entropy=1 --set loss.dice=1",
            )
        self.num_classes = num_classes
        self.cross_entropy = cross_entropy
        self.dice = dice
        self.head_weights = tuple(head_weights)
        self.padded = padded

    def forward(self, outputs: tuple[Tensor, ...] | Tensor, target: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the total loss and the detached unweighted loss of each head.

        Args:
            outputs: logits (N, num_classes, h, w) of each head, full size first; or one such tensor.
            target: class indices (N, H, W), uint8 or int64, at the size of the first head. Other
                heads see the nearest pixel of it.

        Raises:
            ConfigError: if there are neither one nor ``len(head_weights)`` heads.
        """
        heads = (outputs,) if isinstance(outputs, Tensor) else outputs
        if len(heads) not in (1, len(self.head_weights)):
            raise ConfigError(
                f"loss.head_weights has {len(self.head_weights)} weights, the model has {len(heads)} heads",
                hint="give one weight per head: full size, 1/2, 1/4, 1/8",
            )
        weights = self.head_weights[: len(heads)]
        losses = [self._head_loss(logits, target) for logits in heads]
        total = sum(weight / sum(weights) * loss for weight, loss in zip(weights, losses, strict=True))
        return total, [loss.detach() for loss in losses]  # type: ignore[return-value]

    def _head_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        target = resize_target(target, logits.shape[2:])
        # In bf16 a sum over 65,536 pixels stops growing at 256: both terms need float32.
        with torch.autocast(logits.device.type, enabled=False):
            log_probabilities = F.log_softmax(logits.float(), dim=1)
            counted = None
            if self.padded:
                counted = target != IGNORED
                target = target.where(counted, BACKGROUND.index)
            loss = self.cross_entropy * cross_entropy(log_probabilities, target, counted)
            return loss + self.dice * dice_loss(log_probabilities.exp(), target, counted)


def resize_target(target: Tensor, size: Sequence[int]) -> Tensor:
    """Return class indices (N, H, W) as int64 (N, *size), each the pixel nearest to the cell's centre."""
    if target.shape[1:] != torch.Size(size):
        # float32 because interpolate takes no int64; class indices are exact in it
        target = F.interpolate(target[:, None].float(), size=tuple(size), mode="nearest-exact")[:, 0]
    return target.long()


def cross_entropy(log_probabilities: Tensor, target: Tensor, counted: Tensor | None = None) -> Tensor:
    """Return the mean of -log p[target] over the counted pixels.

    Args:
        log_probabilities: float32 (N, C, H, W).
        target: int64 (N, H, W), 0..C-1.
        counted: bool (N, H, W); None: all pixels are.
    """
    chosen = log_probabilities.gather(1, target[:, None])
    if counted is None:
        return -chosen.mean()
    return -(chosen[:, 0] * counted).sum() / counted.sum().clamp(min=1)


def dice_loss(probabilities: Tensor, target: Tensor, counted: Tensor | None = None) -> Tensor:
    """Return 1 - soft Dice, averaged over the lesion classes that the batch contains; in 0..1.

    Dice = 2 * sum(p * t) / (sum(p) + sum(t)), sums over all counted pixels of all images of the batch (Milletari et
    al., V-Net, 2016, without their squares). Summed over the batch, a normal image adds only its false alarms.
    A class without one target pixel in the batch is left out: its Dice is undefined (0/0 if not predicted),
    and a smoothing term that made it defined would add a constant near 1 with next to no gradient.
    Cross-entropy teaches its absence. So no smoothing term is needed. Without any lesion the loss is 0.

    Args:
        probabilities: float32 (N, C, H, W), class 0 = background.
        target: int64 (N, H, W), 0..C-1; background where a pixel is not counted.
        counted: bool (N, H, W); None: all pixels are.
    """
    classes = torch.arange(1, probabilities.shape[1], device=target.device).view(1, -1, 1, 1)
    truth = (target[:, None] == classes).to(probabilities.dtype)
    predicted = probabilities[:, 1:]
    if counted is not None:
        predicted = predicted * counted[:, None]
    overlap = (predicted * truth).sum((0, 2, 3))
    truth_size = truth.sum((0, 2, 3))
    present = truth_size > 0
    # The denominator is replaced, not the quotient: 0/0 would have a NaN gradient even where masked out.
    denominator = torch.where(present, predicted.sum((0, 2, 3)) + truth_size, 1.0)
    loss = torch.where(present, 1.0 - 2.0 * overlap / denominator, 0.0)
    return loss.sum() / present.sum().clamp(min=1)
