"""How far apart two outlines are: HD95, average surface distance, surface Dice; in pixels of the image.

The surface of a mask is every pixel of it that has one of its four neighbours outside the mask; the edge of
a hole counts, and beyond the image border is outside. Pixels are taken as square.
"""

import math

import cv2
import numpy as np

from bus_smp.classes import CLASSES, LESIONS
from bus_smp.measures.overlap import TARGETS
from bus_smp.measures.regions import bounding_box

SURFACE_METRICS = ("hd95", "asd", "surface_dice")
SURFACE_COLUMNS = tuple(f"{metric}_{target}" for target in TARGETS for metric in SURFACE_METRICS)

# Pixels that two outlines may be apart and still count as the same, in surface Dice.
TOLERANCE = 2

# Up to how many pairs of surface pixels are compared one by one: at 8 bytes each, 32 MB.
_PAIRS_PER_PIXEL, _MOST_PAIRS = 8, 4_000_000

_CROSS = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))


def surface_metrics(truth: np.ndarray, prediction: np.ndarray) -> dict[str, float]:
    """Compare two outlines; keys ``SURFACE_METRICS``.

    With S, T the surface pixels of the reference and the prediction, and d the Euclidean distance (between
    pixel centres) of each pixel of one to the nearest pixel of the other:

    - ``hd95``: the larger of the 95th percentiles of d over S and of d over T, linearly interpolated (partial
      Hausdorff distance, Huttenlocher et al., IEEE PAMI 1993). The larger of the two, as in MONAI and in DeepMind's
      surface-distance; MedPy takes one percentile of both together, mostly a lower one. MONAI has the
      same surface too; DeepMind's lies between the pixels and weights them by length.
    - ``asd``: mean of d over S and T together, the average symmetric surface distance (Heimann et al., IEEE TMI 2009).
    - ``surface_dice``: share of S and T together with d <= ``TOLERANCE`` (Nikolov et al., JMIR 2021), 0..1.

    All three are NaN where the reference is empty. Where only the prediction is empty, ``surface_dice`` is 0, and
    the two distances are NaN: there is nothing to measure to, and any number would be an invention.

    Args:
        truth, prediction: bool (H, W).
    """
    # Every surface pixel is in the box, so no distance is lost; the time goes with the box's area.
    box = bounding_box(truth | prediction)
    outlines = [_surface(mask[box]) for mask in (truth, prediction)]
    if not outlines[0].any():
        return dict.fromkeys(SURFACE_METRICS, math.nan)
    if not outlines[1].any():
        return {"hd95": math.nan, "asd": math.nan, "surface_dice": 0.0}
    directed = _distances(*outlines)
    both = np.concatenate(directed)
    return {
        "hd95": max(float(np.percentile(distances, 95)) for distances in directed),
        "asd": float(both.mean()),
        "surface_dice": float((both <= TOLERANCE).mean()),
    }


def _surface(mask: np.ndarray) -> np.ndarray:
    """The surface pixels of a mask, both bool (h, w); beyond its border is outside."""
    if mask.size == 0:
        return mask
    pixels = mask.view(np.uint8)
    return pixels > cv2.erode(pixels, _CROSS, borderType=cv2.BORDER_CONSTANT, borderValue=0)


def _distances(one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """From each pixel of ``one`` to the nearest of ``other``, and the other way: float64 (n,) and (m,), exact."""
    # All pairs of outline pixels are three times quicker than a transform of the area, until outlines get ragged.
    if np.count_nonzero(one) * np.count_nonzero(other) <= min(_PAIRS_PER_PIXEL * one.size, _MOST_PAIRS):
        (y, x), (v, u) = (np.nonzero(outline) for outline in (one, other))
        # Not as a product of matrices: its threads would go on spinning next to those of the network.
        down, across = (
            np.subtract.outer(a.astype(np.int32), b.astype(np.int32)) for a, b in ((y, v), (x, u))
        )
        squares = down * down + across * across
        return np.sqrt(squares.min(axis=1)), np.sqrt(squares.min(axis=0))
    return _transformed(other)[one], _transformed(one)[other]


def _transformed(outline: np.ndarray) -> np.ndarray:
    """Distance of every pixel to the nearest one of ``outline``: float64 of its shape."""
    nearest = cv2.distanceTransform((~outline).view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    # Squares are whole numbers: rounding them undoes float32, so that 2 pixels are not 2.0000002.
    return np.sqrt(np.rint(np.square(nearest, dtype=np.float64)))


def _marks(mask: np.ndarray, classes: tuple[int, ...]) -> np.ndarray:
    """Bool (h, w): pixels of one of the classes."""
    chosen = np.zeros(len(CLASSES), bool)
    chosen[list(classes)] = True
    return chosen[mask]


def surface_row(truth: np.ndarray, prediction: np.ndarray) -> dict[str, float]:
    """``surface_metrics`` of any lesion, benign and malignant; keys ``SURFACE_COLUMNS``, empty cases as there.

    Args:
        truth, prediction: uint8 (H, W) of class indices.
    """
    masks = truth, prediction
    shown = [[lesion.index for lesion in LESIONS if (mask == lesion.index).any()] for mask in masks]
    # Most images show one class: its masks are those of any lesion, and need not be measured again.
    measured: dict[tuple, dict[str, float]] = {}
    row: dict[str, float] = {}
    for target, classes in TARGETS.items():
        parts = tuple(tuple(c for c in present if c in classes) for present in shown)
        if parts not in measured:
            pair = (_marks(mask, part) for mask, part in zip(masks, parts, strict=True))
            measured[parts] = surface_metrics(*pair)
        row |= {f"{metric}_{target}": value for metric, value in measured[parts].items()}
    return row
