"""The size, place and lie of each lesion of one mask, as a breast-ultrasound report states them."""

import math
from typing import Any

import cv2
import numpy as np

from bus_smp.classes import BENIGN, MALIGNANT
from bus_smp.measures.regions import lesion_components
from bus_smp.measures.shape import lesion_shape

# Smaller components are stray pixels: they are counted, and not described.
_FEWEST = 10


def measure_lesions(
    mask: np.ndarray, pixel_mm: tuple[float, float] | None
) -> tuple[list[dict[str, Any]], int]:
    """Describe the lesions of a mask, the largest first.

    Args:
        mask: uint8 (H, W) of class indices.
        pixel_mm: width and height of a pixel in mm; None where they are not known: lengths are then pixels.

    Returns:
        For each lesion of at least 10 pixels: ``class`` (with more pixels, a tie is malignant), ``box`` (left, top,
        width, height in pixels), ``width``, ``height`` (of the upright box), ``longest`` (greatest distance between two
        points of the outline), ``shortest`` (the width across that line), ``depth`` (of its top below the image's upper edge, not of the skin), ``angle``
        (of the longest axis to the horizontal, 0 to 90 degrees), ``orientation`` ("parallel" where the box is wider
        than high: Stavros et al., Radiology 1995; else "not parallel"), ``circularity``, ``solidity`` (``lesion_shape``;
        pixels taken as square), ``area`` (mm2 or pixels). And how many smaller components there are.
    """
    labels, stats = lesion_components(mask)
    across, down = pixel_mm or (1.0, 1.0)
    found = []
    for number in np.argsort(-stats[:, 4], kind="stable") + 1:
        left, top, width, height, area = (int(value) for value in stats[number - 1])
        if area < _FEWEST:
            continue
        box = np.s_[top : top + height, left : left + width]
        lesion = labels[box] == number
        benign, malignant = (
            int(np.count_nonzero(lesion & (mask[box] == one.index))) for one in (BENIGN, MALIGNANT)
        )
        longest, shortest, angle = _axes(lesion, across, down)
        shape = lesion_shape(lesion.astype(np.uint8))
        found.append(
            {
                "class": BENIGN.name if benign > malignant else MALIGNANT.name,
                "box": [left, top, width, height],
                "width": width * across,
                "height": height * down,
                "longest": longest,
                "shortest": shortest,
                "depth": top * down,
                "angle": angle,
                "orientation": "parallel" if width * across > height * down else "not parallel",
                "circularity": shape["circularity"],
                "solidity": shape["solidity"],
                "area": area * across * down,
            }
        )
    return found, len(stats) - len(found)


def _axes(lesion: np.ndarray, across: float, down: float) -> tuple[float, float, float]:
    """Greatest distance between two corners of pixels of bool (h, w), the width across it, and its angle to the horizontal in degrees."""
    rows, columns = np.nonzero(lesion)
    corners = np.concatenate(
        [np.stack([columns + x, rows + y], axis=1) for x in (0, 1) for y in (0, 1)]
    ).astype(np.int32)
    hull = cv2.convexHull(corners)[:, 0] * np.array([across, down])
    apart = hull[:, None] - hull[None]
    distance = np.hypot(apart[..., 0], apart[..., 1])
    longest = float(distance.max())
    x, y = apart[np.unravel_index(int(distance.argmax()), distance.shape)]
    place_across = hull @ np.array([-y, x]) / longest
    return longest, float(np.ptp(place_across)), math.degrees(math.atan2(abs(y), abs(x)))
