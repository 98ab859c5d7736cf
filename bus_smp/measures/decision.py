"""The rules that turn probabilities into a decision, and the properties of predicted lesions that they apply to."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bus_smp.classes import BACKGROUND
from bus_smp.measures.regions import lesion_components


@dataclass(frozen=True)
class DecisionRules:
    """All thresholds of a run. They are fitted on its validation split, and stored as ``calibration`` in the header of its weights.

    Attributes:
        threshold: the score from which an image is called malignant; None: there is none.
        least_probability, least_area: the operating point. A predicted lesion is kept if the highest lesion probability of
            its pixels, after temperature, and its share of the image's area are not below these; None: there is none.
        most_normal: part of the operating point of a run with an image head: where the head's probability of normal is
            above it, no lesion is kept; None: there is no such gate.
        drops_lesions: whether masks leave out the lesions that the operating point drops.
    """

    threshold: float | None = None
    least_probability: float | None = None
    least_area: float | None = None
    most_normal: float | None = None
    drops_lesions: bool = False

    @classmethod
    def of(cls, calibration: Mapping[str, Any] | None) -> "DecisionRules":
        """The rules in the ``calibration`` of a header; that of an older version lacks the operating point."""
        calibration = calibration or {}
        point = calibration.get("operating_point") or {}
        return cls(
            calibration.get("threshold"),
            point.get("least_probability"),
            point.get("least_area"),
            point.get("most_normal"),
        )

    @property
    def has_operating_point(self) -> bool:
        """Whether lesions can be kept or dropped."""
        return self.least_probability is not None


NO_RULES = DecisionRules()


def join_rules(rules: Sequence[DecisionRules]) -> DecisionRules:
    """The rules of several networks as one: the mean of the thresholds, and no operating point, as none was fitted for them.

    Views of one network, whose rules are equal, keep them.
    """
    if all(one == rules[0] for one in rules):
        return rules[0]
    thresholds = [one.threshold for one in rules if one.threshold is not None]
    return DecisionRules(float(np.mean(thresholds)) if len(thresholds) == len(rules) else None)


@dataclass(frozen=True, eq=False)
class MarkedLesions:
    """The predicted lesions of one image, as the operating point sees them.

    Attributes:
        labels: int32 (H, W), 0 background and 1..n the lesions: 8-connected components of either class.
        peaks: float (n,), the highest lesion probability (benign or malignant) of each one's pixels, 0..1.
        shares: float (n,), the share of the image's area that each one covers, 0..1.
        normal: the image head's probability that the image is normal; 0 without such a head.
    """

    labels: np.ndarray
    peaks: np.ndarray
    shares: np.ndarray
    normal: float = 0.0

    @classmethod
    def of(cls, mask: np.ndarray, background: Iterable[np.ndarray], normal: float = 0.0) -> "MarkedLesions":
        """Describe the lesions of a mask.

        Args:
            mask: uint8 (H, W) of class indices.
            background: the probability of background, float (h, W), of consecutive bands of rows that make up the image.
            normal: of the image head.
        """
        labels, stats = lesion_components(mask)
        peaks, top = np.zeros(len(stats) + 1), 0
        for band in background if len(stats) else ():
            of_band = labels[top : top + len(band)]
            inside = of_band > 0
            np.maximum.at(peaks, of_band[inside], 1.0 - band[inside])
            top += len(band)
        return cls(labels, peaks[1:], stats[:, 4] / max(mask.size, 1), normal)

    def are_kept(self, rules: DecisionRules) -> np.ndarray:
        """Bool (n,): which lesions are kept at the operating point; all, where there is none."""
        if rules.least_probability is None or rules.least_area is None:
            return np.ones(len(self.peaks), bool)
        kept = (self.peaks >= rules.least_probability) & (self.shares >= rules.least_area)
        return kept & (rules.most_normal is None or self.normal <= rules.most_normal)

    def kept(self, mask: np.ndarray, rules: DecisionRules) -> np.ndarray:
        """The mask without the lesions that the operating point drops, uint8 (H, W)."""
        kept = self.are_kept(rules)
        if kept.all():
            return mask
        # number 0 is the background, which stays
        return np.where(np.append(True, kept)[self.labels], mask, np.uint8(BACKGROUND.index))
