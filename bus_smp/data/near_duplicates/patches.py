"""The patches of all images, in memory or, if they are many, in a temporary file; and how alike two of them are."""

import contextlib
import io
import tempfile
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from bus_smp.system.files import explained
from bus_smp.system.threads import read_ahead

IN_MEMORY = 1 << 26  # bytes; more than that lie on the disk
FIRST = 1 << 21  # patches in memory at once, of those that come first in a pair,
SECOND = 1 << 19  # and of those that come second, for each of two threads
PAIRS = 1 << 14  # compared at once


class Patches:
    """Int8 (side, side) each, of mean 0 and one deviation; numbered image by image."""

    def __init__(self, of_images: Iterable[np.ndarray], total: int, side: int, deviation: float) -> None:
        """Args as those of ``find_matches``; ``total``: of all images.

        Raises:
            BusSmpError: if the disk for the temporary file is full.
        """
        self.total, self.side, self._width = total, side, side * side
        self._scale = np.float32(self._width * deviation**2)
        self._lock = threading.Lock()
        size = total * self._width
        with contextlib.ExitStack() as stack:
            if size > IN_MEMORY:
                needs = f"comparing the images needs {size >> 20} MB there"
                stack.enter_context(explained(Path(tempfile.gettempdir()), needs))
            # it goes with the last reference to it
            self._file = io.BytesIO() if size <= IN_MEMORY else tempfile.TemporaryFile()  # noqa: SIM115
            for patches in of_images:
                self._file.write(patches.tobytes())
            self._file.flush()

    def __len__(self) -> int:
        return self.total

    def rows(self, start: int, buffer: np.ndarray) -> np.ndarray:
        """The patches from number ``start`` on, as many as the buffer, int8 (n, side^2), has rows; a part of it."""
        part = buffer[: self.total - start]
        with self._lock:
            self._file.seek(start * self._width)
            self._file.readinto(part)
        return part

    def buffer(self, count: int) -> np.ndarray:
        return np.empty((min(count, self.total), self._width), np.int8)

    def alike(self, pairs: np.ndarray, least: float) -> Iterator[np.ndarray]:
        """Those of the pairs whose patches correlate by at least ``least``.

        Every window of first patches meets every window of second ones: the file is read from front to back.

        Args:
            pairs: int64, sorted: (2 * a + mirrored) * total + b, where ``mirrored`` is 1 if b is to be mirrored.

        Yields:
            int64, pair * 256 + similarity, and similarity is the correlation in steps of 1/256, below 1.
        """
        buffer, free = self.buffer(FIRST), [self.buffer(SECOND) for _ in range(2)]
        for start in range(0, self.total, FIRST):
            first, last = np.searchsorted(pairs, [2 * self.total * start, 2 * self.total * (start + FIRST)])
            if first < last:
                yield from self._alike_from(start, self.rows(start, buffer), free, pairs[first:last], least)

    def _alike_from(
        self, start: int, ones: np.ndarray, free: list[np.ndarray], pairs: np.ndarray, least: float
    ) -> Iterator[np.ndarray]:
        """``alike`` for pairs whose first patch is among ``ones``, which begin at ``start``."""
        window = (pairs % self.total // SECOND).astype(np.uint16)
        order = np.argsort(window, kind="stable")
        ends = np.r_[0, np.cumsum(np.bincount(window))]

        def compare(number: int) -> np.ndarray:
            chosen = pairs[order[ends[number] : ends[number + 1]]]
            if not len(chosen):
                return chosen
            buffer = free.pop()
            twos, found = self.rows(number * SECOND, buffer), []
            for at in range(0, len(chosen), PAIRS):
                pair = chosen[at : at + PAIRS]
                a, b = np.divmod(pair, self.total)
                one, two = ones.take((a >> 1) - start, axis=0), twos.take(b - number * SECOND, axis=0)
                correlation = self._correlation(one, two, (a & 1).astype(bool))
                good = correlation >= least
                found.append(pair[good] * 256 + np.minimum(correlation[good] * 256, 255).astype(np.int64))
            free.append(buffer)
            return np.concatenate(found)

        return read_ahead(compare, range(len(ends) - 1), ahead=4)

    def _correlation(self, one: np.ndarray, two: np.ndarray, mirrored: np.ndarray) -> np.ndarray:
        """Float32 (n,): of the rows, those of ``one`` mirrored where it says so."""
        one[mirrored] = one[mirrored].reshape(-1, self.side, self.side)[:, :, ::-1].reshape(-1, self._width)
        # all patches have the same deviation, so their product is their correlation but for the rounding
        return np.einsum("nd,nd->n", one.astype(np.float32), two.astype(np.float32)) / self._scale
