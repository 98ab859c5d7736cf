"""A head for the shape of the lesion: four numbers for the whole image, as ``measures.shape`` takes them from a mask."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Of the share of the image's area, depth to width, circularity and solidity: whether the logarithm is learnt, and what
# about half of all lesions lie between. Only so that the four losses are of one size: any others would do.
_LOGARITHM = (True, True, False, False)
_CENTRE = (-3.0, -0.4, 0.65, 0.92)
_SCALE = (1.0, 0.35, 0.2, 0.08)


class ShapeHead(nn.Linear):
    """One linear layer on the mean of the encoder's deepest feature."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, len(_CENTRE))

    def forward(self, feature: Tensor) -> Tensor:
        """Return (N, 4) in units of ``standardise`` of a feature (N, channels, h, w)."""
        return super().forward(feature.mean((2, 3)))


def standardise(shapes: Tensor) -> Tensor:
    """Return shapes float (N, 4) in the units of the head.

    Args:
        shapes: share of the grid's area (0..1), depth to width (> 0), circularity and solidity (0..1).
    """
    parts = (
        ((column.log() if logarithm else column) - centre) / scale
        for column, logarithm, centre, scale in zip(
            shapes.unbind(1), _LOGARITHM, _CENTRE, _SCALE, strict=True
        )
    )
    return torch.stack(list(parts), dim=1)


def shapes_of(output: Tensor) -> Tensor:
    """Undo ``standardise``: the shapes float (N, 4) that the head's output stands for, within their limits."""
    parts = []
    for column, logarithm, centre, scale in zip(output.unbind(1), _LOGARITHM, _CENTRE, _SCALE, strict=True):
        value = column * scale + centre
        parts.append(value.exp() if logarithm else value)
    area, depth_to_width, circularity, solidity = parts
    return torch.stack([area.clamp(max=1), depth_to_width, circularity.clamp(0, 1), solidity.clamp(0, 1)], 1)


def shape_loss(output: Tensor, shapes: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the mean of weight * Huber loss over the images of the batch that show a lesion; 0 if none does.

    Args:
        output: float (N, 4), of the head.
        shapes: float32 (N, 4), of the truth; NaN for an image without a lesion.
        weights: float32 (N,); None: all 1.
    """
    shown = shapes.isfinite().all(1)
    # replaced before the loss: a NaN would have a NaN gradient even where it is left out
    target = standardise(shapes.where(shown[:, None], 1.0))
    with torch.autocast(output.device.type, enabled=False):
        losses = F.huber_loss(output.float(), target, reduction="none").mean(1)
    counted = shown if weights is None else shown * weights
    return (losses * counted).sum() / shown.sum().clamp(min=1)
