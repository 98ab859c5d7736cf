"""How uncertain a prediction is, as one number for an image, computed without the reference."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from bus_smp.classes import BACKGROUND
from bus_smp.measures.overlap import classes_of

# Columns of the per-image table and of ``predictions.csv``, and what each is in words; larger is less sure.
UNCERTAINTIES: Mapping[str, str] = {
    "disagreement_networks": "1 - mean pairwise Dice of the networks' lesion masks",
    "disagreement_views": "1 - Dice of the plain and the mirrored view's lesion masks",
    "lesion_entropy": "mean entropy of lesion or not in the mask; without a mask the largest of a pixel",
    "ood_score": "distance to the training images; above 1, out of distribution",
}


def uncertainty_row(grid: np.ndarray, disagreement: Mapping[str, float]) -> dict[str, float]:
    """Return the columns of ``UNCERTAINTIES`` that follow from the probabilities; NaN where there is only one network, or one view.

    Args:
        grid: float (3, h, w), calibrated probabilities.
        disagreement: of ``networks`` and of ``views``, as ``Prediction.disagreement``.
    """
    found = {f"disagreement_{of}": disagreement.get(of, math.nan) for of in ("networks", "views")}
    return found | {"lesion_entropy": lesion_entropy(grid)}


def lesion_entropy(grid: np.ndarray) -> float:
    """Return the mean binary entropy of the lesion's probability in bits, 0..1, over the mask; the largest of a pixel if it is empty.

    Over all pixels the mean would measure how large the lesion is: most pixels are surely background.

    Args:
        grid: float (3, h, w), calibrated probabilities of background, benign and malignant.
    """
    lesion = 1.0 - grid[0]
    marked = lesion[classes_of(grid) != BACKGROUND.index]
    return float(binary_entropy(marked).mean() if marked.size else binary_entropy(lesion).max())


def binary_entropy(probability: np.ndarray) -> np.ndarray:
    """Return the entropy in bits, 0..1, of yes or no with a probability in 0..1."""
    yes = probability.clip(1e-6, 1 - 1e-6)
    return -(yes * np.log2(yes) + (1 - yes) * np.log2(1 - yes))


def mean_pairwise_dice(masks: Sequence[np.ndarray]) -> float:
    """Return the mean over all pairs of masks, bool (H, W), of 2 |A and B| / (|A| + |B|); two empty masks agree: 1.

    The best simple detector of bad masks in the comparison of Zenk et al. (arXiv 2406.03323).
    """
    flat = np.stack([mask.reshape(-1) for mask in masks]).astype(np.float32)
    common = flat @ flat.T
    area = np.diag(common)
    both = area[:, None] + area
    pairs = np.triu_indices(len(masks), k=1)
    return float(np.where(both == 0, 1.0, 2 * common / np.maximum(both, 1))[pairs].mean())
