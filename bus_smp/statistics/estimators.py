"""Numbers about a set of images for any weighting of its groups, thousands of weightings at once.

One bootstrap draw, one run in place of another: each is a row of weights.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bus_smp.statistics.score_order import Curve


@dataclass(frozen=True)
class Ratio:
    """Sum of ``numerator`` / sum of ``denominator`` over images; NaN where the latter is 0.

    Attributes:
        numerator: float (images,).
        denominator: float or bool (images,), >= 0. An image with denominator 0 is not taken over.
        images: bool (images,), those that it is about; None: all. It costs a byte an image where sums would cost 16.
    """

    numerator: np.ndarray
    denominator: np.ndarray
    images: np.ndarray | None = None

    @classmethod
    def mean(cls, values: np.ndarray) -> "Ratio":
        """The mean of float (images,) over those that are not NaN: each image counts once, large or small."""
        defined = ~np.isnan(values)
        return cls(np.where(defined, values, 0.0), defined)

    @property
    def kinds(self) -> tuple[np.ndarray, ...]:
        """What it needs some of: float (images,), how much each image counts."""
        return (self._of(self.denominator),)

    def within(self, images: np.ndarray) -> "Ratio":
        """The same over only some images, bool (images,)."""
        return replace(self, images=images if self.images is None else self.images & images)

    def sums(self, group: np.ndarray, groups: int) -> tuple[np.ndarray, np.ndarray]:
        """Numerator and denominator of each group: float (groups,) each, from int (images,)."""
        return (
            np.bincount(group, self._of(self.numerator), groups),
            np.bincount(group, self._of(self.denominator), groups),
        )

    def _of(self, term: np.ndarray) -> np.ndarray:
        return term.astype(float) if self.images is None else term.astype(float) * self.images


@dataclass(frozen=True)
class Auc:
    """Area under the ROC curve over images: the chance that a positive one scores higher than a negative one.

    Mann & Whitney's U over all pairs, ties count half (Hanley & McNeil, Radiology 1982). NaN where one kind is absent.

    Attributes:
        scores: float (images,).
        positive, negative: bool (images,); an image may be neither.
    """

    scores: np.ndarray
    positive: np.ndarray
    negative: np.ndarray

    @property
    def kinds(self) -> tuple[np.ndarray, ...]:
        """What it needs some of: float (images,), how much each image counts."""
        return self.positive.astype(float), self.negative.astype(float)

    def within(self, images: np.ndarray) -> "Auc":
        """The same over only some images, bool (images,)."""
        return replace(self, positive=self.positive & images, negative=self.negative & images)

    def of_counts(self, curve: Curve, found: np.ndarray, spared: np.ndarray) -> np.ndarray:
        """Float (rows,) from what ``Curve.counted`` yields."""
        beaten = np.take(spared, curve.below, axis=1)
        beaten += np.take(spared, curve.not_above, axis=1)
        ordered = np.einsum("rp,rp->r", found, beaten) / 2
        return _quotient(ordered, found.sum(axis=1) * spared[:, -1])


@dataclass(frozen=True)
class SensitivityAt(Auc):
    """The highest sensitivity of any threshold on the score that keeps the specificity: a step of the ROC curve.

    A score at or above the threshold calls the image; calling none is allowed and gives 0. Nothing is interpolated
    between two steps: no threshold gives a point between them. NaN where one kind is absent. The threshold is of these very images,
    so the number says what the scores could do, not what a fixed threshold will.

    Attributes:
        specificity: to be kept, above 0, up to 1.
    """

    specificity: float

    def of_counts(self, curve: Curve, found: np.ndarray, spared: np.ndarray) -> np.ndarray:
        """Float (rows,) from what ``Curve.counted`` yields."""
        # The scores that are not called, from the lowest up, must hold enough negatives; all above them are called.
        last = np.argmax(spared[:, 1:] >= self._least(spared[:, -1])[:, None], axis=1)
        missed = np.array([row[:caught].sum() for row, caught in zip(found, curve.caught[last], strict=True)])
        present = found.sum(axis=1)
        return np.where(spared[:, -1] > 0, _quotient(present - missed, present), np.nan)

    def _least(self, negatives: np.ndarray) -> np.ndarray:
        # 1e-9: 9 of 10 is a specificity of .9, also with a rounding error
        return (self.specificity - 1e-9) * negatives


Estimator = Ratio | Auc


@dataclass(frozen=True)
class Unresampled:
    """A number of all images that draws would say nothing about.

    Attributes:
        point: the number; NaN where undefined.
        counted: bool (images,), those that it is taken over.
        why: reason for having no interval.
    """

    point: float
    counted: np.ndarray
    why: str


def _quotient(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)


class Weighted:
    """Every one of some estimators, in their order, for weightings of the groups.

    Memory grows with images and with groups x estimators, not with the number of rows.
    """

    def __init__(self, estimators: Mapping[Any, Estimator], group: np.ndarray, groups: int):
        """Sum and sort once. ``group``: int (images,), 0..groups-1."""
        self._number = len(estimators)
        numbered = list(enumerate(estimators.values()))
        # A ratio over the images of a draw needs only each group's two sums.
        ratios = {i: estimator for i, estimator in numbered if isinstance(estimator, Ratio)}
        self._ratios = list(ratios)
        self._sums = np.zeros((2, groups, len(ratios)))
        for column, ratio in enumerate(ratios.values()):
            self._sums[:, :, column] = ratio.sums(group, groups)
        self._curves: list[tuple[Curve, list[tuple[int, Auc]]]] = []
        known: dict[tuple, list[tuple[int, Auc]]] = {}
        for index, estimator in numbered:
            if isinstance(estimator, Ratio) or not (estimator.positive.any() and estimator.negative.any()):
                # Without one kind it is NaN.
                continue
            kinds = (estimator.positive, estimator.negative)
            same = (id(estimator.scores), *(np.packbits(kind).tobytes() for kind in kinds))
            if same not in known:
                known[same] = []
                self._curves.append((Curve(estimator.scores, *kinds, group), known[same]))
            known[same].append((index, estimator))

    def of(self, weights: np.ndarray) -> np.ndarray:
        """Float (rows, estimators) from float weights (rows, groups), >= 0."""
        values = np.full((len(weights), self._number), np.nan)
        values[:, self._ratios] = _quotient(weights @ self._sums[0], weights @ self._sums[1])
        for curve, measured in self._curves:
            for rows, found, spared in curve.counted(weights):
                for index, estimator in measured:
                    values[rows, index] = estimator.of_counts(curve, found, spared)
        return values
