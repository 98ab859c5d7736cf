"""Near-duplicate images: the same frame again, cropped, rescaled, marked or otherwise re-saved."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

SIDE = 256
LEVELS = (1.0, 0.8, 0.64, 0.512)
PER_LEVEL = 40
OFFSETS = np.array([-10, -7, -4, -1, 1, 4, 7, 10])  # samples of a patch; symmetric, so it can be mirrored
MARGIN = 11

TABLES, BITS = 10, 22
NEIGHBOURS = 8
CROWD = 40
SAME_PATCH = 0.75
MIN_PLACES = 4

TILE, TILE_STEP = 32, 24
MIN_TILES = 12
HOPELESS = 0.3
SAME_SPECKLE = 0.75


@dataclass(frozen=True, eq=False)
class Fingerprint:
    """What is kept of an image (about 16 KB).

    phash: 256-bit dHash, 64 hex digits.
    thumbnail: JPEG bytes, grey, longer side 256 px; empty if the image is too small or flat.
    points: float32 (N, 3): x, y in thumbnail pixels, and scale of the level they were found at.
    patches: int8 (N, 64): the band-passed neighbourhood of each point.
    """

    phash: str
    thumbnail: bytes
    points: np.ndarray
    patches: np.ndarray


class Pair(NamedTuple):
    """Indices of two near-duplicates, first < second, and the median correlation of their tiles."""

    first: int
    second: int
    correlation: float


def dhash(gray: np.ndarray) -> str:
    """256-bit difference hash (Krawetz 2013) of uint8 (H, W), as 64 hex digits."""
    small = cv2.resize(gray, (17, 16), interpolation=cv2.INTER_AREA)
    return np.packbits(small[:, 1:] > small[:, :-1]).tobytes().hex()


def dhash_distance(first: str, second: str) -> int:
    """Number of bits, 0..256, in which two dHashes differ."""
    return (int(first, 16) ^ int(second, 16)).bit_count()


def _grey(image: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) if image.ndim == 3 else image


def _texture(gray: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Band-passed image in units of its local deviation, and that deviation."""
    values = gray.astype(np.float32)
    band = cv2.GaussianBlur(values, (7, 7), 1.2) - cv2.GaussianBlur(values, (19, 19), 4.0)
    deviation = cv2.sqrt(cv2.blur(band * band, (25, 25)))
    return band / (deviation + 1.0), deviation


