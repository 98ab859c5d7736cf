"""Alike patches of different images, by locality-sensitive hashing: work and memory grow linearly with the images.

The key of a patch is the signs of some random projections (Charikar 2002). Patches of one key, a bucket, are compared
with a few of their neighbours in it, and that is repeated with other projections, one table of buckets at a time.

Up to ``FEW`` images every such neighbour is looked at. Of more images buckets would fill with patches that are alike
only because each surrounds a bright or dark spot: keys are then blind to that (``_blind``) and longer, and a sketch
of 64 more signs decides which neighbours are worth reading.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from bus_smp.data.near_duplicates.patches import Patches
from bus_smp.system.threads import read_ahead

TABLES = 10
NEIGHBOURS = 8  # entries of a bucket that one entry is compared with: the work stays linear in the images
SAME_PATCH = 0.85
BEST = 4  # matches a patch keeps: fewer would separate a crop with its copies from the whole with its copies

FEW = 4096  # images
BITS = 22  # of a key, for few images
MANY_TABLES = 3
MANY_BITS = 22  # of a blind key; one more whenever the images double, so that buckets grow no fuller
UNLIKE = 17  # of 64 signs: alike patches differ in fewer
CROWDED = 64  # entries of a blind bucket: what so many share is compared with the first of them alone

BLOCK = 1 << 13  # patches projected at once
PIECE = 1 << 20  # entries sorted at once
WAITING = 1 << 23  # pairs found before their patches are read


@dataclass(frozen=True)
class Matches:
    """Pairs of alike patches of different images.

    a, b: int64 (K,), numbers of the patches; a's image is before b's. Sorted by a, mirrored and b.
    mirrored: bool (K,), whether a is like the mirror image of b.
    compared, read: how many pairs of neighbours there were, and of how many the patches were read.
    """

    a: np.ndarray
    b: np.ndarray
    mirrored: np.ndarray
    compared: int
    read: int


def find_matches(of_images: Iterable[np.ndarray], counts: np.ndarray, side: int, deviation: float) -> Matches:
    """Compare the patches of all images.

    Args:
        of_images: int8 (n, side * side) for each image, patches of mean 0 and of this deviation.
        counts: int (images,), n of each.

    Raises:
        BusSmpError: where the disk for the temporary file is full.
    """
    counts = np.asarray(counts, np.int64)
    total, images = int(counts.sum()), len(counts)
    many = images > FEW
    bits = MANY_BITS + math.ceil(math.log2(images / FEW)) if many else BITS
    rng = np.random.default_rng(0)
    patches = Patches(of_images, total, side, deviation)
    image = np.repeat(np.arange(images, dtype=np.uint32), counts)
    sketch = None
    if many:
        signs = _signs(patches, _blind(rng.integers(-8, 9, (side * side, 32)), side))
        sketch = (
            signs[0].astype(np.uint64) << np.uint64(32) | signs[1]
        )  # of the mirror image: the halves swapped
        del signs
    codes, compared, read = np.zeros(0, np.int64), 0, 0
    pairs: list[np.ndarray] = []
    for _ in range(MANY_TABLES if many else TABLES):
        directions = rng.integers(-8, 9, (side * side, bits))
        keys = _signs(patches, _blind(directions, side) if many else directions)
        order = (
            _Scattered(2 * int(rng.integers(1 << 31)) + 1)
            if many
            else _Shuffled(image, rng.permutation(images))
        )
        for found, neighbours in _neighbours(keys, sketch, image, order):
            pairs.append(found)
            compared += neighbours
            if sum(map(len, pairs)) > WAITING:
                read += sum(map(len, pairs))
                codes = _with(codes, pairs, patches)
        del keys
    read += sum(map(len, pairs))
    codes = _with(codes, pairs, patches)
    a, b = np.divmod(codes >> 8, 2 * total)
    return Matches(a, b % total, b >= total, compared, read)


def _with(codes: np.ndarray, pairs: list[np.ndarray], patches: Patches) -> np.ndarray:
    """The best of these codes and of those of the pairs (see ``Patches.alike``)."""
    alike = patches.alike(_distinct(_joined(pairs)), SAME_PATCH)
    return _best(_distinct(np.concatenate([codes, *alike])), len(patches))


def _joined(pairs: list[np.ndarray]) -> np.ndarray:
    """All in one array; the list is empty afterwards, for they are many."""
    joined = np.concatenate([np.zeros(0, np.int64), *pairs])
    pairs.clear()
    return joined


def _blind(directions: np.ndarray, side: int) -> np.ndarray:
    """Directions int (side^2, bits) that do not see what patches have in common: a spot in the middle of a streak.

    A patch is cut out around an extremum, and speckle is wider than high. Weights that sum to 0 over the middle, over
    the rest of its rows and over all others spread patches of different images over more buckets.
    """
    part = np.zeros((side, side), int)
    middle = slice(side // 2 - 1, side // 2 + 1)
    part[middle] = 1
    part[middle, middle] = 2
    part = part.reshape(-1)
    whole = np.lcm.reduce(np.bincount(part))  # with it the means are whole numbers
    sums = np.stack([directions[part == p].sum(axis=0) * (whole // (part == p).sum()) for p in range(3)])
    return whole * directions - sums[part]


def _signs(patches: Patches, directions: np.ndarray) -> np.ndarray:
    """Uint32 (2, N): signs of each patch's products, the first in the highest bit, and those of its mirror image."""
    side, bits = patches.side, directions.shape[1]
    mirrored = directions.reshape(side, side, -1)[:, ::-1].reshape(directions.shape)
    # whole numbers below 2^24 keep the sums exact, whatever their order
    weights = np.concatenate([directions, mirrored], axis=1).astype(np.float32)
    signs = np.empty((2, len(patches)), np.uint32)

    def block(start: int) -> None:
        product = patches.rows(start, patches.buffer(BLOCK)).astype(np.float32) @ weights
        for i in range(2):
            positive = np.zeros((len(product), 32), bool)
            np.greater(product[:, i * bits : (i + 1) * bits], 0, out=positive[:, :bits])
            signs[i, start : start + len(product)] = np.packbits(positive).view(">u4")

    for _ in read_ahead(block, range(0, len(patches), BLOCK)):
        pass
    return signs


