"""Splits and folds over whole groups (patients), balanced in images, labels and patients.

The criterion (``imbalance``). For each column c of the counts {all images; images of each label;
all groups; groups whose worst finding is each label} with total N_c, and each split s with target
fraction f_s that received n_sc of them:

    J = sum over c and s of  w_c * (n_sc - f_s * N_c)^2 / (f_s * N_c^2)

that is f_s times the squared relative deviation from the target, as in Pearson's chi-square, so
that one image too few weighs more in a small split and in a rare label. w_c is 1 for the columns
of images and 0.25 for those of groups. J = 0 where every split mirrors the whole.

It is minimised by local search: groups are dealt out greedily in random order, then the best
single move or swap of groups is made until none helps, from several starts. The starts come from
the seed; groups are first sorted by id, so the result is a function of the groups' ids and label
counts, the fractions and the seed, and of nothing else.
"""

from collections.abc import Collection, Sequence

import numpy as np
import pandas as pd

from bus_smp.classes import LABELS
from bus_smp.errors import ManifestError
from bus_smp.text import counted

SPLITS = ("train", "val", "test")

# The words of tables and folders; tr and ts are nnU-Net's.
_SPLIT_WORDS = {
    "train": "train", "training": "train", "tr": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test", "ts": "test",
}  # fmt: skip

_GROUP_WEIGHT = 0.25

# Moves or swaps per start. More groups than this are nearly balanced after dealing.
_STEPS = 500

# Groups of one split that are tried in swaps at each step.
_SWAPS = 700


def parse_split(word: str) -> str:
    """The split that ``word`` means, in upper or lower case.

    Raises:
        ValueError: if it is none of the known words.
    """
    split = _SPLIT_WORDS.get(word.strip().lower())
    if split is None:
        raise ValueError(f"split {word!r} is unknown; use one of {', '.join(SPLITS)}")
    return split


def assign_splits(
    table: pd.DataFrame,
    fractions: Sequence[float] = (0.70, 0.15, 0.15),
    seed: int = 42,
    test_groups: Collection[str] | None = None,
) -> pd.Series:
    """Give every group to train, val or test.

    Args:
        table: one row per used image with ``group_id`` and ``label``.
        fractions: target shares of train, val and test; positive, summing to 1.
        seed: 0 to 2^32-1; other seeds give other splits of similar balance.
        test_groups: groups that are the test split, all of it; the rest is divided into train and
            val in the ratio of their fractions.

    Returns:
        ``train``, ``val`` or ``test`` for each row, indexed as ``table``. No split is empty.

    Raises:
        ManifestError: on fewer groups than splits, unknown ``test_groups``, or bad fractions.
    """
    _check_fractions(fractions)
    if len(fractions) != len(SPLITS):
        raise ManifestError(f"{len(fractions)} split fractions", hint="give three: train, val and test")
    groups, row_group, counts = _group_counts(table)
    if test_groups is None:
        _need(len(groups), 3)
        return _per_row(table, row_group, np.array(SPLITS)[_balance(counts, fractions, seed)])

    test_groups = set(test_groups)
    unknown = sorted(test_groups - set(groups))
    if unknown or not test_groups:
        listed = ", ".join(unknown[:10]) or "none given"
        raise ManifestError(
            f"test groups with no used image: {listed}", hint=f"the groups are, e.g., {', '.join(groups[:5])}"
        )
    names = np.full(len(table), "test", dtype=object)
    rest = ~table["group_id"].isin(test_groups).to_numpy()
    _need(table["group_id"][rest].nunique(), 2, " outside the test patients")
    names[rest] = assign_validation(table[rest], fractions, seed)
    return pd.Series(names, index=table.index, dtype="str")


def assign_validation(
    table: pd.DataFrame, fractions: Sequence[float] = (0.70, 0.15, 0.15), seed: int = 42
) -> pd.Series:
    """Give every group to train or val, in the ratio of their ``fractions``; otherwise as ``assign_splits``.

    Raises:
        ManifestError: on fewer groups than two, or bad fractions.
    """
    _check_fractions(fractions)
    groups, row_group, counts = _group_counts(table)
    _need(len(groups), 2, " to take train and val from")
    learn = np.array(fractions[:2]) / sum(fractions[:2])
    return _per_row(table, row_group, np.array(SPLITS)[_balance(counts, learn, seed)])


def assign_folds(table: pd.DataFrame, k: int, seed: int = 42) -> pd.Series:
    """Give every group to one of ``k`` folds of equal size, by the same criterion.

    Returns:
        int 0..k-1 for each row, indexed as ``table``. No fold is empty.

    Raises:
        ManifestError: if ``k`` is below 2 or above the number of groups.
    """
    groups, row_group, counts = _group_counts(table)
    if k < 2:
        raise ManifestError(f"{k} folds", hint="cross-validation needs at least 2")
    _need(len(groups), k)
    return _per_row(table, row_group, _balance(counts, [1 / k] * k, seed))


