"""Near-duplicate images: the same frame again, in one of the ``DISGUISES``.

``fingerprint`` reduces each image to a thumbnail and its SIFT keypoints (Lowe 2004). Then there are two steps:

1. Candidates. An index of randomised kd-trees (FLANN, Muja and Lowe 2009) finds the most similar keypoints of other
   images. Two images that share a few of them, at places which one map explains, are candidates. Local features
   survive crops, frames, tool bars and marks; a hash of the whole image does not. SIFT does not depend on rotation,
   and the descriptors of the mirrored and of the inverted image are permutations of the image's own.
2. Verification. The candidates' thumbnails are registered on each other, tile by tile (see ``registration``); the
   score is the median over the textured tiles of the normalised cross-correlation of the band-passed, locally
   normalised images. Speckle distinguishes two frames of the same anatomy, and a median ignores marks on less than
   half of the tiles.

docs/performance.md holds what was measured. Work grows with the images, not with their pairs; memory is about
210 KB an image.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

from bus_smp.data.near_duplicates.registration import MIN_PLACES, maps_between, registered_correlation
from bus_smp.system.threads import read_ahead

# What the search sees through, as the audit says it. Measured on real images (docs/performance.md); name no more than that.
DISGUISES = (
    "copies turned by any angle, mirrored, cropped to half of the area, zoomed by 0.8 to 1.5, resized in proportion, framed, marked, "
    "brighter, darker, tinted, inverted, noisy or saved as JPEG"
)

# Longer side of a thumbnail, pixels. All lengths are in these.
SIDE = 256
# A thumbnail with a shorter side has no room for the tiles of the verification.
MIN_SIDE = 24
KEYPOINTS = 200

# Principal axes of the descriptors that the index holds: a quarter of the memory, and faster than all 128.
DIMENSIONS = 32
TREES = 2
# Leaves of the trees that are visited for one keypoint.
CHECKS = 16
NEIGHBOURS = 5
# Squared distance of two descriptors along these axes, each descriptor of length 1.
SAME_KEYPOINT = 0.12
# Keypoints that are searched for at once.
BLOCK = 1 << 13

# Candidates an image has for itself. All pairs are found of as many copies and one more.
CANDIDATES = 8
SAME_SPECKLE = 0.75

# A descriptor is 4 x 4 cells of 8 directions, relative to the keypoint's own. Mirroring turns the rows of cells
# around and negates the directions. Inverting the grey levels turns the keypoint's own direction by 180 degrees.
MIRRORED = np.arange(128).reshape(4, 4, 8)[::-1, :, -np.arange(8) % 8].ravel()
INVERTED = np.arange(128).reshape(4, 4, 8)[::-1, ::-1].ravel()
# How an image may show another: the order of its descriptors, and how many of its keypoints are searched for, as one
# of so many. Inverted copies are otherwise unchanged and share most keypoints: a quarter finds them at a quarter of the cost.
VIEWS = ((np.arange(128), 1), (MIRRORED, 2), (INVERTED, 4), (MIRRORED[INVERTED], 4))

Progress = Callable[[Iterable, int, str], Iterable]


@dataclass(frozen=True, eq=False, slots=True)
class Fingerprint:
    """What is kept of an image, about 40 KB.

    phash: 256-bit dHash, 64 hex digits.
    width: of the thumbnail, pixels.
    points: float32 (n, 2), x and y of the keypoints in the thumbnail; none if the image is too small or flat.
    descriptors: uint8 (n, 128), SIFT.
    thumbnail: JPEG, grey, longer side 256 px; empty where there are no keypoints.
    """

    phash: str
    width: int
    points: np.ndarray
    descriptors: np.ndarray
    thumbnail: bytes


class Pair(NamedTuple):
    """Indices of two near-duplicates, first < second, and the median correlation of their tiles."""

    first: int
    second: int
    correlation: float


class Candidate(NamedTuple):
    """Two images that share keypoints: first < second, and as which of the ``VIEWS`` the second is seen.

    ``places``: number of places where shared keypoints agree on one map (see ``registration``).
    """

    first: int
    second: int
    view: int
    places: int

    @property
    def mirrored(self) -> bool:
        """Whether left and right are exchanged."""
        return self.view % 2 == 1

    @property
    def inverted(self) -> bool:
        """Whether bright and dark are exchanged."""
        return self.view >= 2


def dhash(gray: np.ndarray) -> str:
    """256-bit difference hash (Krawetz 2013) of uint8 (H, W), as 64 hex digits.

    Each bit states whether one of 16 x 17 area means is brighter than its left neighbour.
    """
    small = cv2.resize(gray, (17, 16), interpolation=cv2.INTER_AREA)
    return np.packbits(small[:, 1:] > small[:, :-1]).tobytes().hex()


def fingerprint(image: np.ndarray) -> Fingerprint:
    """Reduce an image, uint8 (H, W, 3) RGB or (H, W), to what the comparison needs.

    The image may have any size; one that is too small or too flat for texture gets no keypoints and matches nothing.
    """
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) if image.ndim == 3 else image
    height, width = gray.shape
    scale = SIDE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    thumbnail = cv2.resize(gray, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    points, descriptors, encoded = np.zeros((0, 2), np.float32), np.zeros((0, 128), np.uint8), b""
    if min(size) >= MIN_SIDE:
        # Speckle has far less contrast than what SIFT's default keeps.
        sift = cv2.SIFT_create(KEYPOINTS, contrastThreshold=0.01)
        keypoints, found = sift.detectAndCompute(thumbnail, None)
        if keypoints:
            points, descriptors = cv2.KeyPoint_convert(keypoints), found.astype(np.uint8)
            encoded = cv2.imencode(".jpg", thumbnail, [cv2.IMWRITE_JPEG_QUALITY, 75])[1].tobytes()
    return Fingerprint(dhash(gray), size[0], points, descriptors, encoded)


def find_near_duplicates(
    fingerprints: Sequence[Fingerprint], progress: Progress | None = None, *, across: int | None = None
) -> list[Pair]:
    """Pairs of images that show the same frame: registered correlation of at least ``SAME_SPECKLE``.

    Not every pair is returned of more than ``CANDIDATES`` + 1 copies of one image, but enough to connect them: group
    the images by connected components. Exact copies are found as well, unless they are too flat or small for texture.

    Args:
        across: only pairs of one of the first ``across`` images and one of the others; fastest where the others are few.

    Returns:
        pairs sorted by (first, second). Pairs and correlations do not depend on the order of the images.
    """
    places = [i for i, found in enumerate(fingerprints) if len(found.points)]
    if len(places) < 2:
        return []
    # one order for all callers
    places.sort(key=lambda i: (fingerprints[i].phash, fingerprints[i].thumbnail))
    prints = [fingerprints[i] for i in places]
    asked = None if across is None else np.array(places) >= across
    progress = progress or (lambda items, total, text: items)

    def score(candidate: Candidate) -> float:
        return _correlation(prints[candidate.first], prints[candidate.second], candidate)

    candidates = _candidates(prints, asked, progress)
    scores = progress(read_ahead(score, candidates, ahead=64), len(candidates), "near-duplicates: verify")
    best: dict[tuple[int, int], float] = {}
    for candidate, correlation in zip(candidates, scores, strict=True):
        if correlation >= SAME_SPECKLE:
            first, second = sorted((places[candidate.first], places[candidate.second]))
            best[first, second] = max(correlation, best.get((first, second), 0.0))
    return [Pair(first, second, correlation) for (first, second), correlation in sorted(best.items())]


def _correlation(first: Fingerprint, second: Fingerprint, seen: Candidate) -> float:
    """Score of a candidate, -1..1; it depends on no other image."""
    matches = cv2.BFMatcher(cv2.NORM_L2, crossCheck=True).match(
        _unit(first.descriptors), _unit(second.descriptors[:, VIEWS[seen.view][0]])
    )
    p = first.points[[match.queryIdx for match in matches]]
    q = _points(second, [match.trainIdx for match in matches], seen.mirrored)
    maps, _ = maps_between(p, q)
    one, two = _decode(first), _decode(second)
    two = cv2.flip(two, 1) if seen.mirrored else two
    two = 255 - two if seen.inverted else two
    return max((registered_correlation(one, two, matrix) for matrix in maps), default=0.0)


def _points(found: Fingerprint, rows: Sequence[int] | np.ndarray, mirrored: bool) -> np.ndarray:
    """Float32 (rows, 2): some keypoints of an image or of its mirror image."""
    points = found.points[rows]
    if mirrored:
        points[:, 0] = found.width - 1 - points[:, 0]
    return points


def _decode(found: Fingerprint) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(found.thumbnail, np.uint8), cv2.IMREAD_GRAYSCALE)


def _candidates(
    prints: Sequence[Fingerprint], asked: np.ndarray | None, progress: Progress
) -> list[Candidate]:
    """Images that share enough keypoints to be registered; the best of each image.

    Args:
        asked: bool (images,): only pairs of one that is and one that is not; None: all pairs.
    """
    count = len(prints)
    sizes = [len(found.points) for found in prints]
    image = np.repeat(np.arange(count, dtype=np.int32), sizes)
    begins = np.cumsum(sizes) - sizes
    a, b, view = _similar_keypoints(prints, image, asked, progress)
    pair = (image[a].astype(np.int64) * count + image[b]) * len(VIEWS) + view
    order = np.argsort(pair, kind="stable")
    starts = np.flatnonzero(np.diff(pair[order], prepend=-1))
    ends = np.append(starts[1:], len(order))
    enough = ends - starts >= MIN_PLACES
    found = []
    for start, end in zip(starts[enough], ends[enough], strict=True):
        rows = order[start:end]
        first, second = int(image[a[rows[0]]]), int(image[b[rows[0]]])
        found_as = Candidate(first, second, int(view[rows[0]]), 0)
        p = _points(prints[first], a[rows] - begins[first], False)
        q = _points(prints[second], b[rows] - begins[second], found_as.mirrored)
        _, places = maps_between(p, q)
        if places >= MIN_PLACES:
            found.append(found_as._replace(places=places))
    return _best(found, count)


def _best(candidates: list[Candidate], images: int) -> list[Candidate]:
    """Those that are among the first ``CANDIDATES`` of either image, so that text shared by all images costs little."""
    left = np.full(images, CANDIDATES)
    kept = []
    for candidate in sorted(candidates, key=lambda c: -c.places):
        both = [candidate.first, candidate.second]
        if left[both].max() > 0:
            kept.append(candidate)
        left[both] -= 1
    return kept


def _similar_keypoints(
    prints: Sequence[Fingerprint],
    image: np.ndarray,
    asked: np.ndarray | None,
    progress: Progress,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Keypoints of different images that look the same in one of the ``VIEWS``.

    Args:
        image: int32 (N,), the image of each keypoint; keypoints are numbered image by image.
        asked: as in ``_candidates``.

    Returns:
        a, b, int32 (K,), and the view in which they look the same, int8 (K,); a's image is before b's, no match twice.
    """
    # A function of its own, so that the index is freed before the matches are sorted.
    matches = _search_index(prints, image, asked, progress)
    # Most are found from both of their ends. np.unique would hash them, which takes five times the memory.
    matches.sort()
    matches = matches[np.diff(matches, prepend=-1) > 0]
    both, view = np.divmod(matches, len(VIEWS))
    a, b = np.divmod(both, len(image))
    return a.astype(np.int32), b.astype(np.int32), view.astype(np.int8)