class _Shuffled:
    """The order of the entries of a bucket: image by image, and those in the order of ``rank``."""

    def __init__(self, image: np.ndarray, rank: np.ndarray) -> None:
        rank = rank[image].astype(np.int64) << 32
        both = np.stack([rank, rank | 1 << 31], axis=1) | np.arange(len(image))[:, None]
        self._numbers = np.argsort(both.reshape(-1)).astype(np.uint32)
        self._places = np.empty_like(self._numbers)
        self._places[self._numbers] = np.arange(len(self._numbers), dtype=np.uint32)

    def place(self, number: np.ndarray) -> np.ndarray:
        return self._places[number]

    def number(self, place: np.ndarray) -> np.ndarray:
        return self._numbers[place]


class _Scattered:
    """As ``_Shuffled``, but computed: by the number times an odd factor, modulo 2^32."""

    def __init__(self, factor: int) -> None:
        self._factor, self._back = np.uint32(factor), np.uint32(pow(factor, -1, 1 << 32))

    def place(self, number: np.ndarray) -> np.ndarray:
        return number * self._factor

    def number(self, place: np.ndarray) -> np.ndarray:
        return place * self._back


def _neighbours(
    keys: np.ndarray, sketch: np.ndarray | None, image: np.ndarray, order: _Shuffled | _Scattered
) -> Iterator[tuple[np.ndarray, int]]:
    """Pairs of patches whose keys are the same, or that of one and of the other's mirror image.

    Within a bucket the entries stand in another order for each table, so that a patch which thousands share (scanner
    text) does not meet the same few each time.

    Yields:
        piece by piece: codes of the pairs (see ``Patches.alike``), and how many neighbours were looked at.
    """
    halvings = (keys.size // PIECE).bit_length()

    def piece(number: int) -> tuple[np.ndarray, int]:
        entries = []
        for mirrored, key in enumerate(keys):
            # a key of fewer bits than 32 has them in front
            patch = (
                np.flatnonzero(key >> np.uint32(32 - halvings) == number) if halvings else np.arange(len(key))
            )
            place = order.place((2 * patch + mirrored).astype(np.uint32))
            entries.append(key[patch].astype(np.uint64) << np.uint64(32) | place)
        entry = np.concatenate(entries)
        del entries
        entry.sort()
        key = (entry >> np.uint64(32)).astype(np.uint32)
        return _pairs(key, order.number(entry.astype(np.uint32)), sketch, image)

    return read_ahead(piece, range(1 << halvings), ahead=3)


def _pairs(
    key: np.ndarray, number: np.ndarray, sketch: np.ndarray | None, image: np.ndarray
) -> tuple[np.ndarray, int]:
    """Neighbours within a bucket: codes of those to be read, and how many there were.

    number: uint32 (n,), twice the number of the patch, and 1 more for its mirror image.
    """
    begin = np.flatnonzero(np.r_[True, key[1:] != key[:-1]])
    size = np.diff(np.r_[begin, len(key)])
    codes, compared, signs = [], 0, None
    many = sketch is not None
    if many:
        shared = np.repeat(size > 1, size)
        key, number = key[shared], number[shared]
        size = size[size > 1]
        signs = sketch[number >> 1]
        signs = np.where(number & 1, signs << np.uint64(32) | signs >> np.uint64(32), signs)
        crowded = np.repeat(size > CROWDED, size)
        first = np.repeat(np.cumsum(size) - size, size)[crowded]
        crowd = np.flatnonzero(crowded)
        near = _ones(signs[first] ^ signs[crowd]) <= UNLIKE
        compared += len(crowd)
        codes.append(_codes(number[first[near]], number[crowd[near]], image, many))
        key, number, signs = key[~crowded], number[~crowded], signs[~crowded]
    for step in range(1, NEIGHBOURS + 1):
        near = key[step:] == key[:-step]
        compared += int(near.sum())
        if many:
            near &= _ones(signs[step:] ^ signs[:-step]) <= UNLIKE
        at = np.flatnonzero(near)
        codes.append(_codes(number[at], number[at + step], image, many))
    return np.concatenate(codes), compared


def _codes(one: np.ndarray, two: np.ndarray, image: np.ndarray, many: bool) -> np.ndarray:
    """Codes of pairs of entries that are of different images.

    Two patches also share a bucket if their mirror images do: of many images that is a second table for the price of one.
    """
    a, b = (one >> 1).astype(np.int64), (two >> 1).astype(np.int64)
    mirrored = (one ^ two) & 1
    wanted = image[a] != image[b]
    if not many:
        first = np.where(a < b, one, two)
        wanted &= (first & 1) == 0
    a, b, mirrored = a[wanted], b[wanted], mirrored[wanted]
    return (2 * np.minimum(a, b) + mirrored) * len(image) + np.maximum(a, b)


if hasattr(np, "bitwise_count"):  # numpy 2
    _ones = np.bitwise_count
else:
    _OF_16 = np.array([number.bit_count() for number in range(1 << 16)], np.uint8)

    def _ones(bits: np.ndarray) -> np.ndarray:
        """How many bits of each uint64 are set."""
        return _OF_16[bits.view(np.uint16).reshape(-1, 4)].sum(axis=1, dtype=np.uint8)


def _distinct(numbers: np.ndarray) -> np.ndarray:
    """np.unique, ten times faster here (for integers that one hashes before it sorts); they are sorted in place."""
    numbers.sort()
    return numbers[np.r_[True, numbers[1:] != numbers[:-1]]] if len(numbers) else numbers


def _best(codes: np.ndarray, total: int) -> np.ndarray:
    """The codes that are among the ``BEST`` of either of their patches.

    Speckle is like its copy above all, scanner text like that of any other image: what is kept of it is spread over
    many images and makes none of them a candidate.
    """
    a, b = np.divmod(codes >> 8, 2 * total)
    similarity = codes & 255
    return codes[(_rank(a, similarity) < BEST) | (_rank(b % total, similarity) < BEST)]


def _rank(group: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Position 0, 1, ... of each entry among those of its group, the highest value first."""
    if not len(group):
        return np.zeros(0, np.int64)
    order = np.lexsort((-value, group))
    first = np.r_[True, group[order][1:] != group[order][:-1]]
    rank = np.empty(len(group), np.int64)
    rank[order] = np.arange(len(group)) - np.maximum.accumulate(np.where(first, np.arange(len(group)), 0))
    return rank
