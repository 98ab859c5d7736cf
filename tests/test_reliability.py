"""Brier score and reliability: against their formulas, streamed, and stored without loss."""

import io
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sk

from bus_smp.errors import EvaluationError
from bus_smp.measures.reliability import Reliability, brier_score


def _probabilities(seed, size=12):
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet((4, 1, 1), (size, size)).transpose(2, 0, 1).astype(np.float32)
    return rng.integers(0, 3, (size, size)).astype(np.uint8), probabilities


@given(st.integers(0, 1000))
def test_brier_score_is_its_formula_and_scikit_learns(seed):
    truth, probabilities = _probabilities(seed)
    one_hot = np.eye(3)[truth].transpose(2, 0, 1)
    assert brier_score(probabilities, truth) == pytest.approx(
        ((probabilities - one_hot) ** 2).sum(axis=0).mean(), abs=1e-6
    )
    two = probabilities.copy()
    two[0] += two[1]
    two[1] = 0
    binary = sk.brier_score_loss((truth == 2).reshape(-1), two[2].reshape(-1))
    assert brier_score(two, np.where(truth == 2, 2, 0).astype(np.uint8)) == pytest.approx(
        2 * binary, abs=1e-6
    )


def test_brier_score_is_0_for_right_and_sure_and_2_for_wrong_and_sure():
    truth = np.ones((3, 3), np.uint8)
    sure = np.zeros((3, 3, 3), np.float32)
    sure[1] = 1
    assert brier_score(sure, truth) == 0
    assert brier_score(sure, truth * 2) == 2


def _expected_error(truth, probability, bins):
    place = np.minimum((probability * bins).astype(int), bins - 1)
    gaps = [
        (place == b).mean() * abs((truth[place == b] > 0).mean() - probability[place == b].mean())
        for b in range(bins)
        if (place == b).any()
    ]
    return sum(gaps)


def test_the_calibration_error_is_its_formula_in_any_order_of_the_images():
    whole, first, second = Reliability(), Reliability(), Reliability()
    truths, scores = [], []
    for seed in range(6):
        truth, before = _probabilities(seed)
        _, after = _probabilities(seed + 100)
        whole.update(truth, before, after)
        (first if seed < 2 else second).update(truth, before, after)
        truths.append(truth.reshape(-1))
        scores.append(before[1:].sum(axis=0).reshape(-1))
    expected = _expected_error(np.concatenate(truths), np.concatenate(scores), 15)
    assert whole.error("before") == pytest.approx(expected, abs=1e-6)
    assert whole.error("before") != whole.error("after")
    np.testing.assert_allclose((first + second).counts, whole.counts)


def test_a_probability_that_is_kept_has_no_error():
    truth = np.zeros((10, 10), np.uint8)
    truth[:3] = 2
    probabilities = np.zeros((3, 10, 10), np.float32)
    probabilities[0], probabilities[2] = 0.7, 0.3
    reliability = Reliability()
    reliability.update(truth, probabilities, probabilities)
    assert reliability.error("after") == pytest.approx(0, abs=1e-6)


def test_the_table_survives_being_stored_and_others_are_refused():
    reliability = Reliability()
    assert math.isnan(reliability.error("before"))
    truth, probabilities = _probabilities(0)
    reliability.update(truth, probabilities, probabilities)
    stored = pd.read_csv(io.StringIO(reliability.to_frame().to_csv(index=False)))
    again = Reliability.from_frame(stored.sample(frac=1, random_state=0))
    np.testing.assert_allclose(again.counts, reliability.counts)
    with pytest.raises(EvaluationError, match="table of reliability"):
        Reliability.from_frame(stored.iloc[1:])
    with pytest.raises(EvaluationError, match="table of reliability"):
        Reliability.from_frame(stored.drop(columns="pixels"))
    with pytest.raises(EvaluationError, match="bins"):
        reliability + Reliability(10)
