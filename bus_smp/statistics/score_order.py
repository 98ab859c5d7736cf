"""Two kinds of images in the order of their scores: sorted once, then counted for any weighting of their groups.

A weighting costs one pass over the images. Counts are whole or half numbers, exact in float64 up to 2^53.
"""

from collections.abc import Iterator

import numpy as np

# Rows of weights are taken in blocks of so many cells, which fit the processor's cache.
_BLOCK_CELLS = 200_000


class Curve:
    """Positive and negative images by rising score, and how the two interleave.

    Attributes:
        positive, negative: int (P,), (N,), the group of each image.
        below, not_above: int (P,), how many negatives score below each positive, and not above it.
        caught: int (N,), how many positives score not above each negative.
    """

    def __init__(
        self, scores: np.ndarray, positive: np.ndarray, negative: np.ndarray, group: np.ndarray
    ) -> None:
        """Sort float scores (images,) of bool kinds (images,), and of groups, int (images,)."""
        images = [np.flatnonzero(kind) for kind in (positive, negative)]
        images = [own[np.argsort(scores[own], kind="stable")] for own in images]
        self.positive, self.negative = (group[own] for own in images)
        high, low = (scores[own] for own in images)
        self.below = np.searchsorted(low, high, side="left")
        self.not_above = np.searchsorted(low, high, side="right")
        self.caught = np.searchsorted(high, low, side="right")

    def counted(self, weights: np.ndarray) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
        """For float weights (rows, groups), a block of rows at a time.

        Yields:
            which rows; the weight of each positive (rows, P); of the first 0..N negatives together (rows, N + 1).
        """
        block = max(1, _BLOCK_CELLS // (len(self.positive) + len(self.negative) + 1))
        for start in range(0, len(weights), block):
            rows = weights[start : start + block]
            spared = np.zeros((len(rows), len(self.negative) + 1))
            np.cumsum(np.take(rows, self.negative, axis=1), axis=1, out=spared[:, 1:])
            yield slice(start, start + block), np.take(rows, self.positive, axis=1), spared
