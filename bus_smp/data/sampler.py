"""The order in which training sees the images: a pure function of (seed, epoch)."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler


class Draw(NamedTuple):
    """One place in training: the ``position``-th draw of ``epoch`` is image ``index`` of the cache."""

    epoch: int
    position: int
    # It hides the method of tuple, which nothing calls.
    index: int  # type: ignore[assignment]


# So that the only image of its kind does not decide the batches that it is in.
_MOST_WEIGHT = 10.0

# Keeps the random streams of this file apart from each other and from the augmentation's.
_ORDER, _CYCLE = 1, 2


class EpochSampler(Sampler[Draw]):
    """Draws ``len(labels)`` images per epoch, with equal shares for the labels.

    Each label is an endless stream: its images in a random permutation, then in another one, and so
    on; an epoch takes the next stretch of it. So over the whole training no image is drawn twice
    before all of its label were drawn once: also the many normals, of which one epoch holds only a
    part. Shares of one epoch differ by one image at most, where the labels do not divide its length.

    Args:
        labels: label of each image, in the order of the cache; or its data set and label in one text.
        seed: non-negative.
        balanced: False draws every image once per epoch.
    """

    def __init__(self, labels: Sequence[str], seed: int, balanced: bool = True) -> None:
        groups = np.array(list(labels), dtype=str) if balanced else np.zeros(len(labels), int)
        self._members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
        self._length = len(groups)
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return self._length

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch (from 0) that the next iteration yields."""
        self.epoch = epoch

    def shares(self) -> np.ndarray:
        """Share of the draws of a long training that each image has, float64 (len(labels),); their sum is 1."""
        shares = np.zeros(self._length)
        for members in self._members:
            shares[members] = 1 / (len(self._members) * len(members))
        return shares

    def indices(self, epoch: int) -> np.ndarray:
        """Image indices of one epoch in their order, int64 (len(labels),)."""
        drawn = [self._stretch(group, epoch) for group in range(len(self._members))]
        if not drawn:
            return np.zeros(0, np.int64)
        return np.random.default_rng([self.seed, _ORDER, epoch]).permutation(np.concatenate(drawn))

    def _stretch(self, group: int, epoch: int) -> np.ndarray:
        members, count = self._members[group], len(self._members)
        # floor((m + j) / k) summed over j = 0..k-1 is m (Hermite), so the shares add up to the
        # length in every epoch, and the odd ones go round among the classes.
        start, stop = ((e * self._length + group) // count for e in (epoch, epoch + 1))
        cycles = range(start // len(members), -(-stop // len(members)))
        stream = [
            np.random.default_rng([self.seed, _CYCLE, group, cycle]).permutation(members) for cycle in cycles
        ]
        offset = cycles.start * len(members)
        return np.concatenate(stream)[start - offset : stop - offset]

    def __iter__(self) -> Iterator[Draw]:
        epoch = self.epoch
        for position, index in enumerate(self.indices(epoch).tolist()):
            yield Draw(epoch, position, index)


def balancing_weights(kinds: Sequence[str], shares: np.ndarray) -> np.ndarray:
    """Weights with which each kind of image counts the same in a loss, float32 (images,); 1 on average over the draws.

    Args:
        kinds: of each image.
        shares: of the draws, float (images,).
    """
    names, place = np.unique(np.array(list(kinds), dtype=str), return_inverse=True)
    drawn = np.bincount(place, shares)
    return np.minimum(1 / (len(names) * drawn[place]), _MOST_WEIGHT).astype(np.float32)


class RankSampler(Sampler[Draw]):
    """One process's part of an epoch that several share: of each batch its own, equally large stretch.

    So the batches are those of a single process, and a draw has the position that it would have there.

    Args:
        whole: the epoch.
        batch_size: of all processes together; a multiple of ``count``. Draws beyond the last full batch are left out.
        rank: of the process, 0 .. ``count`` - 1.
        count: of processes.
    """

    def __init__(self, whole: EpochSampler, batch_size: int, rank: int, count: int) -> None:
        self.whole, self.batch_size, self.rank, self.count = whole, batch_size, rank, count

    def __len__(self) -> int:
        return len(self.whole) // self.batch_size * (self.batch_size // self.count)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the whole."""
        self.whole.set_epoch(epoch)

    def __iter__(self) -> Iterator[Draw]:
        part = self.batch_size // self.count
        full = len(self.whole) // self.batch_size * self.batch_size
        for draw in self.whole:
            if draw.position < full and draw.position // part % self.count == self.rank:
                yield draw
