"""Is one run better than another? Both are scored on the same images, so that a hard image is hard for both."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from bus_smp.errors import EvaluationError
from bus_smp.statistics.bootstrap import BLOCK_CELLS, Resampled, bootstrap, defined, estimate
from bus_smp.statistics.estimators import Auc, Estimator, Weighted
from bus_smp.statistics.metrics import COMPARED, PRIMARY, estimators, pixel_counts
from bus_smp.statistics.summary import check_per_image, sorted_by_group

# Up to how many groups all swaps are tried; beyond, as many as drawn.
_MOST_EXACT = 12

# How much each image counts, float (images,), for each kind of images that an estimate needs.
Kinds = tuple[np.ndarray, ...]

_SAME_COLUMNS = ("group_id", "label", "width", "height")


def compare(
    table_a: pd.DataFrame,
    table_b: pd.DataFrame,
    draws: int = 5000,
    permutations: int = 5000,
    seed: int = 42,
    confidence: float = 0.95,
) -> dict[str, Any]:
    """Compare two runs, image by image. The result does not depend on the order of the rows.

    Interval of a difference: both runs in the same bootstrap draws of groups. p, two-sided: in each
    group A and B change places, or not; if neither were better, the difference found would be one among those. All
    2^groups ways are tried with ``_MOST_EXACT`` groups or fewer; else ``permutations`` of them at random, and p =
    (as far or further + 1) / (permutations + 1) (Phipson & Smyth, Stat. Appl. Genet. Mol. Biol. 2010). ``p_holm`` allows for
    the number of metrics (Holm, Scand. J. Stat. 1979); ``PRIMARY`` is the one question chosen beforehand, so its p needs no correction.

    An image where a metric is undefined in only one of the runs (no distance, where it predicts nothing) is left out of both:
    a run that marks less is compared by HD95 where both mark something.

    Args:
        table_a, table_b: per-image tables of the same images.
        draws, permutations: bootstrap draws and random swaps.

    Returns:
        A dict that ``json.dumps(..., allow_nan=False)`` takes: ``images``, ``groups``, ``primary``, ``metrics``,
        ``bootstrap``, ``permutation``. Each of ``metrics`` is ``{a, b, difference, low, high, n, n_unpaired, groups,
         undefined_draws, no_interval, p, p_holm, p_least}``: difference is a - b over n images; n_unpaired images
        were left out; p_least is the smallest p that so many groups can give. What is undefined is None.

    Raises:
        EvaluationError: as ``check_per_image``; or if the tables are not of the same images, groups and references.
    """
    for table in (table_a, table_b):
        check_per_image(table)
    (a, group, stratum, _), (b, *_) = sorted_by_group(table_a), sorted_by_group(table_b)
    check_same_images(a, b)
    of_a, of_b, kinds, unpaired = resample_pair(a, b, group, stratum, draws, seed)
    swaps, exact = _swaps(len(stratum), permutations, seed)
    stacked = pd.concat([a, b], ignore_index=True)
    both = estimators(stacked, COMPARED)
    kept = {name: np.tile(_used(kinds[name]), 2) for name in COMPARED}
    of_both = {name: both[name].within(kept[name]) for name in COMPARED}
    if not exact:
        of_both = {name: _ranked(estimator) for name, estimator in of_both.items()}
    changed = _differences(of_both, group, swaps)

    metrics = {}
    for column, name in enumerate(COMPARED):
        one, other = of_a[name], of_b[name]
        found = compared(one, other, kinds[name], group, stratum, confidence)
        p, p_least = _p_value(one, other, changed[:, column], exact, found["groups"])
        metrics[name] = found | {"n_unpaired": unpaired[name], "p": p, "p_least": p_least}
    return {
        **comparison(metrics, len(a), len(stratum)),
        "bootstrap": {
            "unit": "group",
            "draws": len(of_a[PRIMARY].drawn),
            "seed": seed,
            "confidence": confidence,
        },
        "permutation": {"unit": "group", "number": len(swaps), "exact": exact, "seed": seed},
    }


def compared(
    a: Resampled, b: Resampled, kinds: Kinds, group: np.ndarray, stratum: np.ndarray, confidence: float
) -> dict[str, Any]:
    """One metric: ``a``, ``b``, their ``difference`` and the rest of its ``estimate``."""
    found = estimate(a - b, kinds, group, stratum, confidence, len(group))
    del found["n_undefined"]
    return {"a": defined(a.point), "b": defined(b.point), "difference": found.pop("mean"), **found}


def comparison(metrics: Mapping[str, dict[str, Any]], images: int, groups: int) -> dict[str, Any]:
    """The parts of a result that all comparisons have; ``p_holm`` is added to each metric."""
    for name, adjusted in holm({name: one["p"] for name, one in metrics.items()}).items():
        metrics[name]["p_holm"] = adjusted
    return {"images": images, "groups": groups, "primary": PRIMARY, "metrics": metrics}


def check_same_images(a: pd.DataFrame, b: pd.DataFrame) -> None:
    """Refuse tables that are not of the same images, groups and references; in any order of the rows.

    Raises:
        EvaluationError: naming what differs.
    """
    keys = [set(zip(table["dataset"], table["image_id"], strict=True)) for table in (a, b)]
    stray = sorted(keys[0] ^ keys[1])
    if stray:
        raise EvaluationError(
            f"the runs were scored on different images: {len(stray)} are in only one of them "
            f"(e.g. {' '.join(stray[0])})"
        )
    # Sorted by group first: with other groups the rows would not meet.
    a, b = (table.sort_values(["dataset", "image_id"], ignore_index=True) for table in (a, b))
    differs = [column for column in _SAME_COLUMNS if (a[column] != b[column]).any()]
    if not differs and (pixel_counts(a).sum(axis=2) != pixel_counts(b).sum(axis=2)).any():
        differs = ["reference mask"]
    if differs:
        raise EvaluationError(
            f"the runs were scored on different manifests: {', '.join(differs)} of images differ"
        )


def _ranked(of_both: Estimator) -> Estimator:
    """An AUC of A's images and then B's, each run's scores as ranks among its own (Venkatraman & Begg, Biometrika 1996).

    A swap puts both runs' scores into one ROC: on scales of their own (another temperature) the mixture of scales
    would drown the difference. Ranks leave each run's AUC as it is. A rank depends on the other images, so that the swaps are
    not quite exchangeable: with few groups, where this matters, the scores themselves are swapped and the p is exact.
    """
    if not isinstance(of_both, Auc):
        return of_both
    used = _used(of_both.kinds)
    ranks = np.zeros(len(used))
    for half in np.split(np.arange(len(used)), 2):
        own = half[used[half]]
        ranks[own] = rankdata(of_both.scores[own])
    return Auc(ranks, of_both.positive, of_both.negative)


def _used(kinds: Kinds) -> np.ndarray:
    return np.any([kind > 0 for kind in kinds], axis=0)


def resample_pair(
    a: pd.DataFrame, b: pd.DataFrame, group: np.ndarray, stratum: np.ndarray, draws: int, seed: int
) -> tuple[dict[str, Resampled], dict[str, Resampled], dict[str, Kinds], dict[str, int]]:
    """Both runs in the same draws, each metric over the images where both define it.

    Args:
        a, b: per-image tables, sorted by group.

    Returns:
        A, B, the ``kinds`` of each metric, and how many images have it in only one run.
    """
    of_runs = [estimators(table, COMPARED) for table in (a, b)]
    used = {name: [_used(of_run[name].kinds) for of_run in of_runs] for name in COMPARED}
    paired = [
        {name: of_run[name].within(used[name][0] & used[name][1]) for name in COMPARED} for of_run in of_runs
    ]
    of_a, of_b = (bootstrap(of_run, group, stratum, draws, seed) for of_run in paired)
    unpaired = {name: int((one ^ other).sum()) for name, (one, other) in used.items()}
    return of_a, of_b, {name: paired[0][name].kinds for name in COMPARED}, unpaired


def _swaps(groups: int, permutations: int, seed: int) -> tuple[np.ndarray, bool]:
    """Bool (swaps, groups): where A and B change places; and whether these are all there are."""
    if groups <= _MOST_EXACT:
        return (np.arange(2**groups)[:, None] >> np.arange(groups) & 1).astype(bool), True
    return np.random.default_rng(seed).random((permutations, groups)) < 0.5, False


def _differences(estimators: Mapping[str, Estimator], group: np.ndarray, swaps: np.ndarray) -> np.ndarray:
    """Float (swaps, estimators): a - b after each swap; the estimators are of A's images, then B's."""
    groups = swaps.shape[1]
    evaluate = Weighted(estimators, np.concatenate([group, group + groups]), 2 * groups).of
    block = max(1, BLOCK_CELLS // (2 * len(group)))
    parts = [np.empty((0, len(estimators)))]
    for start in range(0, len(swaps), block):
        swapped = swaps[start : start + block].astype(float)
        kept = 1 - swapped
        parts.append(evaluate(np.hstack([kept, swapped])) - evaluate(np.hstack([swapped, kept])))
    return np.concatenate(parts)


def _p_value(
    a: Resampled, b: Resampled, changed: np.ndarray, exact: bool, groups: int
) -> tuple[float | None, float | None]:
    difference = abs(a.point - b.point)
    if np.isnan(difference) or len(changed) == 0:
        return None, None
    # Rounding errors must not decide whether a difference is as large as the observed one.
    slack = 1e-12 * max(1.0, abs(a.point), abs(b.point))
    further = int((np.abs(changed) >= difference - slack).sum())
    least = min(1.0, 2.0 ** (1 - groups))
    if exact:
        return further / len(changed), least
    return (further + 1) / (len(changed) + 1), max(least, 1 / (len(changed) + 1))


def holm(p_values: Mapping[str, float | None]) -> dict[str, float | None]:
    """Holm's step-down adjustment (Scand. J. Stat. 1979); those that are None stay so and are not counted."""
    known = sorted((p, name) for name, p in p_values.items() if p is not None)
    adjusted: dict[str, float | None] = dict.fromkeys(p_values)
    highest = 0.0
    for place, (p, name) in enumerate(known):
        highest = max(highest, min(1.0, (len(known) - place) * p))
        adjusted[name] = highest
    return adjusted
