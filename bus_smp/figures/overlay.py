"""A mask drawn on its image, so that texture and line style show the class as well as colour does.

Masks of breast ultrasound are drawn in red and green, which one reader in twenty cannot distinguish. So a benign area is
filled evenly and a malignant one is hatched. The truth is a white broken line (dashes around benign, dots around
malignant) with a dark edge, visible on bright and on dark tissue.
"""

import cv2
import numpy as np

from bus_smp.classes import LESIONS, MALIGNANT

# opacity of a benign area: the tissue below it must stay readable
_EVEN = 0.28
# opacity between and on the stripes of a malignant area
_HATCH = (0.1, 0.6)

_FONT = cv2.FONT_HERSHEY_SIMPLEX


def _line_width(shape: tuple[int, ...]) -> int:
    """Line width in pixels that looks the same at every image size (1 at 300 px, 2 at 600 px)."""
    return max(1, round(min(shape[:2]) / 300))


def overlay(
    image: np.ndarray, mask: np.ndarray, truth: np.ndarray | None = None, legend: bool = False
) -> np.ndarray:
    """Draw a mask, and if given the outline of the true one, on an image.

    Args:
        image: uint8 (H, W, 3), RGB.
        mask: uint8 (H, W) of class indices; drawn as a see-through fill with a solid outline that
            is inside the area, so no pixel outside ``mask`` is touched.
        truth: uint8 (H, W) of class indices; drawn as a broken white outline, dashed for benign
            and dotted for malignant.
        legend: add a strip below the image with the name of each fill; nothing of the image is covered.

    Returns:
        uint8 (H, W, 3), RGB; a new array. With ``legend`` it is higher, and a very narrow one wider.

    Raises:
        ValueError: if the sizes differ, or the image is not RGB of uint8.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"image is {image.dtype} {image.shape}, not uint8 RGB (H, W, 3)")
    for other in (mask, truth):
        if other is not None and other.shape != image.shape[:2]:
            raise ValueError(f"mask is {other.shape}, image is {image.shape[:2]}")
    height, across = image.shape[:2]
    width = _line_width(image.shape)
    below = _legend(width) if legend else np.zeros((0, 0, 3), np.uint8)
    picture = np.zeros((height + below.shape[0], max(across, below.shape[1]), 3), np.uint8)
    picture[height:, : below.shape[1]] = below
    drawn = picture[:height, :across]
    drawn[:] = image
    _fill(drawn, mask, width)
    if truth is not None:
        line = _broken_outline(truth, width)
        drawn[_grown(line, 2 * width) & ~_grown(line, width)] = 0
        drawn[_grown(line, width)] = 255
    return picture


def draw_uncertainty(image: np.ndarray, unsure: np.ndarray) -> np.ndarray:
    """Lay a map of uncertainty over an image: the brighter and the more opaque (violet, orange, yellow), the less sure.

    Args:
        image: uint8 (H, W, 3), RGB.
        unsure: float (h, w), 0..1; it is stretched to the image.

    Returns:
        uint8 (H, W, 3), RGB.
    """
    level = cv2.resize(unsure.astype(np.float32), image.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    level = level.clip(0, 1)
    bgr = cv2.applyColorMap(np.rint(255 * level).astype(np.uint8), cv2.COLORMAP_INFERNO)
    opacity = np.sqrt(level)[..., None]
    return np.rint(image * (1 - opacity) + bgr[..., ::-1] * opacity).astype(np.uint8)


def _fill(drawn: np.ndarray, mask: np.ndarray, width: int) -> None:
    """Draw the areas of ``mask`` into ``drawn``, with outlines of ``width`` pixels."""
    for lesion in LESIONS:
        x, y, across, down = cv2.boundingRect((mask == lesion.index).view(np.uint8))
        if not across:
            continue
        # only the surroundings of the area are computed; the erosion of the outline needs the margin
        margin = 2 * width + 1
        box = np.s_[max(0, y - margin) : y + down + margin, max(0, x - margin) : x + across + margin]
        area = mask[box] == lesion.index
        if lesion is MALIGNANT:
            rows, columns = (np.arange(length)[part] for length, part in zip(mask.shape, box, strict=True))
            stripes = (rows[:, None] + columns) % (9 * width) < 3 * width
            opacity = np.where(stripes, _HATCH[1], _HATCH[0])
        else:
            opacity = np.full(area.shape, _EVEN)
        opacity[area & ~_shrunk(area, 2 * width)] = 1
        opacity = np.where(area, opacity, 0)[..., None]
        picture = drawn[box].astype(np.float32)
        picture += opacity * (np.array(lesion.rgb, np.float32) - picture)
        drawn[box] = np.rint(picture)


def _legend(width: int) -> np.ndarray:
    """A strip, uint8 (h, w, 3), with a sample of each fill and its name; sizes go with the line width."""
    height, swatch = 22 * width, 26 * width
    entries = []
    for lesion in LESIONS:
        sample = np.full((height, swatch, 3), 110, np.uint8)
        mask = np.zeros(sample.shape[:2], np.uint8)
        mask[4 * width : -4 * width, 4 * width : -2 * width] = lesion.index
        sample[mask == 0] = 0
        _fill(sample, mask, width)
        name = np.zeros((height, (9 * len(lesion.name) + 8) * width, 3), np.uint8)
        place = (2 * width, height - 7 * width)
        cv2.putText(name, lesion.name, place, _FONT, 0.45 * width, (255, 255, 255), width, cv2.LINE_AA)
        entries += [sample, name]
    return np.hstack(entries)


def _shrunk(area: np.ndarray, pixels: int) -> np.ndarray:
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * pixels + 1,) * 2)
    return cv2.erode(area.astype(np.uint8), kernel).astype(bool)


def _grown(line: np.ndarray, pixels: int) -> np.ndarray:
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (pixels + 1,) * 2)
    return cv2.dilate(line.astype(np.uint8), kernel).astype(bool)


def _broken_outline(truth: np.ndarray, width: int) -> np.ndarray:
    """Bool (H, W): the outline pixels that are drawn, one pixel wide. Outlines too short to break stay whole."""
    line = np.zeros(truth.shape, bool)
    for lesion in LESIONS:
        on, off = (2 * width, 4 * width) if lesion is MALIGNANT else (9 * width, 6 * width)
        area = (truth == lesion.index).astype(np.uint8)
        for contour in cv2.findContours(area, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)[0]:
            points = contour.reshape(-1, 2)
            # a whole number, so that the last piece meets the first
            pieces = len(points) // (on + off)
            if pieces > 1:
                position = np.arange(len(points)) * pieces / len(points) % 1
                points = points[position < on / (on + off)]
            line[points[:, 1], points[:, 0]] = True
    return line
