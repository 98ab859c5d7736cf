"""Splits: whole groups, near the best balance there is, and a function of nothing but the groups."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bus_smp.classes import LABELS
from bus_smp.data.splits import assign_folds, assign_splits, imbalance, split_warnings
from bus_smp.errors import ManifestError

SPLITS = ("train", "val", "test")
FRACTIONS = (0.70, 0.15, 0.15)


def table_of(*groups):
    """One row per image of groups given as (id, normal, benign, malignant) counts."""
    rows = [
        (g, label) for g, *counts in groups for label, n in zip(LABELS, counts, strict=True) for _ in range(n)
    ]
    return pd.DataFrame(rows, columns=["group_id", "label"])


def thirty_seven_patients():
    """Like BUS-UCLM: 37 groups, 16 with a malignant image (5 of them a benign one too), 19 benign, 2 normal."""
    groups = []
    for i in range(37):
        normal = 2 + i * i % 23
        benign = 2 + i * 5 % 12 if 11 <= i < 35 else 0
        malignant = 1 + i * 3 % 10 if i < 16 else 0
        groups.append((f"bus-uclm:{i:03d}", normal, benign, malignant))
    return table_of(*groups)


PATIENTS = thirty_seven_patients()


def random_split(table, random):
    """A split of whole groups with the right numbers of groups, otherwise by chance."""
    groups, row_group = np.unique(table["group_id"].to_numpy(dtype=object), return_inverse=True)
    sizes = np.round(np.cumsum(FRACTIONS)[:2] * len(groups)).astype(int)
    names = np.empty(len(groups), dtype=object)
    for name, part in zip(SPLITS, np.split(random.permutation(len(groups)), sizes), strict=True):
        names[part] = name
    return names[row_group]


def deviation(table, split):
    """A second, independent criterion: the largest distance, over splits, of the share of images from its
    target and of a label's share in the split from its share in the whole."""
    split, label = np.asarray(split, dtype=object), table["label"].to_numpy(dtype=object)
    worst = 0.0
    for name, fraction in zip(SPLITS, FRACTIONS, strict=True):
        part = label[split == name]
        shares = [(part == one).mean() - (label == one).mean() for one in LABELS]
        worst = max(worst, abs(len(part) / len(label) - fraction), np.abs(shares).max())
    return worst


def test_the_split_is_better_balanced_than_the_best_of_a_thousand_random_ones():
    random = np.random.default_rng(1)
    by_chance = [random_split(PATIENTS, random) for _ in range(1000)]
    for criterion in (imbalance, deviation):
        best = min(criterion(PATIENTS, split) for split in by_chance)
        assert criterion(PATIENTS, assign_splits(PATIENTS)) < best


def test_thirty_seven_patients_give_splits_within_two_images_of_every_target():
    split = assign_splits(PATIENTS)
    for columns in [PATIENTS, *(PATIENTS[PATIENTS["label"] == label] for label in LABELS)]:
        counts = split[columns.index].value_counts()
        for name, fraction in zip(SPLITS, FRACTIONS, strict=True):
            assert abs(counts[name] - fraction * len(columns)) <= 2
    patients = PATIENTS.groupby(split)["group_id"].nunique()
    assert abs(patients["train"] - 0.7 * 37) <= 2
    assert split_warnings(PATIENTS, split) == []


def test_the_criterion_is_what_its_formula_says():
    table = table_of(("a", 2, 0, 0), ("b", 1, 1, 0), ("c", 0, 0, 4), ("d", 0, 2, 0))
    split = np.array(["train"] * 2 + ["train"] * 2 + ["val"] * 4 + ["test"] * 2)
    fractions = (0.5, 0.25, 0.25)
    expected = 0.0
    received = {  # column: (weight, counts in train, val, test)
        "images": (1, 4, 4, 2), "normal": (1, 3, 0, 0), "benign": (1, 1, 0, 2), "malignant": (1, 0, 4, 0),
        "groups": (0.25, 2, 1, 1), "normal groups": (0.25, 1, 0, 0), "benign groups": (0.25, 1, 0, 1),
        "malignant groups": (0.25, 0, 1, 0),
    }  # fmt: skip
    for weight, *counts in received.values():
        total = sum(counts)
        for count, fraction in zip(counts, fractions, strict=True):
            expected += weight * (count - fraction * total) ** 2 / (fraction * total**2)
    assert imbalance(table, split, fractions) == pytest.approx(expected)


def test_a_perfect_split_has_no_imbalance_and_is_found():
    table = table_of(*((f"g{i}", 1, 2, 1) for i in range(20)))
    split = assign_splits(table)
    assert imbalance(table, split) == pytest.approx(0, abs=1e-12)


def test_neither_row_order_nor_index_matter():
    expected = dict(zip(PATIENTS["group_id"], assign_splits(PATIENTS), strict=True))
    folds = dict(zip(PATIENTS["group_id"], assign_folds(PATIENTS, 5), strict=True))
    for seed in range(5):
        shuffled = PATIENTS.sample(frac=1, random_state=seed, ignore_index=seed % 2 == 0)
        split = assign_splits(shuffled)
        assert split.index.equals(shuffled.index)
        assert dict(zip(shuffled["group_id"], split, strict=True)) == expected
        assert dict(zip(shuffled["group_id"], assign_folds(shuffled, 5), strict=True)) == folds


def test_the_split_is_the_same_on_every_machine_and_in_every_version():
    # Frozen: whoever changes the search changes everyone's test patients, and should know it.
    split = assign_splits(PATIENTS)
    test = sorted(PATIENTS.loc[split == "test", "group_id"].str[-3:].unique())
    assert test == ["002", "015", "017", "018", "033"]


