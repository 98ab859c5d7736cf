"""ROC curves over all pixels of a data set, streamed: memory does not grow with the number of images."""

import numpy as np
import pandas as pd

from bus_smp.classes import CLASSES
from bus_smp.errors import EvaluationError
from bus_smp.measures.overlap import TARGETS

# Log-odds beyond this are one bin: probabilities nearer to 0 or 1 than 1e-7, the limit of float32.
_MAX_LOG_ODDS = 16.0

# The upper half of a float32's bits is its logarithm in 128 steps per octave, at no cost. Codes of
# min(p, 1 - p), which is exact, lie below this; a cell is a code on one of the two sides of p = 1/2.
_SIDE = 1 << 14


def _cell(score: np.ndarray) -> np.ndarray:
    """Fine cell of each probability, uint32 0..2 * _SIDE - 1; not yet in the order of the probability."""
    smaller = np.minimum(score, 1 - score)
    # A rounding error can lead beyond 0 or 1.
    np.maximum(smaller, 0, out=smaller)
    code = np.ascontiguousarray(smaller).view(np.uint32) >> np.uint32(16)
    code += (score > 0.5).view(np.uint8) * np.uint32(_SIDE)
    return code


def _bins_of_cells(bins: int) -> np.ndarray:
    """Bin 0..bins-1 of every fine cell: equal steps of log(p / (1 - p)).

    Equal steps of p would not do: a trained network gives most pixels less than .001, all of which would
    fall into one bin, and the curve between it and (1, 1) would be a straight line.
    """
    # The middle of the cell; +0.0 is a separate cell with odds of 0.
    code = (np.arange(_SIDE, dtype=np.uint32) << np.uint32(16)) | np.uint32(1 << 15)
    smaller = np.where(code >> np.uint32(16) == 0, 0, code.view(np.float32).astype(np.float64)).clip(0, 0.5)
    # 0 has infinite odds and belongs to the outer bins
    with np.errstate(divide="ignore"):
        odds = np.log(smaller / (1 - smaller)).clip(-_MAX_LOG_ODDS, 0)
    place = (np.concatenate([odds, -odds]) + _MAX_LOG_ODDS) * (bins / (2 * _MAX_LOG_ODDS))
    return np.minimum(place.astype(np.intp), bins - 1)


