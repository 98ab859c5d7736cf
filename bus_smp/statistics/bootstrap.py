"""Intervals: a bootstrap over groups, in one pass for all estimates.

Images of one patient resemble each other, and drawing images one by one would make the interval too
narrow (Field & Welsh, JRSS B 2007); so whole groups are drawn with replacement.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import Any

import numpy as np
from scipy.special import factorial, ndtr, stdtrit

from bus_smp.statistics.estimators import Estimator, Weighted
from bus_smp.system.threads import read_ahead
from bus_smp.text import counted

# An interval from the draws that happen to be defined leaves out the unlucky ones; beyond this
# share of undefined draws it is no longer shown.
MAX_UNDEFINED_DRAWS = 0.1

# No interval from draws reaches beyond its groups: the 95 % interval of 4 of them covers the truth in 84 % of
# samples, of 2 in 55 %, of 5 in 92 % (clustered rates, simulated as in tests/test_bootstrap.py).
MIN_GROUPS = 5

# A label that fewer groups show is given its share in every draw.
RARE = 10

# Up to how many groups all possible draws are taken. Their number, n^n, is 46,656 of 6 and 823,543 of 7.
MOST_ENUMERATED = 6

NO_INTERVAL = "no interval: "
SAME = "the same in every image"

# Draws are made in blocks of so many weights of groups, so that memory does not grow with their number. Of very many groups
# a block has this many draws: with fewer the sums of the groups would be fetched from memory again and again.
BLOCK_CELLS = 200_000
LEAST_BLOCK = 16
THREADS = 2


@dataclass(frozen=True)
class Resampled:
    """An estimate from all groups, and from draws of them.

    Attributes:
        point: of all images; NaN where undefined.
        drawn: float (draws,), NaN where undefined in the draw.
    """

    point: float
    drawn: np.ndarray

    def __sub__(self, other: "Resampled") -> "Resampled":
        """The difference of two estimates from the same draws."""
        return Resampled(self.point - other.point, self.drawn - other.drawn)


def rare_labels(severity: np.ndarray, group: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """Strata for drawing groups: each rare label gets its own, so that every draw contains it.

    A label is rare where fewer than ``RARE`` groups have an image of it. Its stratum is the groups whose worst label
    it is; all other groups are one stratum. A stratum of fewer than ``MIN_GROUPS`` would hardly vary between draws, as if
    it were known without error: it stays with the others, and where those are fewer still nothing is stratified.

    Args:
        severity: int (images,), the higher the worse.
        group: int (images,), 0..groups-1.

    Returns:
        int (groups,), 0..strata-1, and the severities of the rare labels that have a stratum.
    """
    groups = int(group.max()) + 1
    worst = np.zeros(groups, int)
    np.maximum.at(worst, group, severity)
    showing = [len(np.unique(group[severity == label])) for label in range(worst.max() + 1)]
    size = np.bincount(worst)
    rare = [label for label, shown in enumerate(showing) if shown < RARE and size[label] >= MIN_GROUPS]
    others = groups - int(size[rare].sum())
    if len(rare) + (others > 0) < 2 or 0 < others < MIN_GROUPS:
        return np.zeros(groups, int), []
    stratum = np.zeros(groups, int)
    for place, label in enumerate(rare, start=int(others > 0)):
        stratum[worst == label] = place
    return stratum, rare


def draw_groups(stratum: np.ndarray, draws: int, random: np.random.Generator) -> np.ndarray:
    """How often each group is in each draw: float (draws, groups). Each stratum is drawn as often as it has groups."""
    groups = len(stratum)
    order = np.argsort(stratum, kind="stable")
    size = np.bincount(stratum)
    first = np.cumsum(size) - size
    of = stratum[order]
    picks = order[first[of] + (random.random((draws, groups)) * size[of]).astype(np.intp)]
    picks += np.arange(draws)[:, None] * groups
    return np.bincount(picks.reshape(-1), minlength=draws * groups).reshape(draws, groups).astype(float)


def all_draws(groups: int) -> tuple[np.ndarray, np.ndarray]:
    """Every different draw of so many groups: float (draws, groups) as from ``draw_groups``, and in how many orders it occurs.

    There are (2n - 1)! / (n! (n - 1)!) of n groups, 126 of 5; together they occur in n^n orders.
    """
    picks = np.array(list(combinations_with_replacement(range(groups), groups)))
    weights = (picks[:, :, None] == np.arange(groups)).sum(axis=1)
    orders = math.factorial(groups) // factorial(weights, exact=True).prod(axis=1)
    return weights.astype(float), orders


def bootstrap(
    estimators: Mapping[Any, Estimator], group: np.ndarray, stratum: np.ndarray, draws: int, seed: int
) -> dict[Any, Resampled]:
    """Every estimate in every draw of whole groups.

    Of up to ``MOST_ENUMERATED`` groups all possible draws are taken, each in all of its orders (3,125 of 5 groups), instead of
    random ones: their interval goes far into the tails, where its ends would depend on the seed.

    Memory does not grow with draws x images or draws x groups; time goes with draws x (groups x estimators + images of each
    AUC).

    Args:
        group: int (images,), 0..groups-1.
        stratum: int (groups,), from ``rare_labels``.
        draws: 0 gives only the point estimates.
    """
    groups = len(stratum)
    weighted = Weighted(estimators, group, groups)
    block = max(LEAST_BLOCK, BLOCK_CELLS // groups)
    random = np.random.default_rng(seed)
    point = weighted.of(np.ones((1, groups)))[0]
    if draws and groups <= MOST_ENUMERATED:
        weights, orders = all_draws(groups)
        drawn = np.repeat(weighted.of(weights), orders, axis=0)
        return {name: Resampled(float(point[i]), drawn[:, i]) for i, name in enumerate(estimators)}
    blocks = (draw_groups(stratum, min(block, draws - start), random) for start in range(0, draws, block))
    # Drawn in turn, counted side by side: numpy leaves the interpreter's lock.
    counted = read_ahead(weighted.of, blocks, threads=THREADS, ahead=THREADS + 1)
    drawn = np.concatenate([np.empty((0, len(estimators))), *counted])
    return {name: Resampled(float(point[i]), drawn[:, i]) for i, name in enumerate(estimators)}


def tail(kinds: tuple[np.ndarray, ...], group: np.ndarray, stratum: np.ndarray, confidence: float) -> float:
    """Share of the draws to leave out at either end, so that few groups do not make the interval too narrow.

    The bootstrap's spread is too small by (n - 1) / n, and its tails are normal where Student's t is due. Hesterberg (The
    American Statistician 2015) widens the percentiles: normal(-sqrt(n / (n - 1)) t), with t the quantile of n - 1 degrees of freedom.
    Here n is Kish's effective number of groups, (sum of m)^2 / sum of m^2 for m images in each: five patients of whom one has
    most images weigh like fewer (Carter et al., Rev. Econ. Stat. 2017). Each stratum costs a degree of freedom.
    An estimate with two kinds of images (AUC) is as wide as its rarer kind asks.

    Args:
        kinds: float (images,) each, how much an image counts; ``kinds`` of an estimator.

    Returns:
        0..(1 - confidence) / 2; 0 where no degree of freedom is left: the range of the draws.
    """
    return min(_tail(kind, group, stratum, confidence) for kind in kinds)


def _tail(kind: np.ndarray, group: np.ndarray, stratum: np.ndarray, confidence: float) -> float:
    n, freedom = effective_groups(kind, group, stratum)
    # Sums of equal sizes may be off in the last bit.
    if freedom < 1e-9:
        return 0.0
    return float(ndtr(math.sqrt(n / freedom) * stdtrit(freedom, (1 - confidence) / 2)))


def effective_groups(kind: np.ndarray, group: np.ndarray, stratum: np.ndarray) -> tuple[float, float]:
    """Kish's effective number of groups, and the degrees of freedom that they give; see ``tail``.

    Args:
        kind: float (images,), how much an image counts.
    """
    size = np.bincount(group, kind, minlength=len(stratum))
    n = size.sum() ** 2 / (size**2).sum()
    return float(n), float(n - len(np.unique(stratum[size > 0])))


def percentile_interval(drawn: np.ndarray, tail: float) -> tuple[float, float]:
    """Quantiles of the draws, float (draws,) without NaN (Efron, Annals of Statistics 1979), linearly interpolated."""
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return float(low), float(high)


def estimate(
    resampled: Resampled,
    kinds: tuple[np.ndarray, ...],
    group: np.ndarray,
    stratum: np.ndarray,
    confidence: float,
    images: int,
    unreliable: str = "",
) -> dict:
    """One estimate of ``summarise``.

    Args:
        kinds: float (images,) each, how much an image counts; it needs ``MIN_GROUPS`` groups of each.
        images: how many there are to take it over, for ``n_undefined``.
        unreliable: why draws would say nothing about this estimate, if they would not.
    """
    used = np.any([kind > 0 for kind in kinds], axis=0)
    drawn = resampled.drawn[~np.isnan(resampled.drawn)]
    undefined = len(resampled.drawn) - len(drawn)
    fewest = min(_groups_of(kind > 0, group, len(stratum)) for kind in kinds)
    low = high = None
    why = ""
    if math.isnan(resampled.point):
        why = "undefined: no such image"
    elif unreliable:
        why = f"{NO_INTERVAL}{unreliable}"
    elif fewest < MIN_GROUPS:
        why = f"{NO_INTERVAL}only {counted(fewest, 'group')}"
    elif len(resampled.drawn) == 0:
        why = f"{NO_INTERVAL}no draws"
    elif undefined > MAX_UNDEFINED_DRAWS * len(resampled.drawn):
        why = f"{NO_INTERVAL}undefined in {undefined / len(resampled.drawn):.0%} of the draws"
    elif np.ptp(drawn) < 1e-12:
        # [0, 0] for "0 of 12 missed" would claim a certainty that 12 images do not give.
        why = f"{NO_INTERVAL}{SAME}"
    else:
        low, high = percentile_interval(drawn, tail(kinds, group, stratum, confidence))
    return {
        "mean": defined(resampled.point),
        "low": low,
        "high": high,
        "n": int(used.sum()),
        "n_undefined": images - int(used.sum()),
        "groups": _groups_of(used, group, len(stratum)),
        "undefined_draws": undefined,
        "no_interval": why,
    }


def defined(value: float) -> float | None:
    """The value as JSON takes it: None for NaN and infinity."""
    return value if math.isfinite(value) else None


def _groups_of(images: np.ndarray, group: np.ndarray, groups: int) -> int:
    """How many groups have one of the images, bool (images,); counting is many times faster than sorting."""
    return int(np.count_nonzero(np.bincount(group[images], minlength=groups)))
