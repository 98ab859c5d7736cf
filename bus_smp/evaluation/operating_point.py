"""The operating point: the probability and the size from which a predicted lesion is kept."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bus_smp.measures.decision import MarkedLesions
from bus_smp.measures.lesions import LEAST_IOU, overlapping_pairs
from bus_smp.measures.regions import lesion_components

# Percent of the lesions that must be found.
SENSITIVITY = 95


@dataclass(frozen=True, eq=False)
class FoundLesions:
    """What the plain mask of one image found.

    Attributes:
        lesions: lesions in the reference.
        peaks, shares: of the n predicted lesions, as in ``MarkedLesions``.
        reference, candidate: int (pairs,), from 0: a lesion of the reference and a predicted one with IoU >= .1.
        normal: as in ``MarkedLesions``.
    """

    lesions: int
    peaks: np.ndarray
    shares: np.ndarray
    reference: np.ndarray
    candidate: np.ndarray
    normal: float = 0.0

    @classmethod
    def of(cls, truth: np.ndarray, marked: MarkedLesions) -> "FoundLesions":
        """Compare the predicted lesions with those of the reference, integer (H, W) of class indices."""
        labels, stats = lesion_components(truth)
        areas = np.bincount(marked.labels.reshape(-1), minlength=len(marked.peaks) + 1)[1:]
        reference, candidate, iou = overlapping_pairs(labels, stats[:, 4], marked.labels, areas)
        hit = iou >= LEAST_IOU
        return cls(len(stats), marked.peaks, marked.shares, reference[hit], candidate[hit], marked.normal)

    def behind(self, most_normal: float) -> "FoundLesions":
        """What is left where images that are more probably normal show no lesion."""
        if self.normal <= most_normal:
            return self
        none = np.empty(0, int)
        return FoundLesions(self.lesions, none, none, none, none, self.normal)


def fit_operating_point(images: Sequence[FoundLesions]) -> dict[str, Any]:
    """The thresholds with the fewest false alarms that still find enough lesions, and the gate of an image head.

    The gate is the probability of normal above which an image shows no lesion. Gate and thresholds together must find as
    many lesions as the thresholds without a gate; of gates with equally few false alarms the highest is taken.

    Returns:
        As ``_fit_thresholds``, and ``most_normal`` (rounded up to 6 decimals) where a gate leaves fewer false alarms.
    """
    best = plain = _fit_thresholds(images)
    if plain["least_probability"] is None:
        return plain
    needed = min(-(-SENSITIVITY * plain["lesions"] // 100), plain["found_plain"])
    gates = {np.ceil(one.normal * 1e6) / 1e6 for one in images if len(one.reference) and one.normal}
    for gate in sorted(gates, reverse=True):
        fitted = _fit_thresholds([one.behind(gate) for one in images])
        if fitted["least_probability"] is None or fitted["found"] < needed:
            break
        if fitted["false_alarms"] < best["false_alarms"]:
            same = {key: plain[key] for key in ("found_plain", "false_alarms_plain")}
            best = fitted | same | {"most_normal": float(gate)}
    return best


def _fit_thresholds(images: Sequence[FoundLesions]) -> dict[str, Any]:
    """The thresholds with the fewest false alarms that still find enough lesions.

    A lesion of the reference is found if a predicted one that is kept has IoU >= .1 with it. Found must be 95 % of all lesions,
    rounded up; of fewer than 20 lesions that is each one. Where the plain mask finds fewer, none of those may be lost.
    Of all pairs of thresholds that keep so many, the one is taken with the fewest normal images that keep a lesion; of
    those with the fewest kept lesions that find nothing; then with the lowest area that is 0 or that of a found lesion, and
    the highest probability.

    Returns:
        JSON values: ``least_probability`` (rounded down to 6 decimals, so that the last bits of another library lose no
        lesion) and ``least_area``, for ``DecisionRules``; None where there are none, and ``reason`` gives the reason. ``lesions``,
        and how many of them ``found`` and ``found_plain``; ``normal_images``, on how many a lesion is kept
        (``false_alarms``) or marked (``false_alarms_plain``). "Plain" is without thresholds.
    """
    image = np.repeat(np.arange(len(images)), [len(one.peaks) for one in images])
    peak, share = _joined(images, "peaks"), _joined(images, "shares")
    # numbered through all images
    first_lesion = np.cumsum([0, *(one.lesions for one in images)])
    first_marked = np.cumsum([0, *(len(one.peaks) for one in images)])
    of_pair = np.repeat(np.arange(len(images)), [len(one.reference) for one in images])
    reference = _joined(images, "reference").astype(int) + first_lesion[of_pair]
    candidate = _joined(images, "candidate").astype(int) + first_marked[of_pair]
    total, found = int(first_lesion[-1]), len(np.unique(reference))
    normal = np.array([one.lesions == 0 for one in images], bool)
    is_hit = np.isin(np.arange(len(peak)), candidate)

    def false_alarms(kept: np.ndarray) -> int:
        return len(np.unique(image[kept & normal[image]]))

    counts = {
        "lesions": total,
        "found_plain": found,
        "normal_images": int(normal.sum()),
        "false_alarms_plain": false_alarms(np.ones(len(peak), bool)),
    }
    if not found:
        why = f"the network finds none of the {total} lesions of the validation split"
        reason = why if total else "the validation split has no image with a lesion"
        return {"least_probability": None, "least_area": None, "reason": reason} | counts
    needed = min(-(-SENSITIVITY * total // 100), found)
    possible = []
    for least_area in np.unique(np.append(share[candidate], 0.0)):
        large = share[candidate] >= least_area
        # of each lesion the highest probability of those that find it
        highest = np.full(total, -1.0)
        np.maximum.at(highest, reference[large], peak[candidate[large]])
        least = np.floor(np.sort(highest)[-needed] * 1e6) / 1e6
        if least < 0:
            break
        kept = (peak >= least) & (share >= least_area)
        still = int(np.count_nonzero(highest >= least))
        possible.append((false_alarms(kept), np.count_nonzero(kept & ~is_hit), least_area, least, still))
    alarms, _, least_area, least, still = min(possible)
    return {
        "least_probability": float(least), "least_area": float(least_area), "reason": "", "found": still,
        "false_alarms": alarms,
    } | counts  # fmt: skip


def _joined(images: Sequence[FoundLesions], name: str) -> np.ndarray:
    return np.concatenate([np.empty(0), *(getattr(one, name) for one in images)])