def _search_index(
    prints: Sequence[Fingerprint],
    image: np.ndarray,
    asked: np.ndarray | None,
    progress: Progress,
) -> np.ndarray:
    """Matches as in ``_similar_keypoints``, some twice, each as one number: int64 (a * N + b) * 4 + view."""
    descriptors = np.concatenate([found.descriptors for found in prints])
    # a sample of 20,000 or more is enough for the axes
    _, axes = np.linalg.eigh(np.cov(_unit(descriptors[:: max(1, len(descriptors) // 20_000)]).T))
    axes = axes[:, -DIMENSIONS:].astype(np.float32)
    everything = np.arange(len(descriptors))
    held = everything if asked is None else np.flatnonzero(~asked[image])
    wanted = everything if asked is None else np.flatnonzero(asked[image])
    if not len(held) or not len(wanted):
        return np.zeros(0, np.int64)
    reduced = np.concatenate([_unit(descriptors[rows]) @ axes for rows in _blocks(held)])
    # FLANN draws its trees from OpenCV's generator
    cv2.setRNGSeed(0)
    index = cv2.flann_Index(reduced, {"algorithm": 1, "trees": TREES})

    def search(rows: np.ndarray) -> np.ndarray:
        found = []
        for view, (order, one_of) in enumerate(VIEWS):
            asking = rows[::one_of]
            query = _unit(descriptors[asking][:, order]) @ axes
            near, distance = index.knnSearch(query, min(NEIGHBOURS, len(reduced)), params={"checks": CHECKS})
            row, column = np.nonzero(distance < SAME_KEYPOINT)
            a, b = np.sort([asking[row], held[near[row, column]]], axis=0)
            different = image[a] != image[b]
            found.append(((a * len(image) + b) * len(VIEWS) + view)[different])
        return np.concatenate(found)

    blocks = _blocks(wanted)
    searched = progress(read_ahead(search, blocks, ahead=4), len(blocks), "near-duplicates: search")
    return np.concatenate(list(searched))


def _blocks(keypoints: np.ndarray) -> list[np.ndarray]:
    return [keypoints[start : start + BLOCK] for start in range(0, len(keypoints), BLOCK)]


def _unit(descriptors: np.ndarray) -> np.ndarray:
    """Float32 (n, 128) of length 1: roots of the shares of each bin (RootSIFT, Arandjelovic and Zisserman 2012)."""
    values = descriptors.astype(np.float32)
    return np.sqrt(values / (values.sum(axis=1, keepdims=True) + 1e-6))