class PixelHistograms:
    """ROC curves over all pixels of a data set, in memory that does not grow with the number of images.

    For each target the probability (``lesion`` = benign + malignant) is counted in ``bins`` equal steps
    of its log-odds, by true class. The AUC from the counts differs from the exact one only through
    pixels that share a bin: by less than half the share of such (positive, negative) pairs.
    """

    def __init__(self, bins: int = 2000) -> None:
        self.bins = bins
        self._fine = np.zeros((len(TARGETS), len(CLASSES), 2 * _SIDE), np.int64)
        # Counts from tables that were read.
        self._folded = np.zeros((len(TARGETS), len(CLASSES), bins), np.int64)

    def update(self, truth: np.ndarray, probabilities: np.ndarray) -> None:
        """Add one image.

        Args:
            truth: integer (H, W), class indices as ``confusion`` has checked them.
            probabilities: float (3, H, W), in 0..1 (rounding errors up to 1e-3 are clipped).

        Raises:
            EvaluationError: on NaN, infinite or out-of-range probabilities, or another shape. The histograms are then unchanged.
        """
        truth, probabilities = np.asarray(truth), np.asarray(probabilities)
        if probabilities.shape != (len(CLASSES), *truth.shape):
            raise EvaluationError(
                f"the probabilities have shape {probabilities.shape}; "
                f"the reference needs {(len(CLASSES), *truth.shape)}"
            )
        if truth.size == 0:
            return
        # One comparison for all: NaN is neither above nor below anything.
        if not (probabilities.min() >= -1e-3 and probabilities.max() <= 1 + 1e-3):
            raise EvaluationError("the prediction holds probabilities that are NaN or outside 0..1")
        classes = truth.astype(np.uint32) * np.uint32(2 * _SIDE)
        for target, positive in enumerate(TARGETS.values()):
            # A sum, not 1 - background, which would round small probabilities to steps of 6e-8.
            first, *others = positive
            score = np.asarray(sum((probabilities[c] for c in others), probabilities[first]), np.float32)
            cells = np.bincount((_cell(score) + classes).reshape(-1), minlength=len(CLASSES) * 2 * _SIDE)
            self._fine[target] += cells.reshape(len(CLASSES), 2 * _SIDE)

    @property
    def counts(self) -> np.ndarray:
        """Pixels by target, true class and bin, int64 (3, 3, bins)."""
        where = _bins_of_cells(self.bins)
        folded = self._folded.copy()
        for fine, coarse in zip(
            self._fine.reshape(-1, 2 * _SIDE), folded.reshape(-1, self.bins), strict=True
        ):
            coarse += np.bincount(where, weights=fine, minlength=self.bins).astype(np.int64)
        return folded

    def roc(self, target: str) -> tuple[np.ndarray, np.ndarray, float]:
        """Pixel ROC of ``lesion``, ``benign`` or ``malignant`` (against all other pixels).

        Returns:
            false positive rates and true positive rates, float (bins + 1,), from (0, 0) to (1, 1),
            and the area under them by the trapezoid rule (= Mann-Whitney with ties counted half;
            Fawcett 2006), 0..1. Where one of the two kinds of pixels is absent, its rates and the
            area are NaN.
        """
        counts = self.counts[list(TARGETS).index(target)]
        is_positive = np.isin(np.arange(len(CLASSES)), TARGETS[target])
        rates = []
        for kind in (~is_positive, is_positive):
            above = np.concatenate([[0], np.cumsum(counts[kind].sum(axis=0)[::-1])])
            rates.append(above / above[-1] if above[-1] else np.full(len(above), np.nan))
        fpr, tpr = rates
        return fpr, tpr, float(np.sum(np.diff(fpr) * (tpr[1:] + tpr[:-1]) / 2))

    def __add__(self, other: "PixelHistograms") -> "PixelHistograms":
        """The histograms of both sets of images together."""
        if self.bins != other.bins:
            raise EvaluationError(f"histograms of {self.bins} and of {other.bins} bins cannot be added")
        both = PixelHistograms(self.bins)
        both._folded = self.counts + other.counts
        return both

    def to_frame(self) -> pd.DataFrame:
        """As a table to be stored: one row per target and bin; columns target, bin, and pixels by true class."""
        counts = self.counts
        rows = [
            {"target": target, "bin": number} | {c.name: int(counts[index, c.index, number]) for c in CLASSES}
            for index, target in enumerate(TARGETS)
            for number in range(self.bins)
        ]
        return pd.DataFrame(rows)

    @classmethod
    def from_frame(cls, frame: pd.DataFrame) -> "PixelHistograms":
        """The inverse of ``to_frame``, in any row order.

        Raises:
            EvaluationError: if the table is not one that ``to_frame`` wrote.
        """
        needed = ["target", "bin", *(c.name for c in CLASSES)]
        bins, rest = divmod(len(frame), len(TARGETS))
        if rest or not bins or not set(needed) <= set(frame.columns):
            raise EvaluationError(
                f"this is no table of pixel histograms: {len(frame)} rows, columns {', '.join(frame.columns)}",
                hint="evaluate again: bus-smp evaluate, or bus-smp crosseval --target NAME",
            )
        histograms = cls(bins)
        for index, target in enumerate(TARGETS):
            part = frame[frame["target"] == target].sort_values("bin")
            if part["bin"].tolist() != list(range(bins)):
                raise EvaluationError(
                    f"the table of pixel histograms lacks rows of {target}",
                    hint="evaluate again: bus-smp evaluate, or bus-smp crosseval --target NAME",
                )
            histograms._folded[index] = part[[c.name for c in CLASSES]].to_numpy(np.int64).T
        return histograms
