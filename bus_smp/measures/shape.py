"""Does the prediction keep the shape that a radiologist reads, and how far apart are two measurements?"""

import math

import cv2
import numpy as np

from bus_smp.errors import EvaluationError
from bus_smp.measures.regions import lesion_components

SHAPES = ("area", "depth_to_width", "circularity", "solidity")
SHAPE_COLUMNS = tuple(f"{shape}_{mask}" for shape in SHAPES for mask in ("truth", "predicted"))


def shape_row(truth: dict[str, float], predicted: dict[str, float]) -> dict[str, float]:
    """Two results of ``lesion_shape`` as columns of the per-image table; keys ``SHAPE_COLUMNS``."""
    values = (of_mask[shape] for shape in SHAPES for of_mask in (truth, predicted))
    return dict(zip(SHAPE_COLUMNS, values, strict=True))


def lesion_shape(mask: np.ndarray) -> dict[str, float]:
    """Four numbers about the lesion pixels (benign or malignant alike) of one mask; keys ``SHAPES``.

    ``area`` is of all lesion pixels: how much is marked. The other three describe one outline and are of the largest
    8-connected component only. All are NaN where the mask has no lesion, area too: a lesion that was
    missed is counted as missed, not as one of size 0.

    - ``area``: pixels.
    - ``depth_to_width``: height over width of the upright bounding box, > 0. Depth runs down the image, whatever way
      the lesion lies ("taller than wide": Stavros et al., Radiology 1995); a rotated box or ellipse would measure something else.
    - ``circularity``: 4 pi A / P^2 (Cox, J Paleontology 1927), 0..1. P, holes included, by Crofton's formula in four
      directions (Legland et al., Image Anal Stereol 2007): discs of 10 pixels radius and more have .93 or more, on average
      1 (within .01); a path along the border pixels would make them .9. Upright rectangles are 12 % high. Above 1, which
      no shape can be, it is the error of P in lesions of few pixels, and becomes 1.
    - ``solidity``: A over the pixels whose centres lie in the convex hull of its pixels' centres, 0..1, and
      exactly 1 for what is convex on a grid: rectangles, discs, lines (Kim & Rosenfeld, IEEE PAMI 1982).

    Args:
        mask: integer (H, W) of class indices; pixels are taken as square.
    """
    labels, stats = lesion_components(mask)
    if len(stats) == 0:
        return dict.fromkeys(SHAPES, math.nan)
    largest = int(np.argmax(stats[:, 4]))
    left, top, width, height, area = (int(number) for number in stats[largest])
    lesion = labels[top : top + height, left : left + width] == largest + 1
    return {
        "area": float(stats[:, 4].sum()),
        "depth_to_width": height / width,
        "circularity": min(1.0, 4 * math.pi * area / _perimeter(lesion) ** 2),
        "solidity": area / _pixels_in_hull(lesion),
    }


def _perimeter(lesion: np.ndarray) -> float:
    """Crofton's perimeter of bool (h, w): lines in four directions, and how often they cross the outline."""
    padded = np.pad(lesion, 1)

    def crossings(start: np.ndarray, end: np.ndarray) -> int:
        return int(np.count_nonzero(start != end))

    upright = crossings(padded[1:], padded[:-1]) + crossings(padded[:, 1:], padded[:, :-1])
    oblique = crossings(padded[1:, 1:], padded[:-1, :-1]) + crossings(padded[1:, :-1], padded[:-1, 1:])
    # Oblique lines lie closer together, by the square root of 2.
    return math.pi / 8 * (upright + oblique / math.sqrt(2))


def _pixels_in_hull(lesion: np.ndarray) -> int:
    """Pixels whose centres lie in the convex hull of one component's pixels: Pick's theorem (1899) on its corners."""
    contours, _ = cv2.findContours(lesion.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    corners = cv2.convexHull(contours[0])[:, 0].astype(np.int64)
    following = np.roll(corners, -1, axis=0)
    twice_area = abs(int((corners[:, 0] * following[:, 1] - corners[:, 1] * following[:, 0]).sum()))
    on_border = int(np.gcd(*np.abs(following - corners).T).sum())
    return (twice_area + on_border) // 2 + 1


def agreement(truth: np.ndarray, predicted: np.ndarray) -> dict[str, float | int]:
    """Bland & Altman's (Lancet 1986) limits of agreement between a measurement on the reference and on the prediction.

    Images are taken one by one, as the method has it: that those of one patient resemble each other is not
    allowed for, and the limits of a few patients with many images are somewhat too narrow.

    Args:
        truth, predicted: float (n,), in the same order; NaN where there is nothing to measure.

    Returns:
        n: pairs with both defined; n_undefined: the others, counted and not filled in; bias: mean of
        predicted - truth; sd: of these differences (n - 1); loa_low, loa_high: bias -+ 1.96 sd;
        r: Pearson's correlation, -1..1. NaN where undefined: bias without a pair, sd and limits with fewer than 2, r with fewer
        than 3 or where one of the two is always the same.

    Raises:
        EvaluationError: if the two are not of one length.
    """
    truth, predicted = np.asarray(truth, float), np.asarray(predicted, float)
    if truth.shape != predicted.shape or truth.ndim != 1:
        raise EvaluationError(
            f"measurements of shape {truth.shape} and {predicted.shape} cannot be compared pair by pair"
        )
    defined = ~(np.isnan(truth) | np.isnan(predicted))
    truth, predicted = truth[defined], predicted[defined]
    n = len(truth)
    difference = predicted - truth
    bias = float(difference.mean()) if n else math.nan
    sd = float(difference.std(ddof=1)) if n >= 2 else math.nan
    # Equal numbers can have a variance of 1e-33, and a correlation of anything.
    varied = n >= 3 and np.ptp(truth) > 0 and np.ptp(predicted) > 0
    return {
        "n": n,
        "n_undefined": len(defined) - n,
        "bias": bias,
        "sd": sd,
        "loa_low": bias - 1.96 * sd,
        "loa_high": bias + 1.96 * sd,
        "r": float(np.corrcoef(truth, predicted)[0, 1]) if varied else math.nan,
    }
