"""Where the lesions of a mask are: the box around them, and their connected components."""

import cv2
import numpy as np

from bus_smp.classes import BACKGROUND


def _check_plane(mask: np.ndarray) -> None:
    if mask.ndim != 2:
        raise ValueError(f"a mask has two dimensions, (H, W); this one has the shape {mask.shape}")


def bounding_box(marked: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns of the smallest box around what is true in bool (H, W); empty where nothing is.

    Raises:
        ValueError: if it has not two dimensions.
    """
    _check_plane(marked)
    left, top, width, height = cv2.boundingRect(marked.view(np.uint8))
    return slice(top, top + height), slice(left, left + width)


def lesion_components(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The 8-connected components of the lesion pixels, benign or malignant alike.

    Args:
        mask: integer (H, W) of class indices.

    Returns:
        int32 (H, W), 0 background and 1..n the components, in no promised order; and int32 (n, 5), a row for each:
        left, top, width, height, area (pixels).

    Raises:
        ValueError: if it has not two dimensions.
    """
    _check_plane(mask)
    marked = (mask != BACKGROUND.index).astype(np.uint8)
    if marked.size == 0:
        return marked.astype(np.int32), np.empty((0, 5), np.int32)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(marked, connectivity=8)
    return labels, stats[1:]
