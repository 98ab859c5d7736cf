"""How far probabilities can be believed: Brier score of an image, reliability of all pixels of a data set."""

import math

import numpy as np
import pandas as pd

from bus_smp.classes import BACKGROUND
from bus_smp.errors import EvaluationError


def brier_score(probabilities: np.ndarray, truth: np.ndarray) -> float:
    """Mean over pixels of sum_c (p_c - y_c)^2, y one-hot (Brier, Monthly Weather Review 1950): 0 (right and sure) to 2.

    Args:
        probabilities: float (3, S, S), summing to 1.
        truth: uint8 (S, S) of class indices. Where it was made smaller by its nearest pixels, the score depends a little on which
            is taken of two that are as near (``resize_mask``: the right and lower one).
    """
    squares = np.einsum("chw,chw->", probabilities, probabilities, dtype=np.float64)
    # The probability of the true class: that of background, except in the few pixels that are not background.
    lesion = np.nonzero(truth != BACKGROUND.index)
    background = probabilities[BACKGROUND.index]
    there = probabilities[(truth[lesion], *lesion)].sum(dtype=np.float64)
    chosen = background.sum(dtype=np.float64) - background[lesion].sum(dtype=np.float64) + there
    return float((squares - 2 * chosen) / truth.size + 1)


# Sums of probabilities are kept in such fractions, so that they add up exactly, in any order, over 2 million images.
_STEPS = 2.0**16


class Reliability:
    """How often pixels are lesion, by the probability given to it, before and after temperature; streamed.

    Args:
        bins: of equal width over 0..1.
    """

    STAGES = ("before", "after")

    def __init__(self, bins: int = 15) -> None:
        self.bins = bins
        # Pixels, sum of probabilities, lesion pixels.
        self.counts = np.zeros((len(self.STAGES), bins, 3), np.float64)

    def update(self, truth: np.ndarray, before: np.ndarray, after: np.ndarray) -> None:
        """Add one image, on the network's grid.

        Args:
            truth: uint8 (S, S) of class indices.
            before, after: float (3, S, S), the probabilities before and after temperature.
        """
        lesion = truth.reshape(-1) > 0
        for stage, grid in enumerate((before, after)):
            probability = (grid[1] + grid[2]).reshape(-1).clip(0, 1)
            # Most pixels are in the lowest bin: it gets what the few others leave over.
            high = np.flatnonzero(probability * self.bins >= 1)
            some, true = probability[high], lesion[high]
            place = np.minimum((some * self.bins).astype(np.intp), self.bins - 1)
            for column, (weights, total) in enumerate(
                (
                    (None, len(lesion)),
                    (some, probability.sum(dtype=np.float64)),
                    (true, np.count_nonzero(lesion)),
                )
            ):
                counted = np.bincount(place, weights, minlength=self.bins)
                counted[0] = total - counted.sum()
                self.counts[stage, :, column] += np.rint(counted * _STEPS) / _STEPS

    def error(self, stage: str) -> float:
        """Expected calibration error (Naeini et al., AAAI 2015), 0..1: mean over pixels of abs(share of lesion - mean
        probability) of the pixel's bin. NaN without pixels."""
        pixels, probability, lesion = self.counts[self.STAGES.index(stage)].T
        return float(np.abs(lesion - probability).sum() / pixels.sum()) if pixels.sum() else math.nan

    def __add__(self, other: "Reliability") -> "Reliability":
        """The counts of both sets of images together; the same in any order."""
        if self.bins != other.bins:
            raise EvaluationError(f"reliability in {self.bins} and in {other.bins} bins cannot be added")
        both = Reliability(self.bins)
        both.counts = self.counts + other.counts
        return both

    def to_frame(self) -> pd.DataFrame:
        """One row per stage and bin: stage, bin, low, high, pixels, sum_probability, positives."""
        return pd.DataFrame(
            {
                "stage": stage, "bin": number, "low": number / self.bins, "high": (number + 1) / self.bins,
                "pixels": int(pixels), "sum_probability": probability, "positives": int(lesion),
            }
            for stage, rows in zip(self.STAGES, self.counts, strict=True)
            for number, (pixels, probability, lesion) in enumerate(rows.tolist())
        )  # fmt: skip

    @classmethod
    def from_frame(cls, frame: pd.DataFrame) -> "Reliability":
        """The inverse of ``to_frame``, in any row order.

        Raises:
            EvaluationError: if the table is not one that ``to_frame`` wrote.
        """
        columns = ["pixels", "sum_probability", "positives"]
        bins, rest = divmod(len(frame), len(cls.STAGES))
        reliability = cls(max(bins, 1))
        for stage, name in enumerate(cls.STAGES):
            fits = not rest and {"stage", "bin", *columns} <= set(frame.columns)
            part = frame[frame["stage"] == name].sort_values("bin") if fits else frame
            if not fits or not bins or part["bin"].tolist() != list(range(bins)):
                raise EvaluationError(
                    f"this is no table of reliability: {len(frame)} rows, columns {', '.join(frame.columns)}",
                    hint="evaluate again: bus-smp evaluate, or bus-smp crosseval --target NAME",
                )
            reliability.counts[stage] = part[columns].to_numpy(np.float64)
        return reliability
