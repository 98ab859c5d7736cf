"""A loss for masks whose shape contradicts the class: BI-RADS reads malignancy from both (idea: arXiv 2511.15968).

The shape is that of the predicted probabilities, so that the loss can move the outline. What a shape says about malignancy
is a rule of the run: a logistic regression on the true masks of its training images.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from bus_smp.classes import IGNORED, LABELS, MALIGNANT

# Pixels; of less lesion no shape is taken.
_LEAST_AREA = 16.0


def soft_shape(lesion: Tensor) -> Tensor:
    """Return log depth to width, circularity and roundness of outline, float32 (N, 3), differentiable.

    - depth to width: of the spread of the lesion down and across the image;
    - circularity: 4 pi A / P^2, P by Crofton's formula in two directions;
    - A over the area of the ellipse with the same spread: 1 for an ellipse, less for lobes and scattered parts.

    Args:
        lesion: float (N, H, W), probability of a lesion, 0..1.
    """
    lesion = lesion.float()
    area = lesion.sum((1, 2)).clamp(min=1.0)
    rows, columns = (
        torch.linspace(-1, 1, size, device=lesion.device) * (size - 1) / 2 for size in lesion.shape[1:]
    )

    def mean(down: Tensor, across: Tensor) -> Tensor:
        return torch.einsum("nhw,h,w->n", lesion, down, across) / area

    one_down, one_across = torch.ones_like(rows), torch.ones_like(columns)
    row, column = mean(rows, one_across), mean(one_down, columns)
    # a pixel has a width itself
    down = mean(rows.square(), one_across) - row.square() + 1 / 12
    across = mean(one_down, columns.square()) - column.square() + 1 / 12
    both = mean(rows, columns) - row * column
    ellipse = 4 * math.pi * (down * across - both.square()).clamp(min=1e-3).sqrt()
    padded = torch.nn.functional.pad(lesion, (1, 1, 1, 1))
    perimeter = math.pi / 4 * (padded.diff(dim=1).abs().sum((1, 2)) + padded.diff(dim=2).abs().sum((1, 2)))
    circularity = 4 * math.pi * area / perimeter.clamp(min=1.0).square()
    return torch.stack([(down / across).log() / 2, circularity, area / ellipse], dim=1)


def learn_rule(masks: np.ndarray, labels: Sequence[str]) -> Tensor:
    """Return the weights and, last, the intercept of the logistic rule from ``soft_shape`` to malignancy, float32 (4,).

    Args:
        masks: uint8 (N, S, S) of class indices.
        labels: of the images; benign and malignant ones are learnt from.
    """
    from sklearn.linear_model import LogisticRegression

    chosen = [n for n, label in enumerate(labels) if label != LABELS[0]]
    shapes = [
        soft_shape(torch.from_numpy((masks[n] > 0) & (masks[n] != IGNORED))[None])[0].numpy() for n in chosen
    ]
    rule = LogisticRegression(class_weight="balanced").fit(
        np.stack(shapes), [labels[n] == MALIGNANT.name for n in chosen]
    )
    return torch.tensor([*rule.coef_[0], *rule.intercept_], dtype=torch.float32)


def consistency_loss(logits: Tensor, image: Tensor, labels: Tensor, rule: Tensor) -> Tensor:
    """Return the mean square difference of two probabilities of malignancy, by class and by shape; in 0..1.

    It is taken over the images with a lesion of which at least some pixels are predicted; 0 without any.

    Args:
        logits: float (N, classes, H, W), of the segmentation.
        image: float (N, 3), of the image head; its probability of malignant is taken given a lesion.
        labels: int64 (N,), places in ``LABELS``.
        rule: of ``learn_rule``.
    """
    with torch.autocast(logits.device.type, enabled=False):
        lesion = 1 - logits.float().softmax(1)[:, 0]
        by_shape = (soft_shape(lesion) @ rule[:-1] + rule[-1]).sigmoid()
        by_class = (image.float()[:, 2] - image.float()[:, 1]).sigmoid()
        counted = (labels > 0) & (lesion.sum((1, 2)) >= _LEAST_AREA)
        return ((by_shape - by_class).square() * counted).sum() / counted.sum().clamp(min=1)
