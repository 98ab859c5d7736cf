"""The ROC curve of the images' malignant scores, and its interval."""

import numpy as np
import pandas as pd

from bus_smp.statistics.bootstrap import bootstrap, estimate
from bus_smp.statistics.estimators import SensitivityAt
from bus_smp.statistics.metrics import Images
from bus_smp.statistics.summary import sorted_by_group

# Where the interval is computed: close together on the left, where the curve rises.
_FALSE_RATES = (0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
# Enough for a band in a figure; the numbers of a summary have more.
_MOST_DRAWS = 1000


def roc_of_images(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """ROC of ``malignant_score``, malignant against all other images.

    Returns:
        false-positive and true-positive rates, 0..1, by falling threshold; empty where one kind of image is absent.
    """
    images = Images(table)
    score = images.column("malignant_score")
    scored = ~np.isnan(score)
    if len(set(images.malignant[scored])) < 2:
        return np.empty(0), np.empty(0)
    falling = np.unique(score[scored])[::-1]
    rates = []
    for kind in (~images.malignant, images.malignant):
        own = np.sort(score[kind & scored])
        called = len(own) - np.searchsorted(own, falling)
        rates.append(np.concatenate([[0.0], called / len(own)]))
    return rates[0], rates[1]


def roc_band(
    table: pd.DataFrame, draws: int, seed: int, confidence: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Pointwise interval of the sensitivity at fixed false-positive rates, as ``summarise`` makes its intervals.

    Args:
        table: the per-image table.
        draws: of whole groups; at most 1,000 are used.

    Returns:
        false-positive rates, lower and upper limit, NaN where there is no interval; None where there is none at all.
    """
    table, group, stratum, _ = sorted_by_group(table)
    images = Images(table)
    score = images.column("malignant_score")
    scored = ~np.isnan(score)
    kinds = images.malignant & scored, ~images.malignant & scored
    steps = {rate: SensitivityAt(score, *kinds, 1 - rate) for rate in _FALSE_RATES}
    resampled = bootstrap(steps, group, stratum, min(draws, _MOST_DRAWS), seed)
    found = [
        estimate(one, steps[rate].kinds, group, stratum, confidence, len(table))
        for rate, one in resampled.items()
    ]
    low, high = (np.array([one[key] for one in found], float) for key in ("low", "high"))
    return None if np.isnan(low).all() else (np.array(_FALSE_RATES), low, high)
