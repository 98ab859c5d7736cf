"""Registers one ultrasound image on another and measures whether their speckle agrees.

Lengths are pixels of thumbnails whose longer side is 256. A map is a float (2, 3) affine matrix from (x, y) of the
first image to (x, y) of the second, where the centre of the upper left pixel is (0, 0), as in OpenCV.
"""

import cv2
import numpy as np

# Grey levels of local deviation. Below it there is no texture to compare.
FLAT = 1.5
# Matches at fewer places prove nothing.
MIN_PLACES = 4
# Distance of a match from the similarity that explains it. It leaves room for a change of aspect of 20 %.
SAME_PLACE = 12
# Cotangent of the angle (5 degrees) below which two images may not be turned at all.
UNTURNED = 12
# Smallest and largest scale of one image in the other.
SCALES = (0.3, 3.3)

TILE, TILE_STEP = 32, 24
# Ten tiles of two different patients reached a median of 0.65.
MIN_TILES = 12
# No copy has a lower score after the first registration.
HOPELESS = 0.3


def texture_of(gray: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Band-passed image in units of its local deviation, and that deviation: float32, the shape of ``gray``."""
    values = gray.astype(np.float32)
    band = cv2.GaussianBlur(values, (7, 7), 1.2) - cv2.GaussianBlur(values, (19, 19), 4.0)
    # The running sums of cv2.blur end a little below 0 where an image is black.
    deviation = cv2.sqrt(np.maximum(cv2.blur(band * band, (25, 25)), 0))
    return band / (deviation + 1.0), deviation


def maps_between(p: np.ndarray, q: np.ndarray) -> tuple[list[np.ndarray], int]:
    """Maps p -> q on which most matches agree, and the number of places that do; no map if there are too few.

    The first map turns and shears. The second only scales and shifts: it is steadier where few matches are exact, as
    in frames of one sweep.

    Args:
        p, q: float32 (matches, 2), x and y of the matched points.
    """
    if len(p) < MIN_PLACES:
        return [], 0
    similarity, agree = cv2.estimateAffinePartial2D(p, q, ransacReprojThreshold=SAME_PLACE, maxIters=500)
    if similarity is None:
        return [], 0
    p, q = p[agree.ravel() == 1], q[agree.ravel() == 1]
    # SIFT finds several points at one place.
    places = len(np.unique(p // 8, axis=0))
    if places < MIN_PLACES:
        return [], places
    maps = [_affine(p, q, similarity)]
    if similarity[0, 0] > abs(similarity[0, 1]) * UNTURNED:
        maps.append(_scale_and_shift(p, q))
    return maps, places


def _affine(p: np.ndarray, q: np.ndarray, fallback: np.ndarray) -> np.ndarray:
    """Least-squares map p -> q; ``fallback`` where the points are too few or too close to a line."""
    spread = np.linalg.svd(p - p.mean(axis=0), compute_uv=False)[-1] / np.sqrt(len(p))
    if len(p) < 6 or spread < 12:
        return fallback
    return np.linalg.lstsq(np.column_stack([p, np.ones(len(p))]), q, rcond=None)[0].T


def _scale_and_shift(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Least-squares map p -> q of a scale and a shift for each axis; no scale where the points lie in a line.

    Tiles of frames of one sweep move apart in ways that no affine map explains: more freedom fits worse to the rest.
    """
    matrix = np.zeros((2, 3))
    for axis in range(2):
        spread = p[:, axis] - p[:, axis].mean()
        scale = float(spread @ q[:, axis] / (spread @ spread)) if np.ptp(p[:, axis]) > 40 else 1.0
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
    """``image`` resampled on the grid from which ``matrix`` maps, and where it is defined (bool)."""
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    size = (shape[1], shape[0])
    scale = float(np.linalg.norm(matrix[:, :2], 2))
    if scale > 1.2:
        image = cv2.GaussianBlur(image, (0, 0), 0.4 * scale)
    seen = cv2.warpAffine(image, matrix, size, flags=flags, borderMode=cv2.BORDER_REPLICATE)
    inside = cv2.warpAffine(np.full(image.shape, 255, np.uint8), matrix, size, flags=flags)
    return seen, inside > 254


def registered_correlation(first: np.ndarray, second: np.ndarray, matrix: np.ndarray) -> float:
    """Median correlation, -1..1, of the tiles of two images after ``second`` is registered on ``first``.

    The normalised cross-correlation (Lewis 1995) of ``texture_of`` both. 0 where too little of the two overlaps or
    where the map shrinks or enlarges beyond ``SCALES``.

    Args:
        first, second: uint8 (H, W), the sizes may differ.
        matrix: the map from first to second, exact to a few pixels; it is refined here.
    """
    smallest, largest = np.linalg.svd(matrix[:, :2], compute_uv=False)[[-1, 0]]
    if smallest < SCALES[0] or largest > SCALES[1]:
        return 0.0
    # Compare in the coarser grid, so that nothing is enlarged.
    if abs(np.linalg.det(matrix[:, :2])) < 1:
        first, second, matrix = second, first, cv2.invertAffineTransform(matrix)
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
            correction = np.vstack([_scale_and_shift(centres[good], centres[good] + moves[good]), [0, 0, 1]])
            matrix = matrix @ correction
    return float(np.clip(np.median(scores), -1, 1))
