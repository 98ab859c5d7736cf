"""Intervals: a percentile bootstrap over groups, in one pass for all estimates.

Images of one patient resemble each other, and drawing images one by one would make the interval too
narrow (Field & Welsh, JRSS B 2007); so whole groups are drawn, with replacement.
"""

import math
from collections.abc import Mapping

import numpy as np

# An interval from the draws that happen to be defined leaves out the unlucky ones; beyond this
# share of undefined draws it is no longer shown.
MAX_UNDEFINED_DRAWS = 0.1

NO_INTERVAL = "no interval: "
SAME = "the same in every image"

# Draws are made in blocks, so that memory does not grow with draws x images.
_BLOCK_CELLS = 2_000_000


def auc_of_draws(
    weights: np.ndarray, scores: np.ndarray, positive: np.ndarray, negative: np.ndarray
) -> np.ndarray:
    """ROC-AUC (Mann-Whitney, ties half) for each row of image weights (draws, images); NaN where one kind is absent."""
    used = np.flatnonzero(positive | negative)
    if used.size == 0:
        return np.full(len(weights), np.nan)
    used = used[np.argsort(scores[used], kind="stable")]
    ties = np.flatnonzero(np.r_[True, np.diff(scores[used]) != 0])
    won = np.add.reduceat(weights[:, used] * positive[used], ties, axis=1)
    lost = np.add.reduceat(weights[:, used] * negative[used], ties, axis=1)
    pairs = won.sum(axis=1) * lost.sum(axis=1)
    ordered = (won * (np.cumsum(lost, axis=1) - lost / 2)).sum(axis=1)
    return np.divide(ordered, pairs, out=np.full(len(weights), np.nan), where=pairs > 0)


def bootstrap(
    values: Mapping[str, np.ndarray],
    pairs: Mapping[str, tuple[np.ndarray, np.ndarray]],
    scores: np.ndarray,
    group: np.ndarray,
    draws: int,
    seed: int,
) -> dict[str, np.ndarray]:
    """Every estimate in every draw of whole groups: float (draws,), NaN where undefined."""
    groups = int(group.max()) + 1
    columns = np.stack(list(values.values()), axis=1)
    defined = ~np.isnan(columns)
    # A mean over the images of a draw needs only each group's sum and count.
    sums, counts = np.zeros((2, groups, columns.shape[1]))
    np.add.at(sums, group, np.where(defined, columns, 0))
    np.add.at(counts, group, defined)

    random = np.random.default_rng(seed)
    block = max(1, _BLOCK_CELLS // len(group))
    means, areas = [], {name: [] for name in pairs}
    for start in range(0, draws, block):
        rows = min(block, draws - start)
        picks = random.integers(0, groups, size=(rows, groups)) + np.arange(rows)[:, None] * groups
        weights = np.bincount(picks.reshape(-1), minlength=rows * groups).reshape(rows, groups).astype(float)
        total = weights @ counts
        means.append(np.divide(weights @ sums, total, out=np.full(total.shape, np.nan), where=total > 0))
        for name, (positive, negative) in pairs.items():
            areas[name].append(auc_of_draws(weights[:, group], scores, positive, negative))
    drawn = np.concatenate(means) if means else np.empty((0, columns.shape[1]))
    sampled = {name: drawn[:, index] for index, name in enumerate(values)}
    return sampled | {name: np.concatenate(parts) if parts else np.empty(0) for name, parts in areas.items()}


def estimate(
    mean: float,
    sampled: np.ndarray,
    used: np.ndarray,
    kinds: list[np.ndarray],
    group: np.ndarray,
    confidence: float,
) -> dict:
    """One estimate of ``summarise``; ``kinds`` are the images of which it needs more than one group each."""
    drawn = sampled[~np.isnan(sampled)]
    undefined = len(sampled) - len(drawn)
    low = high = None
    why = ""
    if math.isnan(mean):
        why = "undefined: no such image"
    elif min(len(np.unique(group[kind])) for kind in kinds) < 2:
        why = f"{NO_INTERVAL}one patient"
    elif len(sampled) == 0:
        why = f"{NO_INTERVAL}no draws"
    elif undefined > MAX_UNDEFINED_DRAWS * len(sampled):
        why = f"{NO_INTERVAL}undefined in {undefined / len(sampled):.0%} of the draws"
    elif np.ptp(drawn) < 1e-12:
        # [0, 0] for "0 of 12 missed" would claim a certainty that 12 images do not give.
        why = f"{NO_INTERVAL}{SAME}"
    else:
        low, high = (float(q) for q in np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2]))
    return {
        "mean": None if math.isnan(mean) else mean,
        "low": low,
        "high": high,
        "n": int(used.sum()),
        "n_undefined": int((~used).sum()),
        "groups": len(np.unique(group[used])),
        "undefined_draws": undefined,
        "no_interval": why,
    }
