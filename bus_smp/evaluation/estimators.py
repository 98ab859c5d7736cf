"""Numbers about a set of images that can be had for any weighting of its groups, thousands of them at once.

One bootstrap draw, one group left out, one run in place of another: each is a row of weights.
"""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Ratio:
    """Sum of ``numerator`` / sum of ``denominator`` over images; NaN where the latter is 0.

    Attributes:
        numerator, denominator: float (images,), the denominator >= 0. An image with denominator 0 is not taken over.
    """

    numerator: np.ndarray
    denominator: np.ndarray

    @classmethod
    def mean(cls, values: np.ndarray) -> "Ratio":
        """The mean of float (images,) over those that are not NaN: each image counts once, whatever its size."""
        defined = ~np.isnan(values)
        return cls(np.where(defined, values, 0.0), defined.astype(float))

    @property
    def kinds(self) -> tuple[np.ndarray, ...]:
        """What it needs some of: float (images,), how much each image counts."""
        return (self.denominator,)

    def within(self, images: np.ndarray) -> "Ratio":
        """The same over some images, bool (images,), alone."""
        return Ratio(self.numerator * images, self.denominator * images)


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
        """The same over some images, bool (images,), alone."""
        return Auc(self.scores, self.positive & images, self.negative & images)

    def from_counts(self, positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
        """Float (rows,) from the weight of either kind at each score, float (rows, scores), scores rising."""
        pairs = positive.sum(axis=1) * negative.sum(axis=1)
        below = np.cumsum(negative, axis=1)
        below -= negative / 2
        ordered = np.einsum("rs,rs->r", positive, below)
        return np.divide(ordered, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)


@dataclass(frozen=True)
class SensitivityAt(Auc):
    """The highest sensitivity of any threshold on the score that keeps the specificity, as of the ROC curve's steps.

    A score at or above the threshold calls the image; calling none is allowed and gives 0. Nothing is interpolated
    between two steps: no threshold does what lies there. NaN where one kind is absent. The threshold is of these very images,
    so the number says what the scores could do, not what a fixed threshold will.

    Attributes:
        specificity: to be kept, above 0, up to 1.
    """

    specificity: float

    def within(self, images: np.ndarray) -> "SensitivityAt":
        """The same over some images, bool (images,), alone."""
        return SensitivityAt(self.scores, self.positive & images, self.negative & images, self.specificity)

    def from_counts(self, positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
        """Float (rows,) from the weight of either kind at each score, float (rows, scores), scores rising."""
        found, spared = positive.sum(axis=1), negative.sum(axis=1)
        # 1e-9: 9 of 10 keeps a specificity of .9, whatever the last bit says
        kept = np.cumsum(negative, axis=1) >= (self.specificity - 1e-9) * spared[:, None]
        # of the scores not called, the lowest ones must hold enough negatives; all above them are called
        lowest = np.argmax(kept, axis=1)
        missed = np.cumsum(positive, axis=1)[np.arange(len(found)), lowest]
        defined = (found > 0) & (spared > 0)
        return np.divide(found - missed, found, out=np.full(len(found), np.nan), where=defined)


Estimator = Ratio | Auc


def weighted(
    estimators: Mapping[Hashable, Estimator], group: np.ndarray, groups: int
) -> Callable[[np.ndarray], np.ndarray]:
    """A function from float weights (rows, groups), >= 0, to every estimate, float (rows, estimators), in their order.

    Memory goes with rows x images: give it a few rows at a time.

    Args:
        group: int (images,), 0..groups-1.
    """
    ratios = [i for i, estimator in enumerate(estimators.values()) if isinstance(estimator, Ratio)]
    curves = {i: _curve(e, group) for i, e in enumerate(estimators.values()) if not isinstance(e, Ratio)}
    # A ratio over the images of a draw needs only each group's two sums.
    sums = np.zeros((2, groups, len(ratios)))
    for column, index in enumerate(ratios):
        ratio = list(estimators.values())[index]
        sums[0, :, column] = np.bincount(group, ratio.numerator, minlength=groups)
        sums[1, :, column] = np.bincount(group, ratio.denominator, minlength=groups)

    def evaluate(weights: np.ndarray) -> np.ndarray:
        values = np.full((len(weights), len(estimators)), np.nan)
        part, whole = weights @ sums[0], weights @ sums[1]
        values[:, ratios] = np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)
        for index, curve in curves.items():
            values[:, index] = curve(weights)
        return values

    return evaluate


def _curve(estimator: Auc, group: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    used = np.flatnonzero(estimator.positive | estimator.negative)
    if used.size == 0:
        return lambda weights: np.full(len(weights), np.nan)
    used = used[np.argsort(estimator.scores[used], kind="stable")]
    ties = np.flatnonzero(np.r_[True, np.diff(estimator.scores[used]) != 0])
    positive, negative, group = estimator.positive[used], estimator.negative[used], group[used]

    def evaluate(weights: np.ndarray) -> np.ndarray:
        of_image = weights[:, group]
        counts = of_image * positive, of_image * negative
        if len(ties) < len(used):
            counts = tuple(np.add.reduceat(of_kind, ties, axis=1) for of_kind in counts)
        return estimator.from_counts(*counts)

    return evaluate