def test_seeds_give_different_splits_of_similar_balance():
    splits = [assign_splits(PATIENTS, seed=seed) for seed in range(12)]
    tests = {frozenset(PATIENTS.loc[split == "test", "group_id"]) for split in splits}
    assert len(tests) >= 8
    random = np.random.default_rng(2)
    best = min(imbalance(PATIENTS, random_split(PATIENTS, random)) for _ in range(300))
    assert max(imbalance(PATIENTS, split) for split in splits) < best


counts = st.tuples(st.integers(0, 6), st.integers(0, 6), st.integers(0, 6)).filter(any)


@settings(max_examples=40, deadline=None)
@given(
    groups=st.lists(counts, min_size=3, max_size=25),
    shares=st.tuples(st.integers(1, 20), st.integers(1, 20), st.integers(1, 20)),
    seed=st.integers(0, 2**32 - 1),
    k=st.integers(2, 6),
)
def test_every_group_is_whole_and_every_split_and_fold_has_one(groups, shares, seed, k):
    table = table_of(*((f"g{i}", *n) for i, n in enumerate(groups)))
    split = assign_splits(table, np.array(shares) / sum(shares), seed)
    assert set(split) == set(SPLITS)
    assert (split.groupby(table["group_id"]).nunique() == 1).all()
    if k <= len(groups):
        fold = assign_folds(table, k, seed)
        assert set(fold) == set(range(k))
        assert (fold.groupby(table["group_id"]).nunique() == 1).all()
        assert fold.dtype == "int64"


def test_every_split_has_a_patient_even_where_one_outweighs_all():
    table = table_of(("a", 0, 0, 100), ("b", 1, 0, 0), ("c", 0, 1, 0))
    assert sorted(assign_splits(table, (0.98, 0.01, 0.01)).groupby(table["group_id"]).first()) == sorted(
        SPLITS
    )


def test_given_test_groups_are_the_test_split_and_the_rest_is_divided_in_ratio():
    chosen = {"bus-uclm:003", "bus-uclm:017", "bus-uclm:030"}
    split = assign_splits(PATIENTS, test_groups=chosen)
    assert set(PATIENTS.loc[split == "test", "group_id"]) == chosen
    rest = split[split != "test"]
    assert (rest == "val").mean() == pytest.approx(0.15 / 0.85, abs=0.01)
    assert split_warnings(PATIENTS, split) == []


def test_folds_are_as_balanced_as_splits():
    fold = assign_folds(PATIENTS, 5)
    sizes = fold.value_counts()
    assert sizes.max() - sizes.min() <= 4
    order = np.random.default_rng(0)
    groups, row_group = np.unique(PATIENTS["group_id"].to_numpy(dtype=object), return_inverse=True)
    by_chance = [order.permutation(np.arange(len(groups)) % 5)[row_group] for _ in range(300)]
    fifths = [0.2] * 5
    assert imbalance(PATIENTS, fold, fifths) < min(imbalance(PATIENTS, f, fifths) for f in by_chance)


def test_many_groups_are_dealt_out_and_balanced_too():
    random = np.random.default_rng(3)
    owner = np.repeat(np.arange(3000), random.integers(1, 8, 3000))
    table = pd.DataFrame({"group_id": owner.astype(str), "label": random.choice(LABELS, len(owner))})
    assert imbalance(table, assign_splits(table)) < 1e-4


def test_a_label_of_too_few_patients_is_a_warning_and_no_error():
    table = table_of(*((f"g{i}", 2, 1, 0) for i in range(10)), ("m", 0, 0, 3))
    split = assign_splits(table)
    home = split[table["group_id"] == "m"].iloc[0]
    expected = [f"no malignant image in {s}: only 1 group has one" for s in SPLITS if s != home]
    assert split_warnings(table, split) == expected
    folds = assign_folds(table, 2)
    assert split_warnings(table, folds) == [
        f"no malignant image in fold {1 - folds[table['group_id'] == 'm'].iloc[0]}: only 1 group has one"
    ]


TWO = table_of(("a", 1, 0, 0), ("b", 0, 1, 0))


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda: assign_splits(TWO), "2 patients .* at least 3 are needed"),
        (lambda: assign_splits(TWO.iloc[:0]), "0 patients .* at least 3 are needed"),
        (
            lambda: assign_splits(TWO, test_groups=["a"]),
            "1 patient .* outside the test patients; at least 2",
        ),
        (lambda: assign_splits(PATIENTS, test_groups=["nobody"]), "no used image: nobody"),
        (lambda: assign_splits(PATIENTS, test_groups=[]), "none given"),
        (lambda: assign_splits(PATIENTS, (0.7, 0.2, 0.2)), "sum to 1"),
        (lambda: assign_splits(PATIENTS, (1.0, 0.5, -0.5)), "above 0"),
        (lambda: assign_splits(PATIENTS, (0.5, 0.5)), "give three"),
        (lambda: assign_splits(PATIENTS, (0.5, 0.5, float("nan"))), "sum to 1"),
        (lambda: assign_splits(PATIENTS, seed=-1), "seed -1"),
        (lambda: assign_folds(TWO, 3), "at least 3 are needed"),
        (lambda: assign_folds(TWO, 1), "at least 2"),
    ],
)
def test_what_cannot_be_split_is_an_error_that_says_what_to_do(call, expected):
    with pytest.raises(ManifestError, match=expected) as caught:
        call()
    assert caught.value.hint


def test_imbalance_refuses_a_split_that_divides_a_group():
    with pytest.raises(ValueError, match="divides"):
        imbalance(table_of(("a", 3, 0, 0)), ["train", "val", "test"])
    with pytest.raises(ValueError, match="train, val or test"):
        imbalance(TWO, ["train", "valid"])
