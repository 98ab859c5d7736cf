"""In which order candidates for near-duplicates are looked at, and which of them need no look."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from bus_smp.system.threads import read_ahead

PATIENCE = 16
CROWD = 8  # images that are copies of one another; of BUS-UCLM and BUSI 7 are the most

Progress = Callable[[Iterable, int, str], Iterable]


class Candidate(NamedTuple):
    """Images that share patches: first < second, whether one is mirrored, and which points are alike.

    ``points``: int (2, K), numbers of the first's points and of the second's.
    ``evidence``: how many patches they share, each counted less the more other patches it is like.
    """

    first: int
    second: int
    mirrored: bool
    points: np.ndarray
    evidence: float


class _Copies:
    """Images that were found to be copies of one another, directly or over others."""

    def __init__(self, images: int) -> None:
        self._leader = list(range(images))
        self._size = [1] * images

    def leader(self, image: int) -> int:
        while self._leader[image] != image:
            self._leader[image] = self._leader[self._leader[image]]
            image = self._leader[image]
        return image

    def join(self, first: int, second: int) -> None:
        one, two = self.leader(first), self.leader(second)
        if one != two:
            self._leader[two] = one
            self._size[one] += self._size[two]

    def sets(self, candidate: Candidate) -> tuple[int, int]:
        """Which two sets of copies the candidate is of; one twice where they are joined."""
        one, two = self.leader(candidate.first), self.leader(candidate.second)
        return min(one, two), max(one, two)

    def settled(self, candidate: Candidate) -> bool:
        """Are the two joined already, in a crowd? One more pair of n * (n - 1) / 2 would tell nothing."""
        one, two = self.sets(candidate)
        return one == two and self._size[one] > CROWD


def confirmed(
    images: int,
    candidates: Sequence[Candidate],
    placed: Callable[[Candidate], np.ndarray | None],
    score: Callable[[tuple[Candidate, np.ndarray]], float],
    least: float,
    progress: Progress | None = None,
) -> Iterator[tuple[Candidate, float]]:
    """Candidates whose score is at least ``least``, with it; the best evidence is looked at first.

    Where images share the text of a scanner alone, each would be a candidate with many: one that was ``PATIENCE``
    times more often refused than confirmed is left in peace. Where more than ``CROWD`` images are copies of one
    another, pairs within them are looked at no longer: the work grows with the images, not with their pairs.

    Args:
        images: how many there are.
        placed: the map from a candidate's first image to its second; None where there is none, so no candidate.
        score: of a candidate under its map; called in threads.
    """
    waiting = sorted(candidates, key=lambda c: (-c.evidence, c[:3]))
    patience = np.full(images, PATIENCE)
    copies = _Copies(images)
    while waiting:
        batch, later = [], []
        left = patience.copy()
        for candidate in waiting:
            if min(patience[candidate.first], patience[candidate.second]) <= 0 or copies.settled(candidate):
                continue
            # as many at once as would be looked at even if each were refused
            if min(left[candidate.first], left[candidate.second]) <= 0:
                later.append(candidate)
            elif (matrix := placed(candidate)) is not None:
                batch.append((candidate, matrix))
                left[candidate.first] -= 1
                left[candidate.second] -= 1
        looks = _looked_at(batch, score, least, copies)
        for candidate, found in progress(looks, len(batch), "near-duplicates") if progress else looks:
            step = 1 if found >= least else -1
            patience[candidate.first] += step
            patience[candidate.second] += step
            if step > 0:
                yield candidate, found
        waiting = later


def _looked_at(
    batch: list[tuple[Candidate, np.ndarray]],
    score: Callable[[tuple[Candidate, np.ndarray]], float],
    least: float,
    copies: _Copies,
) -> Iterator[tuple[Candidate, float]]:
    """Candidates of a batch with their score, without those that are settled by the others.

    In rounds, in which an image has its turn once and two sets of copies meet once, so that crowds grow quickly.
    Sets of which a pair was refused meet freely: it was one of many between, say, two crowds with the same text.
    """
    strange: set[tuple[int, int]] = set()
    while batch:
        round_, later, busy = [], [], set()
        for one in batch:
            candidate = one[0]
            if copies.settled(candidate):
                continue
            sets = copies.sets(candidate)
            taken = {candidate.first, candidate.second} | ({sets} - strange)
            if busy.isdisjoint(taken):
                busy |= taken
                round_.append(one)
            else:
                later.append(one)
        for (candidate, _), found in zip(round_, read_ahead(score, round_, ahead=64), strict=True):
            if found >= least:
                copies.join(candidate.first, candidate.second)
            else:
                strange.add(copies.sets(candidate))
            yield candidate, found
        batch = later
