"""Intervals against plain loops, against scipy, and against samples whose truth is known."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import scipy.stats
from sklearn.metrics import roc_auc_score, roc_curve

from bus_smp.statistics.bootstrap import (
    Resampled,
    bootstrap,
    draw_groups,
    estimate,
    percentile_interval,
    rare_labels,
    tail,
)
from bus_smp.statistics.estimators import Auc, Ratio, SensitivityAt


def _images(seed, groups=8, images=40):
    """Groups of unequal size, ties in the scores, a value that is not always defined."""
    random = np.random.default_rng(seed)
    group = np.sort(np.r_[np.arange(groups), random.integers(0, groups, images - groups)])
    value = np.where(random.random(images) < 0.7, random.random(images), np.nan)
    lesions = random.integers(0, 3, images)
    positive = random.random(images) < 0.3
    score = np.round(random.random(images) + 0.3 * positive, 1)
    return group, value, lesions, random.binomial(lesions, 0.6), positive, score


def _estimators(value, lesions, hits, positive, score):
    return {
        "mean": Ratio.mean(value),
        "found": Ratio(hits.astype(float), lesions.astype(float)),
        "auc": Auc(score, positive, ~positive),
        "at": SensitivityAt(score, positive, ~positive, 0.9),
    }


def _by_definition(value, lesions, hits, positive, score):
    """The same four numbers as anyone would compute them, by scikit-learn where it has them."""
    numbers = [
        np.mean(value[~np.isnan(value)]) if (~np.isnan(value)).any() else np.nan,
        hits.sum() / lesions.sum() if lesions.sum() else np.nan,
    ]
    if len(set(positive)) < 2:
        return [*numbers, np.nan, np.nan]
    fpr, tpr, _ = roc_curve(positive, score, drop_intermediate=False)
    return [*numbers, roc_auc_score(positive, score), tpr[1 - fpr >= 0.9 - 1e-12].max()]


def test_every_draw_is_that_of_a_loop_over_the_images_of_the_drawn_groups():
    group, *columns = _images(0)
    stratum = np.zeros(8, int)
    found = bootstrap(_estimators(*columns), group, stratum, 200, seed=7)
    weights = draw_groups(stratum, 200, np.random.default_rng(7)).astype(int)
    assert (weights.sum(axis=1) == 8).all()
    undefined = 0
    for draw, times in enumerate(weights):
        drawn = np.repeat(np.arange(len(group)), times[group])
        expected = _by_definition(*(column[drawn] for column in columns))
        assert [one.drawn[draw] for one in found.values()] == pytest.approx(expected, nan_ok=True)
        undefined += np.isnan(expected).any()
    assert [one.point for one in found.values()] == pytest.approx(_by_definition(*columns))
    assert undefined < 20


def test_no_threshold_means_a_sensitivity_of_none_and_an_absent_kind_an_undefined_one():
    score = np.array([0.9, 0.9, 0.1])
    positive = np.array([True, False, False])
    all_at_once = {"at": SensitivityAt(score, positive, ~positive, 0.9)}
    assert bootstrap(all_at_once, np.arange(3), np.zeros(3, int), 0, 0)["at"].point == 0
    none = {
        "at": SensitivityAt(score, positive, np.zeros(3, bool), 0.9),
        "auc": Auc(score, positive, positive & False),
    }
    assert all(
        math.isnan(one.point) for one in bootstrap(none, np.arange(3), np.zeros(3, int), 0, 0).values()
    )


def _scipys(samples, statistic, method, drawn):
    """The interval that scipy makes of our draws."""
    options = {"method": method, "rng": np.random.default_rng(0)}
    own = scipy.stats.bootstrap(samples, statistic, n_resamples=9, **options)
    ours = dataclasses.replace(own, bootstrap_distribution=drawn)
    return scipy.stats.bootstrap(
        samples, statistic, n_resamples=0, bootstrap_result=ours, **options
    ).confidence_interval


def test_the_percentile_interval_is_that_of_scipy_where_every_image_is_a_group():
    sample = np.random.default_rng(4).gamma(1.5, size=30)
    ours = bootstrap({"mean": Ratio.mean(sample)}, np.arange(30), np.zeros(30, int), 3000, seed=1)["mean"]
    assert percentile_interval(ours.drawn, 0.025) == pytest.approx(
        _scipys((sample,), np.mean, "percentile", ours.drawn)
    )


def test_five_groups_are_drawn_in_all_126_ways_so_that_no_seed_matters():
    values = np.random.default_rng(3).random(12)
    group = np.array([0, 0, 1, 1, 1, 2, 3, 3, 3, 3, 4, 4])
    one, other = (
        bootstrap({"mean": Ratio.mean(values)}, group, np.zeros(5, int), 5000, seed)["mean"]
        for seed in (1, 2)
    )
    assert (one.drawn == other.drawn).all() and len(np.unique(one.drawn.round(12))) <= 126
    in_order = [
        np.concatenate([values[group == g] for g in draw]).mean()
        for draw in itertools.product(range(5), repeat=5)
    ]
    assert np.sort(one.drawn) == pytest.approx(np.sort(in_order), abs=1e-12)
    many = bootstrap({"mean": Ratio.mean(np.arange(7.0))}, np.arange(7), np.zeros(7, int), 5000, 0)["mean"]
    assert len(many.drawn) == 5000


def test_few_groups_widen_the_percentiles_as_students_t_does():
    def share(sizes, stratum=None):
        group = np.repeat(np.arange(len(sizes)), sizes)
        stratum = np.zeros(len(sizes), int) if stratum is None else stratum
        return tail((np.ones(len(group)),), group, stratum, 0.95)

    by_hand = scipy.stats.norm.cdf(-math.sqrt(10 / 9) * scipy.stats.t.ppf(0.975, 9))
    assert share([3] * 10) == pytest.approx(by_hand)
    assert share([1] * 100_000) == pytest.approx(0.025, rel=1e-3)
    assert share([1] * 5) < share([1] * 10) < share([1] * 100) < 0.025
    assert share([30, 1, 1, 1, 1, 1, 1, 1, 1, 1]) < share([1] * 5), "one patient has most of the images"
    assert share([1] * 10, np.repeat([0, 1], 5)) < share([1] * 10), "a stratum costs a degree of freedom"
    kinds = (np.ones(20), np.repeat([1.0, 0.0], [5, 15]))
    assert tail(kinds, np.arange(20), np.zeros(20, int), 0.95) == share([1] * 5), "the rarer kind decides"


def test_a_rare_label_has_its_share_in_every_draw():
    severity = np.repeat([0, 1, 2], [20, 12, 6])
    stratum, rare = rare_labels(severity, np.arange(38))
    assert rare == [2]
    assert stratum.tolist() == [0] * 32 + [1] * 6
    draws = draw_groups(stratum, 500, np.random.default_rng(0))
    assert (draws[:, stratum == 1].sum(axis=1) == 6).all()
    assert (draws.sum(axis=1) == 38).all()
    assert draws.std(axis=0).min() > 0.7, "every group varies"
    assert draws.mean(axis=0) == pytest.approx(np.ones(38), abs=0.2)


@pytest.mark.parametrize(
    ("groups", "rare"),
    [
        ([12, 12, 12], []),  # none is rare
        ([6, 6, 6], [0, 1, 2]),
        ([0, 30, 5], [2]),
        ([0, 30, 4], []),  # too few to vary by themselves
        ([0, 4, 7], []),  # the others would be too few
        ([0, 0, 7], []),  # nothing to tell it from
    ],
)
def test_only_a_stratum_that_can_vary_is_made(groups, rare):
    severity = np.repeat([0, 1, 2], groups)
    assert rare_labels(severity, np.arange(len(severity)))[1] == rare


def test_a_group_belongs_to_its_worst_label():
    severity = np.array([2, 0, 1, 0, *[0] * 12, *[1] * 6])
    group = np.array([0, 0, 1, 1, *range(2, 14), *range(14, 20)])
    stratum, rare = rare_labels(severity, group)
    assert rare == [1]
    assert stratum.tolist() == [0, 1, *[0] * 12, *[1] * 6]
    # benign is now the worst of 7 groups, and not rare: 12 malignant ones show it too
    severity[4:16] = 2
    severity, group = np.r_[severity, np.ones(12, int)], np.r_[group, np.arange(2, 14)]
    assert rare_labels(severity, group)[1] == []


def _estimate(drawn, kinds=None, point=0.5, **more):
    kinds = (np.ones(20),) if kinds is None else kinds
    found = Resampled(point, np.asarray(drawn, float))
    return estimate(found, kinds, np.arange(20), np.zeros(20, int), 0.95, 20, **more)


def test_where_no_honest_interval_exists_there_is_none_but_a_reason():
    fine = np.random.default_rng(0).random(1000)
    assert _estimate(fine)["low"] is not None
    few = _estimate(fine, (np.ones(20), np.repeat([1.0, 0.0], [4, 16])))
    assert few["no_interval"] == "no interval: only 4 groups"
    one = _estimate(fine, (np.repeat([1.0, 0.0], [1, 19]),))
    assert (one["no_interval"], one["n"], one["n_undefined"]) == ("no interval: only 1 group", 1, 19)
    lost = _estimate(np.where(fine < 0.2, np.nan, fine))
    assert "undefined in" in lost["no_interval"] and lost["undefined_draws"] == (fine < 0.2).sum()
    assert _estimate(np.where(fine < 0.05, np.nan, fine))["low"] is not None
    assert _estimate(np.full(1000, 0.5))["no_interval"] == "no interval: the same in every image"
    assert _estimate([])["no_interval"] == "no interval: no draws"
    assert _estimate(fine, unreliable="biased")["no_interval"] == "no interval: biased"
    for without in (few, one, lost):
        assert all(without[key] is None for key in ("low", "high"))


# Simulations: the truth is known; 25 patients have 1 to about 25 images each, and these resemble each other.


def _patients(random):
    size = 1 + random.negative_binomial(1.5, 0.25, 25)
    return np.repeat(np.arange(25), size), random.standard_normal(25)


def _mean(random):
    group, effect = _patients(random)
    return group, Ratio.mean(0.6 + 0.1 * effect[group] + 0.1 * random.standard_normal(len(group)))


def _rate(random):
    # a patient's own rate is the chance of a normal variable to be below the effect; over all patients it is 1/2
    group, effect = _patients(random)
    return group, Ratio.mean((random.standard_normal(len(group)) < effect[group]).astype(float))


def _auc(random):
    group, effect = _patients(random)
    positive = group < 12
    score = 1.5 * positive + 0.7 * effect[group] + 0.7 * random.standard_normal(len(group))
    return group, Auc(score, positive, ~positive)


TRUE_AUC = scipy.stats.norm.cdf(1.5 / math.sqrt(2 * (0.7**2 + 0.7**2)))


def _coverage(make, truth, samples, by_image=False):
    """Share of samples whose interval holds the truth."""
    covered = []
    for seed in range(samples):
        group, estimator = make(np.random.default_rng([seed, 2]))
        unit = np.arange(len(group)) if by_image else group
        stratum = np.zeros(int(unit.max()) + 1, int)
        found = bootstrap({"": estimator}, unit, stratum, 500, seed)[""]
        one = estimate(found, estimator.kinds, unit, stratum, 0.95, len(group))
        covered.append(one["low"] <= truth <= one["high"])
    return np.mean(covered)


@pytest.mark.parametrize(("make", "truth"), [(_mean, 0.6), (_rate, 0.5), (_auc, TRUE_AUC)])
def test_the_95_percent_interval_of_a_clustered_sample_holds_the_truth_in_95_percent_of_samples(make, truth):
    assert 0.93 <= _coverage(make, truth, 600) <= 0.97


@pytest.mark.parametrize(("make", "truth"), [(_mean, 0.6), (_rate, 0.5), (_auc, TRUE_AUC)])
def test_images_drawn_one_by_one_give_intervals_that_are_too_narrow(make, truth):
    assert _coverage(make, truth, 100, by_image=True) < 0.85
