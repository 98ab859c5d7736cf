"""Alike patches of different images, by locality-sensitive hashing: work and memory grow linearly with the images.

The key of a patch is the signs of some random projections (Charikar 2002). Patches of one key, a bucket, are compared
with a few of their neighbours in it, and that is repeated with other projections, one table of buckets at a time.

Up to ``FEW`` images every such neighbour is looked at. Of more images buckets would fill with patches that are alike
only because each surrounds a bright or dark spot: keys are then blind to that (``_blind``) and longer, and a sketch
of 64 more signs decides which neighbours are worth reading. The patches then lie in a temporary file.
"""

import contextlib
import math
import mmap
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bus_smp.files import explained
from bus_smp.threads import read_ahead

TABLES = 10
NEIGHBOURS = 8  # entries of a bucket that one entry is compared with: the work stays linear in the images
SAME_PATCH = 0.85
BEST = 4  # matches a patch keeps: fewer would separate a crop with its copies from the whole with its copies

FEW = 4096  # images
BITS = 22  # of a key, for few images
MANY_TABLES = 6
MANY_BITS = 22  # of a blind key; one more whenever the images double, so that buckets grow no fuller
UNLIKE = 17  # of 64 signs: alike patches differ in fewer
CROWDED = 64  # entries of a blind bucket: what so many share is compared with the first of them alone

BLOCK = 1 << 16  # patches projected at once
PAIRS = 1 << 14  # compared at once
PIECE = 1 << 21  # entries sorted at once
IN_MEMORY = 1 << 26  # bytes of patches


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
    store = _Store(of_images, total, side * side)
    sketch = None
    if many:
        seen = _blind(rng.integers(-8, 9, (side * side, 32)), side)
        first, second = _signs(store, seen, side)
        sketch = first.astype(np.uint64) << np.uint64(32) | second  # of the mirror image: the halves swapped
        del first, second
    codes, compared, read = np.zeros(0, np.int64), 0, 0
    for _ in range(MANY_TABLES if many else TABLES):
        directions = rng.integers(-8, 9, (side * side, bits))
        keys = _signs(store, _blind(directions, side) if many else directions, side)
        table = _Table(store, counts, side, deviation, keys, sketch, rng.permutation(images))
        found = []
        for alike, neighbours, looked_at in table.matches():
            found.append(alike)
            compared, read = compared + neighbours, read + looked_at
        del table, keys
        codes = _best(_distinct(np.concatenate([codes, *found])), total)
    a, b = np.divmod(codes >> 8, 2 * total)
    return Matches(a, b % total, b >= total, compared, read)


class _Store:
    """All patches, int8 (N, side^2), in memory or, if they are many, in a temporary file."""

    def __init__(self, of_images: Iterable[np.ndarray], total: int, width: int) -> None:
        self._map = None
        if total * width <= IN_MEMORY:
            self.all = np.concatenate(list(of_images))
            return
        with contextlib.ExitStack() as stack:
            needs = f"comparing the images needs {total * width >> 20} MB there"
            stack.enter_context(explained(Path(tempfile.gettempdir()), needs))
            file = stack.enter_context(tempfile.TemporaryFile())
            for patches in of_images:
                file.write(patches.tobytes())
            file.flush()
            self._map = mmap.mmap(file.fileno(), total * width, access=mmap.ACCESS_READ)
            if hasattr(mmap, "MADV_RANDOM"):  # no page beside the one that is read
                self._map.madvise(mmap.MADV_RANDOM)
        self.all = np.frombuffer(self._map, np.int8).reshape(total, width)

    def let_go(self) -> None:
        """Give back the memory that pages of the file take; they stay readable."""
        if self._map is not None and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)


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


def _signs(store: _Store, directions: np.ndarray, side: int) -> np.ndarray:
    """Uint32 (2, N): signs of each patch's products, the first in the highest bit, and those of its mirror image."""
    mirrored = directions.reshape(side, side, -1)[:, ::-1].reshape(directions.shape)
    # whole numbers below 2^24 keep the sums exact, whatever their order
    weights = np.concatenate([directions, mirrored], axis=1).astype(np.float32)
    bits = directions.shape[1]
    signs = np.empty((2, len(store.all)), np.uint32)

    def block(start: int) -> None:
        product = store.all[start : start + BLOCK].astype(np.float32) @ weights
        for i in range(2):
            positive = np.zeros((len(product), 32), bool)
            np.greater(product[:, i * bits : (i + 1) * bits], 0, out=positive[:, :bits])
            signs[i, start : start + len(product)] = np.packbits(positive, axis=1).view(">u4")[:, 0]
        store.let_go()

    for _ in read_ahead(block, range(0, len(store.all), BLOCK), ahead=2):
        pass
    return signs