def _features(thumbnail: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    points, patches = [], []
    for level in LEVELS:
        scaled = (
            thumbnail
            if level == 1
            else cv2.resize(thumbnail, None, fx=level, fy=level, interpolation=cv2.INTER_AREA)
        )
        if min(scaled.shape) <= 2 * MARGIN:
            continue
        texture, deviation = _texture(scaled)
        strength = np.abs(texture)
        peak = (strength == cv2.dilate(strength, np.ones((7, 7), np.uint8))) & (deviation > 1.5)
        peak[:MARGIN] = peak[-MARGIN:] = False
        peak[:, :MARGIN] = peak[:, -MARGIN:] = False
        y, x = np.nonzero(peak)
        best = np.argsort(-strength[y, x], kind="stable")[:PER_LEVEL]
        y, x = y[best], x[best]
        patch = texture[y[:, None, None] + OFFSETS[None, :, None], x[:, None, None] + OFFSETS[None, None, :]]
        patch = patch.reshape(len(y), -1)
        patch = patch - patch.mean(axis=1, keepdims=True)
        patch /= patch.std(axis=1, keepdims=True) + 1e-6
        patches.append(np.clip(np.rint(patch * 32), -127, 127).astype(np.int8))
        scale_x, scale_y = scaled.shape[1] / thumbnail.shape[1], scaled.shape[0] / thumbnail.shape[0]
        points.append(np.stack([(x + 0.5) / scale_x, (y + 0.5) / scale_y, np.full(len(x), 1 / level)], 1))
    if not points:
        return np.zeros((0, 3), np.float32), np.zeros((0, OFFSETS.size**2), np.int8)
    return np.concatenate(points).astype(np.float32), np.concatenate(patches)


def fingerprint(image: np.ndarray) -> Fingerprint:
    """Reduce an image, uint8 (H, W, 3) or (H, W), to what the comparison needs."""
    gray = _grey(image)
    height, width = gray.shape
    scale = SIDE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    thumbnail = cv2.resize(gray, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    points, patches = _features(thumbnail)
    encoded = b""
    if len(points):
        encoded = cv2.imencode(".jpg", thumbnail, [cv2.IMWRITE_JPEG_QUALITY, 75])[1].tobytes()
    return Fingerprint(dhash(gray), encoded, points, patches)


def _matches(patches: np.ndarray, owner: np.ndarray, images: int) -> np.ndarray:
    """Pairs of alike patches of different images: int64 (K, 2), first owner < second owner, sorted."""
    rng = np.random.default_rng(0)
    total = len(patches)
    codes = []
    for _ in range(TABLES):
        # integer weights keep the products exact, whatever the order of summation
        directions = rng.integers(-8, 9, (patches.shape[1], BITS)).astype(np.float32)
        key = np.zeros(total, np.uint32)
        for start in range(0, total, 1 << 17):
            block = patches[start : start + (1 << 17)].astype(np.float32) @ directions > 0
            key[start : start + len(block)] = block @ (1 << np.arange(BITS, dtype=np.uint32))
        # Within a bucket the images stand in another order for each table, so that a patch which
        # thousands share (scanner text) meets many of them and shows itself as common.
        rank = rng.permutation(images)[owner % images]
        order = np.argsort(key.astype(np.uint64) << np.uint64(32) | rank.astype(np.uint64), kind="stable")
        key = key[order]
        for step in range(1, NEIGHBOURS + 1):
            at = np.flatnonzero(key[step:] == key[:-step])
            a, b = order[at], order[at + step]
            a, b = np.minimum(a, b), np.maximum(a, b)
            # an image is not compared with itself; of image and mirror one combination is enough
            wanted = (owner[a] < images) & (owner[a] < owner[b] % images)
            codes.append(_alike(patches, a[wanted], b[wanted], total))
        codes = [_distinct(np.concatenate(codes))]
    return np.stack(np.divmod(codes[0], total), 1)


def _distinct(numbers: np.ndarray) -> np.ndarray:
    """np.unique, ten times faster here: for integers that one hashes before it sorts."""
    ordered = np.sort(numbers)
    return ordered[np.r_[True, ordered[1:] != ordered[:-1]]] if len(ordered) else ordered


def _alike(patches: np.ndarray, a: np.ndarray, b: np.ndarray, total: int) -> np.ndarray:
    kept = []
    for start in range(0, len(a), 1 << 17):
        i, j = a[start : start + (1 << 17)], b[start : start + (1 << 17)]
        first, second = patches[i].astype(np.float32), patches[j].astype(np.float32)
        product = np.einsum("nd,nd->n", first, second)
        norm = np.einsum("nd,nd->n", first, first) * np.einsum("nd,nd->n", second, second)
        good = (product > 0) & (product * product >= SAME_PATCH**2 * norm)
        kept.append(i[good].astype(np.int64) * total + j[good])
    return np.concatenate(kept) if kept else np.zeros(0, np.int64)


def _align(p: np.ndarray, q: np.ndarray) -> np.ndarray | None:
    """Axis-aligned map p -> q, a (2, 3) matrix, on which enough matches agree; None if they do not."""
    ratio = q[:, 2] / p[:, 2]
    shift = q[:, :2] - ratio[:, None] * p[:, :2]
    predicted = ratio[:, None, None] * p[None, :, :2] + shift[:, None, :]
    near = (np.abs(predicted - q[None, :, :2]) < 12).all(axis=2)
    near &= np.abs(np.log(ratio[:, None] / ratio[None, :])) < 0.35
    best = int(np.argmax(near.sum(axis=1)))
    chosen = np.flatnonzero(near[best])
    # the levels see one blob several times: count places, not points
    if len(np.unique(p[chosen, :2] // 8, axis=0)) < MIN_PLACES:
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


def _verify(first: np.ndarray, second: np.ndarray, matrix: np.ndarray) -> tuple[float, int]:
    """Median tile correlation of ``second`` registered on ``first``, and the number of tiles."""
    texture, deviation = _texture(first)
    for reach in (6, 4, 2):
        seen, inside = _warped(second, matrix, first.shape)
        other, other_deviation = _texture(seen)
        lively = inside & (deviation > 1.5) & (other_deviation > 1.5)
        lively = cv2.morphologyEx(lively.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8)) > 0
        centres, moves, scores = _tiles(texture, other, lively & inside, reach)
        if len(scores) < MIN_TILES:
            return 0.0, len(scores)
        if np.median(scores) < HOPELESS:
            break
        good = scores >= max(0.4, float(np.median(scores)))
        if reach > 2 and good.sum() >= 4:
            correction = _fit(centres[good], centres[good] + moves[good], 1.0)
            scale = np.diag(matrix[:, :2])
            updated = matrix.copy()
            updated[:, :2] = np.diag(scale * np.diag(correction[:, :2]))
            updated[:, 2] = scale * correction[:, 2] + matrix[:, 2]
            matrix = updated
    return float(np.median(scores)), len(scores)


def _decode(encoded: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_GRAYSCALE)


def find_near_duplicates(fingerprints: Sequence[Fingerprint]) -> list[Pair]:
    """All pairs of images that show the same frame.

    Returns:
        pairs sorted by (first, second); which pairs are found does not depend on the order of the images.
    """
    return [Pair(i, j, c) for i, j, c, *_ in _compare(fingerprints) if c >= SAME_SPECKLE]


def _compare(fingerprints: Sequence[Fingerprint]) -> list[tuple[int, int, float, int, int]]:
    # One order for all callers, so that the result does not depend on theirs.
    content = sorted(
        range(len(fingerprints)), key=lambda i: (fingerprints[i].phash, fingerprints[i].thumbnail)
    )
    ordered = [fingerprints[i] for i in content]
    counts = [len(f.points) for f in ordered]
    if len(ordered) < 2 or sum(counts) < 2:
        return []
    count = len(ordered)
    # image i mirrored is image count + i
    patches = np.concatenate([f.patches for f in ordered])
    mirrored = patches.reshape(-1, len(OFFSETS), len(OFFSETS))[:, :, ::-1].reshape(patches.shape)
    owner = np.repeat(np.arange(count), counts)
    points = np.concatenate([f.points for f in ordered])
    a, b = _matches(np.concatenate([patches, mirrored]), np.concatenate([owner, owner + count]), count).T
    mirror = b >= len(owner)
    b = b % len(owner)
    common = (np.bincount(a, minlength=len(owner)) + np.bincount(b, minlength=len(owner))) > CROWD
    # A patch of many images (scanner text) is no evidence for any two of them: it keeps one match, which still
    # chains the frames of a long still video together.
    first_match = np.r_[True, a[1:] != a[:-1]] if len(a) else np.zeros(0, bool)
    kept = ~(common[a] | common[b]) | first_match
    a, b, mirror = a[kept], b[kept], mirror[kept]
    pair = (owner[a].astype(np.int64) * count + owner[b]) * 2 + mirror
    order = np.argsort(pair, kind="stable")
    a, b, pair = a[order], b[order], pair[order]
    starts = np.flatnonzero(np.r_[True, pair[1:] != pair[:-1]]) if len(pair) else np.zeros(0, int)
    ends = np.r_[starts[1:], len(pair)]
    enough = ends - starts >= MIN_PLACES
    found = []
    for start, end in zip(starts[enough], ends[enough], strict=True):
        i, j = int(owner[a[start]]), int(owner[b[start]])
        p, q = points[a[start:end]], points[b[start:end]]
        if pair[start] % 2:
            q = np.stack([SIDE - q[:, 0], q[:, 1], q[:, 2]], 1)
        aligned = _align(p, q)
        if aligned is None:
            continue
        matrix, places = aligned, int(end - start)
        one, two = _decode(ordered[i].thumbnail), _decode(ordered[j].thumbnail)
        if pair[start] % 2:
            two = cv2.flip(two, 1)
            matrix[0, 2] += two.shape[1] - SIDE
        scale = np.diag(matrix[:, :2])
        if (scale < 0.3).any() or (scale > 3.3).any():
            continue
        if scale.prod() < 1:  # compare in the coarser frame: nothing is enlarged
            inverse = np.zeros((2, 3))
            inverse[:, :2] = np.diag(1 / scale)
            inverse[:, 2] = -matrix[:, 2] / scale
            one, two, matrix = two, one, inverse
        score, tiles = _verify(one, two, matrix)
        first, second = sorted((content[i], content[j]))
        found.append((first, second, score, tiles, places))
    return sorted(found)