def imbalance(
    table: pd.DataFrame, split: Sequence | np.ndarray, fractions: Sequence[float] = (0.70, 0.15, 0.15)
) -> float:
    """The criterion J of this module; 0 is perfect balance.

    Args:
        table: as in ``assign_splits``.
        split: for each row of ``table``, in its order, train|val|test, or a fold 0..k-1.
        fractions: target share of train, val, test, or of each fold.
    """
    _check_fractions(fractions)
    groups, row_group, counts = _group_counts(table)
    split = np.asarray(split)
    names = SPLITS if _are_splits(split) else range(len(fractions))
    row_split = pd.Index(names).get_indexer(split)
    if (row_split < 0).any() or len(names) != len(fractions):
        raise ValueError("split must name train, val or test, or a fold below len(fractions), in every row")
    which = np.zeros(len(groups), dtype=int)
    which[row_group] = row_split
    if (which[row_group] != row_split).any():
        raise ValueError("split divides a group")
    vectors, targets = _scaled(counts, fractions)
    sums = np.array([vectors[which == s].sum(axis=0) for s in range(len(fractions))])
    return float((((sums - targets) ** 2).sum(axis=1) / np.asarray(fractions)).sum())


def split_warnings(table: pd.DataFrame, split: Sequence | np.ndarray) -> list[str]:
    """Sentences about labels of the data set that a split (or fold) with images has no image of."""
    split = np.asarray(split)
    labels = table["label"].to_numpy()
    names = SPLITS if _are_splits(split) else range(int(max(split, default=-1)) + 1)
    places = [place for place in names if (split == place).any()]
    warnings = []
    for label in LABELS:
        with_label = labels == label
        owners = {p: table["group_id"][with_label & (split == p)].nunique() for p in places}
        count = sum(owners.values())
        have = f"only {counted(count, 'group')} {'has' if count == 1 else 'have'} one"
        if count >= len(places):
            have = "they lie in " + ", ".join(
                f"{_place(p)} ({counted(n, 'group')})" for p, n in owners.items() if n
            )
        missing = [place for place, number in owners.items() if count and not number]
        warnings += [f"no {label} image in {_place(place)}: {have}" for place in missing]
    return warnings


def _place(place: str | int) -> str:
    return str(place) if place in SPLITS else f"fold {place}"


def _are_splits(split: np.ndarray) -> bool:
    """Whether these are names of splits rather than numbers of folds."""
    return len(split) > 0 and isinstance(split[0], str)


def _check_fractions(fractions: Sequence[float]) -> None:
    values = np.asarray(fractions, dtype=float)
    if not (np.isfinite(values).all() and (values > 0).all() and abs(values.sum() - 1) < 1e-6):
        given = ", ".join(f"{value:g}" for value in values)
        raise ManifestError(
            f"split fractions {given}", hint="they must be above 0 and sum to 1, e.g. 0.7 0.15 0.15"
        )


def _need(groups: int, least: int, where: str = "") -> None:
    if groups < least:
        raise ManifestError(
            f"{groups} {'patient (group)' if groups == 1 else 'patients (groups)'} with used images{where}; "
            f"at least {least} are needed",
            hint="a patient is never divided: add patients, or ask for less: --split test (all of it tests models that "
            "are trained on other data), fewer --folds",
        )


