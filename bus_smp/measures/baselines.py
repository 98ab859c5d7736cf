"""Two predictions that need no learning; a model that is not clearly better has learnt nothing."""

import cv2
import numpy as np

from bus_smp.classes import BACKGROUND, BENIGN

# Everything at or below this grey value is the black frame around the scan, not tissue.
_FRAME = 8

# Longer side that the blob is looked for at; its outline is smooth, and this makes it quick.
_WORKING_SIZE = 256


def all_background(image: np.ndarray) -> np.ndarray:
    """Predict nothing. The upstream metric gave this .8; here its Dice is 0 and its miss rate 1.

    Args:
        image: uint8 (H, W, 3).

    Returns:
        uint8 (H, W), all 0.
    """
    return np.full(image.shape[:2], BACKGROUND.index, np.uint8)


def largest_dark_blob(image: np.ndarray) -> np.ndarray:
    """Call the largest dark area inside the scan a benign lesion; empty where there is none.

    Lesions in breast ultrasound are mostly darker than the tissue around them. The image is
    blurred, and of its darkest fifth, not counting black frame, the largest connected area that
    does not touch the image border is kept (the frame is dark too, so what leaves the scan hangs
    together with it). Blur and fifth are the best of 20 settings on BUS-UCLM and BUSI, better than
    Otsu's threshold: what is known about these data sets speaks for the baseline, not against it.

    Benign, because it is the more frequent lesion in every data set used here: the better guess
    for something that knows nothing about malignancy.

    Args:
        image: uint8 (H, W, 3).

    Returns:
        uint8 (H, W) of class indices, 0 background and 1 benign.
    """
    height, width = image.shape[:2]
    nothing = all_background(image)
    scale = min(1.0, _WORKING_SIZE / max(height, width, 1))
    if min(height, width) * scale < 5:
        return nothing
    size = (round(width * scale), round(height * scale))
    grey = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY)
    grey = cv2.GaussianBlur(cv2.resize(grey, size, interpolation=cv2.INTER_AREA), (0, 0), sigmaX=2)
    scan = grey[grey > _FRAME]
    if scan.size == 0:
        return nothing
    dark = (grey <= np.quantile(scan, 0.2)).astype(np.uint8)

    _, areas, stats, _ = cv2.connectedComponentsWithStats(dark, connectivity=4)
    left, top, wide, high, area = stats.T
    inside = (left > 0) & (top > 0) & (left + wide < size[0]) & (top + high < size[1])
    # Label 0 marks the pixels that are not dark.
    inside[0] = False
    if not inside.any():
        return nothing
    blob = (areas == np.argmax(np.where(inside, area, -1))).astype(np.uint8)
    return cv2.resize(blob, (width, height), interpolation=cv2.INTER_NEAREST_EXACT) * np.uint8(BENIGN.index)


BASELINES = {"all-background": all_background, "largest-dark-blob": largest_dark_blob}
