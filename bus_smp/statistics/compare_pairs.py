"""Is one way of training better than another? Several pairs of runs, each pair with the same seed and fold.

Two kinds of chance are in the difference: which patients are in the test, and how each training went (its seed, its
order of images). An interval over patients covers only the first, an sd between pairs only the second.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import brentq
from scipy.special import stdtrit

from bus_smp.statistics.bootstrap import NO_INTERVAL, Resampled, defined, effective_groups
from bus_smp.statistics.compare import (
    Kinds,
    check_same_images,
    compare,
    compared,
    comparison,
    resample_pair,
)
from bus_smp.statistics.metrics import COMPARED
from bus_smp.statistics.summary import check_per_image, sorted_by_group
from bus_smp.text import counted

# Of two, t with one degree of freedom makes intervals wider than what a share can be.
LEAST_PAIRS = 3


def compare_pairs(
    pairs: Sequence[tuple[pd.DataFrame, pd.DataFrame]],
    draws: int = 5000,
    permutations: int = 5000,
    seed: int = 42,
    confidence: float = 0.95,
) -> dict[str, Any]:
    """Compare A with B over pairs of runs that were scored on the same images. One pair: as ``compare``.

    The difference d is the mean over the K pairs of a - b, each pair over the images where both are defined. Two
    half-widths are added as squares (Zou & Donner, Statistics in Medicine 2008): t(n - 1) * sd of d over bootstrap draws of whole groups,
    which are the same for all runs and widened as in ``tail``; and t(K - 1) * s / sqrt(K), with s the standard deviation of a - b
    between the pairs. p is the level at which the interval reaches 0. What a pair and a patient have in common is in
    both terms: simulated with 3 to 5 pairs and no difference, p is below .05 in 2 to 4 % of experiments (with one
    variance and Satterthwaite's degrees of freedom in 5 to 11 %).

    Args:
        pairs: per-image tables of A and B, all of the same images.
        draws, permutations: bootstrap draws; random swaps of a single pair.

    Returns:
        As ``compare``, with ``pairs``: K. Fewer than ``LEAST_PAIRS`` have no interval and no p. Of several pairs ``permutation`` is None, ``p_least`` of a metric is None, and each metric
        has ``differences``: a - b of each pair, None where undefined; it is compared over the pairs where it is defined.

    Raises:
        EvaluationError: as ``compare``.
    """
    if len(pairs) == 1:
        return {**compare(*pairs[0], draws, permutations, seed, confidence), "pairs": 1}
    first = pairs[0][0]
    for table in (table for pair in pairs for table in pair):
        check_per_image(table)
        check_same_images(*(sorted_by_group(one)[0] for one in (first, table)))
    _, group, stratum, _ = sorted_by_group(first)
    found = [
        resample_pair(sorted_by_group(a)[0], sorted_by_group(b)[0], group, stratum, draws, seed)
        for a, b in pairs
    ]
    metrics = {
        name: _compared(
            [(a[name], b[name], kinds[name]) for a, b, kinds, _ in found], group, stratum, confidence
        )
        | {"n_unpaired": max(unpaired[name] for *_, unpaired in found)}
        for name in COMPARED
    }
    return {
        **comparison(metrics, len(first), len(stratum)),
        "pairs": len(pairs),
        "bootstrap": {"unit": "group", "draws": draws, "seed": seed, "confidence": confidence},
        "permutation": None,
    }


def _compared(
    pairs: Sequence[tuple[Resampled, Resampled, Kinds]],
    group: np.ndarray,
    stratum: np.ndarray,
    confidence: float,
) -> dict[str, Any]:
    """One metric over the pairs where it is defined."""
    points = [a.point - b.point for a, b, _ in pairs]
    known = [pair for pair, point in zip(pairs, points, strict=True) if not math.isnan(point)] or pairs[:1]
    a, b = _mean([one for one, _, _ in known]), _mean([other for _, other, _ in known])
    # images that count in every pair
    kinds = tuple(
        np.minimum.reduce(of_pairs) for of_pairs in zip(*(kinds for *_, kinds in known), strict=True)
    )
    found = compared(a, b, kinds, group, stratum, confidence)
    p = None
    if found["low"] is not None and len(known) < LEAST_PAIRS:
        why = f"{NO_INTERVAL}only {counted(len(known), 'pair')} of runs, {LEAST_PAIRS} are needed"
        found |= {"low": None, "high": None, "no_interval": why}
    elif found["low"] is not None:
        found["low"], found["high"], p = _with_pairs(
            a - b,
            np.array([one.point - other.point for one, other, _ in known]),
            kinds,
            group,
            stratum,
            confidence,
        )
    return {**found, "differences": list(map(defined, points)), "p": p, "p_least": None}


def _mean(of: Sequence[Resampled]) -> Resampled:
    return Resampled(float(np.mean([one.point for one in of])), np.mean([one.drawn for one in of], axis=0))


def _with_pairs(
    difference: Resampled,
    of_pairs: np.ndarray,
    kinds: Kinds,
    group: np.ndarray,
    stratum: np.ndarray,
    confidence: float,
) -> tuple[float, float, float]:
    """Ends of the interval and p; see ``compare_pairs``."""
    n, freedom = min((effective_groups(kind, group, stratum) for kind in kinds), key=lambda one: one[1])
    freedom = max(freedom, 1.0)
    of_patients = float(np.nanstd(difference.drawn)) * math.sqrt(n / freedom)
    number = len(of_pairs)
    of_pair = float(np.std(of_pairs, ddof=1)) / math.sqrt(number)

    def half(level: float) -> float:
        """Half the width of the interval that leaves out ``level``."""
        quantiles = stdtrit([freedom, number - 1], level / 2)
        return float(np.hypot(*(quantiles * (of_patients, of_pair))))

    wide, distance = half(1 - confidence), abs(difference.point)
    # the ends of what brentq looks through
    least, most = 1e-9, 1 - 1e-9
    if half(least) <= distance:
        p = least
    elif half(most) >= distance:
        p = 1.0
    else:
        p = float(brentq(lambda level: half(level) - distance, least, most))
    return difference.point - wide, difference.point + wide, p