class _Table:
    """The patches, and the mirror image of each, in buckets of one key.

    Within a bucket the images stand in another order for each table, so that a patch which thousands share (scanner
    text) does not meet the same few each time. An entry's place tells its image by that order, and its patch.
    """

    def __init__(
        self,
        store: _Store,
        counts: np.ndarray,
        side: int,
        deviation: float,
        keys: np.ndarray,
        sketch: np.ndarray | None,
        rank: np.ndarray,
    ) -> None:
        self.store, self.side, self.scale = store, side, np.float32(side * side * deviation**2)
        self.total, self.keys, self.sketch = len(store.all), keys, sketch
        order = np.argsort(rank)
        self.counts, self.begins = counts, np.cumsum(counts) - counts
        self.ranked = np.empty_like(self.begins)
        self.ranked[order] = np.cumsum(counts[order]) - counts[order]
        self.image = np.repeat(np.arange(len(counts), dtype=np.uint32), counts)
        self.owner = np.repeat(order.astype(np.uint32), counts[order])

    def matches(self) -> Iterator[tuple[np.ndarray, int, int]]:
        """Piece by piece: codes of alike patches (see ``_alike``), neighbours, and pairs of patches read."""
        halvings = (2 * self.total // PIECE).bit_length()

        def piece(number: int) -> tuple[np.ndarray, int, int]:
            entries = []
            for mirrored, key in enumerate(self.keys):
                patch = np.flatnonzero(key >> np.uint64(32 - halvings) == number)
                image = self.image[patch]
                place = patch - self.begins[image] + 2 * self.ranked[image] + mirrored * self.counts[image]
                entries.append(key[patch].astype(np.uint64) << np.uint64(32) | place.astype(np.uint64))
            entry = np.concatenate(entries)
            del entries, patch, image, place
            entry.sort()
            return self._in_buckets(entry)

        return read_ahead(piece, range(1 << halvings), ahead=2)

    def _in_buckets(self, entry: np.ndarray) -> tuple[np.ndarray, int, int]:
        key, place = (entry >> np.uint64(32)).astype(np.uint32), entry.astype(np.uint32)
        codes, compared, read = [np.zeros(0, np.int64)], 0, 0
        at = np.flatnonzero(key[1:] == key[:-1])
        sketch = None if self.sketch is None else self._sketches(place)
        crowd = np.zeros(len(key), np.int64) - 1  # the first of a crowded bucket
        if sketch is not None:
            begin = np.flatnonzero(np.r_[True, key[1:] != key[:-1]])
            size = np.diff(np.r_[begin, len(key)])
            crowd = np.repeat(np.where(size > CROWDED, begin, -1), size)
        for step in range(1, NEIGHBOURS + 1):
            at = at[at < len(key) - step]
            at = at[key[at] == key[at + step]]
            if step == 2:
                at = at[crowd[at] < 0]
            one, two = np.where(crowd[at] < 0, at, crowd[at]), at + step
            compared += len(at)
            if sketch is not None:
                near = _ones(sketch[one] ^ sketch[two]) <= UNLIKE
                one, two = one[near], two[near]
            for start in range(0, len(one), PAIRS):
                part = slice(start, start + PAIRS)
                a, b, mirrored = self._pairs(place[one[part]], place[two[part]])
                codes.append(self._alike(a, b, mirrored))
                read += len(a)
                self.store.let_go()
        return np.concatenate(codes), compared, read

    def _sketches(self, place: np.ndarray) -> np.ndarray:
        patch, _, mirrored = self._entry(place)
        sketch = self.sketch[patch]
        return np.where(mirrored, sketch << np.uint64(32) | sketch >> np.uint64(32), sketch)

    def _entry(self, place: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Number of the patch, its image, and whether it is mirrored: an image's mirrored patches follow its own."""
        image = self.owner[place >> 1]
        patch = place - 2 * self.ranked[image]
        mirrored = patch >= self.counts[image]
        return patch + self.begins[image] - mirrored * self.counts[image], image, mirrored

    def _pairs(self, one: np.ndarray, two: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Numbers of the patches to compare, and whether the second is to be mirrored."""
        (a, image_a, mirrored_a), (b, image_b, mirrored_b) = self._entry(one), self._entry(two)
        turn = (mirrored_a > mirrored_b) | ((mirrored_a == mirrored_b) & (image_b < image_a))
        # an image is not compared with itself; of image and mirror one combination is enough
        wanted = ~(mirrored_a & mirrored_b) & np.where(turn, image_b < image_a, image_a < image_b)
        a, b, turn = a[wanted], b[wanted], turn[wanted]
        return np.where(turn, b, a), np.where(turn, a, b), (mirrored_a | mirrored_b)[wanted]

    def _alike(self, a: np.ndarray, b: np.ndarray, mirrored: np.ndarray) -> np.ndarray:
        """Those of the pairs whose patches correlate, as (a * 2 N + b, of mirrored ones + N) * 256 + similarity."""
        one, two = self.store.all[a], self.store.all[b]
        one[mirrored] = one[mirrored].reshape(-1, self.side, self.side)[:, :, ::-1].reshape(-1, one.shape[1])
        # all patches have the same deviation, so their product is their correlation but for the rounding
        correlation = np.einsum("nd,nd->n", one, two, dtype=np.int32) / self.scale
        good = correlation >= SAME_PATCH
        code = a[good] * (2 * self.total) + b[good] + mirrored[good] * self.total
        return code * 256 + np.minimum(correlation[good] * 256, 255).astype(np.int64)


_ONES = np.array([number.bit_count() for number in range(1 << 16)], np.uint8)


def _ones(bits: np.ndarray) -> np.ndarray:
    """How many bits of each uint64 are set."""
    return _ONES[bits.view(np.uint16).reshape(-1, 4)].sum(axis=1, dtype=np.uint8)


def _distinct(numbers: np.ndarray) -> np.ndarray:
    """np.unique, ten times faster here: for integers that one hashes before it sorts."""
    ordered = np.sort(numbers)
    return ordered[np.r_[True, ordered[1:] != ordered[:-1]]] if len(ordered) else ordered


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
