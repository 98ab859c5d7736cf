"""Long tables: memory grows with the rows only, and one fault among many rows is found."""

import tracemalloc

import numpy as np
import pandas as pd
import pytest
from tables import random_table

from bus_smp.classes import LABELS
from bus_smp.data.manifest import COLUMNS, Manifest, check, manifest_hash, read_manifest, write_manifest
from bus_smp.data.manifest_checks import as_text
from bus_smp.data.splits import assign_folds, assign_splits
from bus_smp.statistics.bootstrap import bootstrap
from bus_smp.statistics.estimators import Auc, Ratio, SensitivityAt, Weighted
from bus_smp.statistics.summary import summarise


def _estimators(random, group, digits):
    images = len(group)
    scores = np.round(random.random(images), digits)
    positive = random.random(images) < random.random()
    negative = ~positive & (random.random(images) < 0.8)  # some are neither, as those without a score
    # many magnitudes, so that all less one would leave nothing but rounding
    values = np.where(random.random(images) < 0.3, np.nan, random.random(images) * 10.0 ** (9 * (group == 0)))
    some = group % 2 == 0
    return {
        "mean": Ratio.mean(values),
        "mean of some": Ratio.mean(values).within(some),
        "auc": Auc(scores, positive, negative),
        "auc of some": Auc(scores, positive, negative).within(some),
        "at 90": SensitivityAt(scores, positive, negative, 0.9),
        "at 100": SensitivityAt(scores, positive, negative, 1.0),
        "one kind in one group": Auc(scores, group == 0, group > 0),
        "absent": Auc(scores, positive & False, negative),
    }


def test_as_many_weightings_are_counted_as_there_are_draws_however_many_groups(monkeypatch):
    counted = []
    of = Weighted.of
    monkeypatch.setattr(
        Weighted, "of", lambda self, weights: counted.append(weights.shape) or of(self, weights)
    )
    random, groups = np.random.default_rng(0), 20_000
    estimators = _estimators(random, np.arange(groups), 9)
    found = bootstrap(estimators, np.arange(groups), np.zeros(groups, int), 40, seed=1)
    assert sum(rows for rows, _ in counted) == 40 + 1
    assert max(rows * width for rows, width in counted) <= 16 * groups, "never draws x groups"
    assert len(found["auc"].drawn) == 40 and np.ptp(found["auc"].drawn) > 0


def _peak(work):
    tracemalloc.start()
    try:
        result = work()
        return tracemalloc.get_traced_memory()[1], result
    finally:
        tracemalloc.stop()


def test_statistics_take_the_same_memory_an_image_and_none_for_more_draws():
    few = pd.concat([random_table(1000, 50, 0)] * 20, ignore_index=True)
    few = few.assign(
        image_id=few.index.astype(str), group_id=[f"p{index // 20}" for index in range(len(few))]
    )
    many = pd.concat([few.assign(dataset="made"), few.assign(dataset="other")], ignore_index=True)
    first, _ = _peak(lambda: summarise(few, draws=20))
    twice, _ = _peak(lambda: summarise(many, draws=20))
    drawn, _ = _peak(lambda: summarise(few, draws=120))
    assert first < 1600 * len(few)
    assert twice < 2.4 * first
    assert drawn < 1.1 * first + 120 * 8 * 400


def _frame(rows, groups):
    """A frame as ``make_manifests`` makes it; texts differ from row to row where real ones do."""
    random = np.random.default_rng(0)
    patient = random.integers(0, groups, rows)
    name = pd.Series([f"P{p:06d}_{i:07d}" for i, p in enumerate(patient)])
    sums = [random.bytes(32).hex() for _ in range(rows)]
    frame = pd.DataFrame(
        {
            "dataset": "made", "image_id": name, "patient_id": [f"P{p:06d}" for p in patient], "patient_known": True,
            "group_id": [f"made:P{p:06d}" for p in patient], "label": np.array(LABELS)[random.integers(0, 3, rows)],
            "split": "", "fold": pd.array([pd.NA] * rows, "Int64"), "image": "images/" + name + ".png",
            "masks": "masks/" + name + ".png|masks/" + name + "_1.png", "mask_format": "color", "width": 64,
            "height": 48, "sha256": sums, "phash": sums[::-1], "flags": "", "excluded": "",
        }
    )[list(COLUMNS)]  # fmt: skip
    frame["split"] = assign_splits(frame).astype(object)
    frame["fold"] = assign_folds(frame, 5).astype("Int64")
    return frame


@pytest.fixture(scope="module")
def long_frame():
    return _frame(5_000, 250)


def test_a_long_manifest_is_written_and_read_in_bounded_memory_and_comes_back_as_it_was(long_frame, tmp_path):
    """100,000 rows must fit in 2 GB, which is 20 kB a row."""
    path, rows = tmp_path / "made.csv", len(long_frame)
    shuffled = long_frame.sample(frac=1, random_state=0, ignore_index=True)
    written, _ = _peak(lambda: write_manifest(Manifest(shuffled, {"made": tmp_path}), path))
    read, manifest = _peak(lambda: read_manifest(path))
    assert max(written, read) < 5_000 * rows
    again = as_text(manifest.frame)
    assert again.equals(as_text(long_frame.sort_values("image_id", ignore_index=True)))
    assert manifest_hash(manifest.frame) == manifest_hash(shuffled)


def test_a_divided_group_or_picture_among_many_is_found_and_every_place_of_it_is_named(long_frame):
    frame = long_frame.copy()
    row = frame.index[frame["split"] == "train"][7]
    frame.loc[row, "split"] = "test"
    group, name = frame.loc[row, ["group_id", "image_id"]]
    (problem,) = check(frame)
    assert problem.startswith(f"group {group} is in 2 splits: test (made/{name}), train (made/P")
    frame = long_frame.copy()
    other = frame.index[frame["fold"] != frame.loc[row, "fold"]][0]
    frame.loc[other, "sha256"] = frame.loc[row, "sha256"]
    assert any("one picture (sha256)" in p and "is in 2 folds" in p and name in p for p in check(frame))
