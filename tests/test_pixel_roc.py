"""Pixel ROC: as exact as scikit-learn's over all pixels, in memory that does not grow."""

import io
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sk

from bus_smp.errors import EvaluationError
from bus_smp.measures.overlap import TARGETS
from bus_smp.measures.pixel_roc import PixelHistograms


def _probabilities(seed, shape=(40, 50)):
    random = np.random.default_rng(seed)
    truth = random.integers(0, 3, shape).astype(np.uint8)
    logits = random.normal(size=(3, *shape))
    np.put_along_axis(
        logits, truth[None].astype(int), 1 + np.take_along_axis(logits, truth[None].astype(int), 0), 0
    )
    probabilities = np.exp(logits)
    return truth, (probabilities / probabilities.sum(axis=0)).astype(np.float32)


def _scores(probabilities):
    return {"lesion": 1 - probabilities[0], "benign": probabilities[1], "malignant": probabilities[2]}


@pytest.mark.parametrize("target", TARGETS)
def test_pixel_auc_agrees_with_scikit_learn(target):
    truth, probabilities = _probabilities(0)
    histograms = PixelHistograms(1000)
    histograms.update(truth, probabilities)
    fpr, tpr, auc = histograms.roc(target)
    true, score = np.isin(truth, TARGETS[target]).reshape(-1), _scores(probabilities)[target].reshape(-1)
    assert auc == pytest.approx(sk.roc_auc_score(true, score), abs=5e-4)
    assert len(fpr) == len(tpr) == 1001
    assert (fpr[0], tpr[0], fpr[-1], tpr[-1]) == (0, 0, 1, 1)


def test_the_curve_of_a_network_that_is_sure_of_itself_is_as_exact():
    """Most pixels below .001, as trained networks give them: equal steps of probability put them in one bin."""
    rng = np.random.default_rng(0)
    truth = (rng.random((200, 200)) < 0.1).astype(int) * 2
    odds = rng.normal(-11, 2, truth.shape) + 2.5 * (truth == 2)
    malignant = 1 / (1 + np.exp(-odds))
    probabilities = np.stack([1 - malignant, np.zeros_like(malignant), malignant]).astype(np.float32)
    histograms = PixelHistograms()
    histograms.update(truth, probabilities)
    exact = sk.roc_auc_score((truth == 2).reshape(-1), malignant.reshape(-1))
    assert histograms.roc("malignant")[2] == pytest.approx(exact, abs=1e-4)
    assert histograms.roc("lesion")[2] == pytest.approx(exact, abs=1e-4)


def test_histograms_of_parts_add_up_and_survive_being_stored_as_csv():
    whole, first, second = PixelHistograms(50), PixelHistograms(50), PixelHistograms(50)
    for seed in range(4):
        truth, probabilities = _probabilities(seed, (5 + seed, 7))
        whole.update(truth, probabilities)
        (first if seed < 2 else second).update(truth, probabilities)
    assert np.array_equal((first + second).counts, whole.counts)
    stored = pd.read_csv(io.StringIO(whole.to_frame().to_csv(index=False))).sample(frac=1, random_state=0)
    assert np.array_equal(PixelHistograms.from_frame(stored).counts, whole.counts)
    with pytest.raises(EvaluationError, match="bins"):
        first + PixelHistograms(20)
    with pytest.raises(EvaluationError, match="table"):
        PixelHistograms.from_frame(stored.iloc[1:])


def test_auc_is_undefined_where_one_kind_of_pixel_is_absent():
    histograms = PixelHistograms(10)
    assert math.isnan(histograms.roc("lesion")[2])
    _, probabilities = _probabilities(0, (4, 4))
    histograms.update(np.ones((4, 4), int), probabilities)
    assert all(math.isnan(histograms.roc(target)[2]) for target in TARGETS)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1.5, -0.5])
def test_probabilities_that_are_none_are_refused_and_change_nothing(bad):
    truth, probabilities = _probabilities(0, (4, 4))
    probabilities[1, 2, 3] = bad
    histograms = PixelHistograms(10)
    with pytest.raises(EvaluationError, match="NaN or outside"):
        histograms.update(truth, probabilities)
    assert histograms.counts.sum() == 0


def test_probabilities_of_another_size_are_refused():
    truth, probabilities = _probabilities(0, (4, 5))
    with pytest.raises(EvaluationError, match="shape"):
        PixelHistograms(10).update(truth.T, probabilities)


def test_certain_and_slightly_overshooting_probabilities_fall_into_the_outer_bins():
    histograms = PixelHistograms(10)
    histograms.update(np.array([[0, 2]]), np.array([[[1.0005, 0]], [[0, -0.0005]], [[-0.0005, 1.0005]]]))
    assert histograms.counts[2, 0, 0] == 1
    assert histograms.counts[2, 2, 9] == 1


@given(st.lists(st.floats(0, 1, width=32), min_size=2, max_size=50))
def test_the_more_probable_pixel_is_never_in_the_lower_bin(scores):
    """Bins keep the order of the probabilities, so a curve can only lose ties, never turn round."""
    scores = np.sort(np.float32(scores))
    bins = []
    for score in scores:
        histograms = PixelHistograms(200)
        probabilities = np.float32([[[1 - score]], [[0]], [[score]]])
        histograms.update(np.array([[2]]), probabilities)
        bins.append(int(np.flatnonzero(histograms.counts[2, 2])[0]))
    assert bins == sorted(bins)


@pytest.mark.parametrize("score", [1e-6, 1e-3, 0.1, 0.4, 0.6, 0.9, 0.999, 0.999999])
def test_bins_are_equal_steps_of_the_log_odds(score):
    histograms = PixelHistograms(64)
    histograms.update(np.array([[2]]), np.float32([[[1 - score]], [[0]], [[score]]]))
    odds = np.log(np.float64(np.float32(score)) / (1 - np.float64(np.float32(score))))
    assert int(np.flatnonzero(histograms.counts[2, 2])[0]) == int((odds + 16) * 2)