def _group_counts(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sorted group ids (G,), the group of each row (N,), and image counts int (G, labels)."""
    label = pd.Index(LABELS).get_indexer(table["label"])
    if (label < 0).any():
        raise ValueError(f"label must be one of {', '.join(LABELS)}")
    groups, row_group = np.unique(table["group_id"].to_numpy(dtype=object), return_inverse=True)
    cells = np.bincount(row_group * len(LABELS) + label, minlength=len(groups) * len(LABELS))
    return groups, row_group, cells.reshape(len(groups), len(LABELS))


def _per_row(table: pd.DataFrame, row_group: np.ndarray, values: np.ndarray) -> pd.Series:
    text = values.dtype.kind not in "iu"
    return pd.Series(values[row_group], index=table.index, dtype="str" if text else "int64")


def _scaled(counts: np.ndarray, fractions: Sequence[float] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Vectors (G, C) and targets (K, C) such that J = sum_s |sum of vectors in s - target_s|^2 / f_s."""
    worst = counts.shape[1] - 1 - np.argmax(counts[:, ::-1] > 0, axis=1)
    ones = np.ones((len(counts), 1))
    columns = np.hstack([counts.sum(axis=1, keepdims=True), counts, ones, np.eye(counts.shape[1])[worst]])
    weights = np.repeat([1.0, _GROUP_WEIGHT], columns.shape[1] // 2)
    totals = columns.sum(axis=0)
    present = totals > 0
    vectors = columns[:, present] / totals[present] * np.sqrt(weights[present])
    return vectors, np.outer(fractions, np.sqrt(weights[present]))


def _balance(counts: np.ndarray, shares: Sequence[float] | np.ndarray, seed: int) -> np.ndarray:
    """Split index 0..K-1 of each group: the best of several seeded local searches."""
    if not 0 <= seed < 2**32:
        raise ManifestError(f"seed {seed}", hint="give a seed from 0 to 4294967295")
    fractions = np.asarray(shares, dtype=float)
    vectors, targets = _scaled(counts, fractions)
    # RandomState's stream is frozen (NEP 19), Generator's may change with numpy: a split must not.
    random = np.random.RandomState(seed)
    starts = 8 if len(counts) <= 2000 else 1
    found = [_search(vectors, targets, fractions, random) for _ in range(starts)]
    return min(found, key=lambda one: one[1])[0]


def _search(
    vectors: np.ndarray, targets: np.ndarray, fractions: np.ndarray, random: np.random.RandomState
) -> tuple[np.ndarray, float]:
    """One start: deal the groups out, then moves and swaps. Returns split of each group, and J."""
    which, excess = _deal(vectors, targets, fractions, random)
    size = np.bincount(which, minlength=len(fractions))
    groups = np.arange(len(vectors))
    norms = sum(column * column for column in vectors.T)[:, None]
    for _ in range(_STEPS):
        # Change of J when each group leaves its split, (G,), and when it enters each split, (G, K).
        products = _products(vectors, excess)
        leave = ((norms - 2 * products) / fractions)[groups, which]
        enter = (norms + 2 * products) / fractions
        moves = leave[:, None] + enter
        moves[groups, which] = np.inf
        # No split is left empty.
        moves[size[which] == 1] = np.inf
        group, target = map(int, np.unravel_index(_first_smallest(moves), moves.shape))
        gain, chosen = moves[group, target], [(group, target)]

        members = [np.flatnonzero(which == s) for s in range(len(fractions))]
        members = [
            m if len(m) <= _SWAPS else np.sort(random.choice(m, _SWAPS, replace=False)) for m in members
        ]
        for s in range(len(fractions)):
            for t in range(s + 1, len(fractions)):
                mine, theirs = members[s], members[t]
                # Both moves at once; they interact through the product of the two vectors.
                swaps = (leave[mine] + enter[mine, t])[:, None] + leave[theirs] + enter[theirs, s]
                swaps -= 2 * (1 / fractions[s] + 1 / fractions[t]) * _products(vectors[mine], vectors[theirs])
                i, j = np.unravel_index(_first_smallest(swaps), swaps.shape)
                if swaps[i, j] < gain - 1e-12:
                    gain, chosen = swaps[i, j], [(int(mine[i]), t), (int(theirs[j]), s)]
        if gain > -1e-10:
            break
        for group, target in chosen:
            excess[which[group]] -= vectors[group]
            excess[target] += vectors[group]
            size[which[group]] -= 1
            size[target] += 1
            which[group] = target
    return which, float(((excess**2).sum(axis=1) / fractions).sum())


def _deal(
    vectors: np.ndarray, targets: np.ndarray, fractions: np.ndarray, random: np.random.RandomState
) -> tuple[np.ndarray, np.ndarray]:
    """Each group in random order to the split where it lowers J most. Returns splits, sums - targets."""
    order = random.permutation(len(vectors))
    which = np.zeros(len(vectors), dtype=int)
    excess = -targets
    size = np.zeros(len(fractions), dtype=int)
    for position, group in enumerate(order):
        vector = vectors[group]
        change = (2 * excess @ vector + vector @ vector) / fractions
        if (size == 0).sum() >= len(order) - position:
            # The last groups go where there is none yet.
            change[size > 0] = np.inf
        split = _first_smallest(change)
        which[group] = split
        excess[split] += vector
        size[split] += 1
    return which, excess


# Sums are taken in a fixed order and rounded numbers are compared, because BLAS libraries differ in the last bit:
# so the split is the same on every machine.


def _first_smallest(values: np.ndarray) -> int:
    return int(np.argmin(np.round(values, 11)))


def _products(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """All products: (G, C), (H, C) -> (G, H)."""
    return sum(a[:, c, None] * b[None, :, c] for c in range(a.shape[1]))
