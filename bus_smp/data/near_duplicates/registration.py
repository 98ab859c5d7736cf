"""Laying one ultrasound image over another, and measuring whether their speckle agrees.

Lengths are pixels of thumbnails whose longer side is 256.
"""

import cv2
import numpy as np

FLAT = 1.5  # grey levels of local deviation under which there is no texture to compare
MIN_PLACES = 4  # matches at fewer places explain nothing
SAME_PLACE = 12  # how far a match may be off: room for 15 to 20 % of aspect before it is fitted

TILE, TILE_STEP = 32, 24
MIN_TILES = 12  # with 10 tiles of two patients 0.65 was reached
HOPELESS = 0.3  # a first registration under this was never a copy


def texture_of(gray: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Band-passed image in units of its local deviation, and that deviation."""
    values = gray.astype(np.float32)
    band = cv2.GaussianBlur(values, (7, 7), 1.2) - cv2.GaussianBlur(values, (19, 19), 4.0)
    # running sums: where an image is black they end a little below 0
    deviation = cv2.sqrt(np.maximum(cv2.blur(band * band, (25, 25)), 0))
    return band / (deviation + 1.0), deviation


def align(p: np.ndarray, q: np.ndarray) -> np.ndarray | None:
    """Axis-aligned map p -> q, a (2, 3) matrix, on which enough matches agree; None if they do not."""
    ratio = q[:, 2] / p[:, 2]
    shift = q[:, :2] - ratio[:, None] * p[:, :2]
    near = np.abs(np.log(ratio[:, None] / ratio[None, :])) < 0.35
    for axis in range(2):
        predicted = ratio[:, None] * p[:, axis] + shift[:, axis, None]
        near &= np.abs(predicted - q[:, axis]) < SAME_PLACE
    best = int(np.argmax(near.sum(axis=1)))
    chosen = np.flatnonzero(near[best])
    # the levels see one blob several times: count places, not points
    if len(set(map(tuple, (p[chosen, :2] // 8).tolist()))) < MIN_PLACES:
        return None
    return _fit(p[chosen, :2], q[chosen, :2], ratio[best])


def _fit(p: np.ndarray, q: np.ndarray, fallback: float) -> np.ndarray:
    """Least squares q = s p + t for each axis; ``fallback`` is s where the points lie in a line."""
    matrix = np.zeros((2, 3))
    for axis in range(2):
        spread = p[:, axis] - p[:, axis].mean()
        scale = fallback
        if np.ptp(p[:, axis]) > 40:
            scale = float(spread @ q[:, axis] / (spread @ spread))
        matrix[axis, axis] = scale
        matrix[axis, 2] = q[:, axis].mean() - scale * p[:, axis].mean()
    return matrix


def _tiles(
    first: np.ndarray, second: np.ndarray, valid: np.ndarray, reach: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centres, displacements and best correlations of the textured tiles of ``first`` in ``second``."""
    centres, moves, scores = [], [], []
    height, width = first.shape
    for y in range(reach, height - TILE - reach + 1, TILE_STEP):
        for x in range(reach, width - TILE - reach + 1, TILE_STEP):
            if not valid[y : y + TILE, x : x + TILE].all():
                continue
            found = cv2.matchTemplate(
                second[y - reach : y + TILE + reach, x - reach : x + TILE + reach],
                first[y : y + TILE, x : x + TILE],
                cv2.TM_CCOEFF_NORMED,
            )
            _, score, _, (dx, dy) = cv2.minMaxLoc(found)
            centres.append((x + TILE / 2, y + TILE / 2))
            moves.append((dx - reach, dy - reach))
            scores.append(score)
    return np.array(centres).reshape(-1, 2), np.array(moves).reshape(-1, 2), np.array(scores)


def _warped(image: np.ndarray, matrix: np.ndarray, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """``image`` seen through ``matrix`` (target to image coordinates), and where it is defined."""
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    # (x + 0.5) coordinates to OpenCV's pixel centres
    shifted = matrix.copy()
    shifted[:, 2] += shifted[:, :2].sum(axis=1) * 0.5 - 0.5
    size = (shape[1], shape[0])
    scale = float(max(abs(matrix[0, 0]), abs(matrix[1, 1])))
    if scale > 1.2:
        image = cv2.GaussianBlur(image, (0, 0), 0.4 * scale)
    seen = cv2.warpAffine(image, shifted, size, flags=flags, borderMode=cv2.BORDER_REPLICATE)
    inside = cv2.warpAffine(np.full(image.shape, 255, np.uint8), shifted, size, flags=flags)
    return seen, inside > 254


def registered_correlation(first: np.ndarray, second: np.ndarray, matrix: np.ndarray) -> float:
    """Median tile correlation of ``second`` registered on ``first``; ``matrix`` maps first to second."""
    texture, deviation = texture_of(first)
    for reach in (6, 4, 2):
        seen, inside = _warped(second, matrix, first.shape)
        other, other_deviation = texture_of(seen)
        lively = inside & (deviation > FLAT) & (other_deviation > FLAT)
        lively = cv2.morphologyEx(lively.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8)) > 0
        centres, moves, scores = _tiles(texture, other, lively & inside, reach)
        if len(scores) < MIN_TILES:
            return 0.0
        if np.median(scores) < HOPELESS:
            break
        good = scores >= max(0.4, float(np.median(scores)))
        if reach > 2 and good.sum() >= 4:
            correction = np.vstack([_fit(centres[good], centres[good] + moves[good], 1.0), [0, 0, 1]])
            matrix = matrix @ correction
    return float(np.clip(np.median(scores), -1, 1))
