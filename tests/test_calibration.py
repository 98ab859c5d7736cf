"""Calibration: fitted on the validation split and nothing else, right where the answer is known, harmless to outlines."""

import inspect
import json
import math
import shutil
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import invoke, settings_options
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize
from sklearn import metrics as sk

from bus_smp.data.examples import ExampleReader
from bus_smp.data.manifest import Manifest, read_manifest
from bus_smp.errors import EvaluationError
from bus_smp.evaluation.calibration import (
    LEAST_TEMPERATURE,
    MOST_TEMPERATURE,
    calibrate,
    fit_temperature,
    fit_thresholds,
    negative_log_likelihood,
    score_row,
)
from bus_smp.evaluation.score_images import score_images
from bus_smp.inference.predictor import NetworkPredictor, Prediction, load_predictor
from bus_smp.measures.overlap import PIXEL_COLUMNS
from bus_smp.model.checkpoint import read_header, weights_sha256, write_checkpoint
from bus_smp.runs.describe import calibration_warnings
from bus_smp.system.engine import make_engine


def _labelled(temperature, seed=0, count=40_000):
    """Logits, and classes drawn with the probabilities that softmax(logits / temperature) gives."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, (count, 3)).astype(np.float32)
    scaled = np.exp(logits / temperature)
    drawn = (rng.random((count, 1)) > np.cumsum(scaled / scaled.sum(axis=1, keepdims=True), axis=1)).sum(
        axis=1
    )
    return logits, np.minimum(drawn, 2).astype(np.uint8)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 5.0])
def test_the_temperature_that_made_the_labels_is_found(temperature):
    logits, truth = _labelled(temperature)
    assert fit_temperature(logits, truth) == pytest.approx(temperature, rel=0.04)


def test_the_temperature_has_the_least_negative_log_likelihood():
    logits, truth = _labelled(1.7, seed=1, count=2000)
    best = optimize.minimize_scalar(
        lambda t: negative_log_likelihood(logits, truth, t), bounds=(0.1, 10), method="bounded"
    )
    assert fit_temperature(logits, truth) == pytest.approx(best.x, rel=1e-3)
    exact = sk.log_loss(truth, _softmax(logits / 1.3), labels=[0, 1, 2])
    assert negative_log_likelihood(logits, truth, 1.3) == pytest.approx(exact, rel=1e-5)


def _softmax(logits):
    powers = np.exp(logits.astype(float))
    return powers / powers.sum(axis=1, keepdims=True)


def test_logits_without_a_best_temperature_stay_within_the_limits():
    always_right = np.float32([[9, 0, 0], [0, 9, 0]])
    assert fit_temperature(always_right, np.array([0, 1])) == pytest.approx(LEAST_TEMPERATURE)
    assert fit_temperature(always_right, np.array([1, 0])) == pytest.approx(MOST_TEMPERATURE)
    assert fit_temperature(np.zeros((5, 3), np.float32), np.array([0, 1, 2, 0, 1])) == 1


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.9, 1.0]), st.booleans()), min_size=2))
def test_thresholds_are_the_best_by_brute_force(images):
    scores, malignant = np.array([s for s, _ in images]), np.array([m for _, m in images])
    found = fit_thresholds(scores, malignant)
    if malignant.all() or not malignant.any():
        assert found["threshold"] is None
        assert set(found["thresholds"].values()) == {None}
        assert "no image" in found["reason"]
        return
    assert found["reason"] == ""

    def rates(cut):
        called = scores >= cut
        return called[malignant].mean(), (~called[~malignant]).mean()

    cuts = [*sorted(set(scores)), 2.0]
    assert sum(rates(found["threshold"])) == pytest.approx(max(sum(rates(cut)) for cut in cuts))
    for name, least in (("specificity_90", 0.9), ("specificity_95", 0.95)):
        cut = found["thresholds"][name]
        assert rates(cut)[1] >= least
        lower = [c for c in cuts if c < cut]
        assert not lower or rates(max(lower))[1] < least, "a lower one would have kept the specificity too"


def test_of_equally_good_thresholds_the_one_that_overlooks_fewer_is_taken():
    scores, malignant = np.array([0.1, 0.2, 0.3, 0.4]), np.array([False, True, False, True])
    assert fit_thresholds(scores, malignant)["threshold"] == 0.2


def _prediction(score, size=4):
    grid = np.zeros((3, size, size), np.float32)
    grid[0] = 1
    grid[:, 1, 2] = 1 - score, 0, score
    return Prediction(grid, grid, grid.shape[1:])


def test_an_image_is_called_malignant_from_the_threshold_on_and_not_at_all_without_one():
    calibration = {"threshold": 0.5, "thresholds": {"specificity_90": 0.6, "specificity_95": None}}
    truth = np.zeros((4, 4), np.uint8)
    row = score_row(_prediction(0.5), truth, truth, calibration)
    assert (row["called_malignant"], row["called_malignant_90"]) == (1, 0)
    assert math.isnan(row["called_malignant_95"])
    assert row["call_confidence"] == pytest.approx(0, abs=1e-6)
    assert score_row(_prediction(0.9), truth, truth, calibration)["call_confidence"] == pytest.approx(
        math.log(9), 1e-4
    )
    without = score_row(_prediction(0.9), truth, truth, {})
    assert all(math.isnan(without[name]) for name in ("called_malignant", "call_confidence"))
    assert without["malignant_score"] == pytest.approx(0.9)


def test_nan_probabilities_are_refused():
    with pytest.raises(EvaluationError, match="NaN"):
        score_row(_prediction(math.nan), *[np.zeros((4, 4), np.uint8)] * 2, {})


# On a run


@pytest.fixture(scope="module")
def predictor(trained):
    return load_predictor(trained / "best.safetensors", make_engine("cpu", "fp32"))[0]


def _changed(manifest, of, **cells):
    frame = manifest.frame.copy()
    for column, value in cells.items():
        frame.loc[frame["split"] == of, column] = value
    return Manifest(frame, manifest.roots, manifest.about)


def test_nothing_but_the_validation_split_is_ever_looked_at(predictor, trained):
    """Files of the other splits are gone and their labels turned round: the result is the same."""
    manifest = read_manifest(trained / "manifest.csv")
    expected = calibrate(predictor, manifest)
    blind = manifest
    for split in ("train", "test"):
        blind = _changed(blind, split, image="gone.png", masks="gone.png", label="benign", sha256="0" * 64)
    assert calibrate(predictor, blind) == expected
    assert expected["images"] == len(manifest.used("val"))
    assert expected["fitted_on"] == "val"


def test_no_caller_can_hand_other_images_to_it(predictor, trained):
    """A reader reads the files of its own manifest only, and that of another manifest is refused."""
    assert inspect.get_annotations(calibrate, eval_str=True) == {
        "predictor": NetworkPredictor,
        "manifest": Manifest,
        "reader": ExampleReader | None,
        "return": dict[str, Any],
    }
    manifest = read_manifest(trained / "manifest.csv")
    other = read_manifest(trained / "manifest.csv")
    with pytest.raises(ValueError, match="no other"):
        calibrate(predictor, manifest, ExampleReader(other))


def test_an_empty_validation_split_is_refused(predictor, trained):
    manifest = read_manifest(trained / "manifest.csv")
    with pytest.raises(EvaluationError, match="validation split is empty"):
        calibrate(predictor, _changed(manifest, "val", split="train"))


def test_a_finished_run_carries_its_calibration_and_lower_likelihood_loss(trained):
    calibration = read_header(trained / "best.safetensors")["calibration"]
    assert calibration["nll_after"] <= calibration["nll_before"]
    assert LEAST_TEMPERATURE <= calibration["temperature"] <= MOST_TEMPERATURE
    assert 0 <= calibration["threshold"] <= 1.01


def test_brier_scores_before_and_after_are_those_of_the_validation_images(predictor, trained):
    calibration = read_header(trained / "best.safetensors")["calibration"]
    manifest = read_manifest(trained / "manifest.csv")
    scaled = predictor.at_temperature(calibration["temperature"])
    table = score_images(scaled, manifest, manifest.used("val")).model
    malignant = table["label"] == "malignant"
    for key, column in (("brier_before", "malignant_score_raw"), ("brier_after", "malignant_score")):
        assert calibration[key] == pytest.approx(((table[column] - malignant) ** 2).mean(), abs=2e-3)


@pytest.mark.parametrize(
    ("calibration", "said"),
    [
        ({"temperature": 20.0}, ["at its bound (20)"]),
        ({"temperature": 0.05}, ["at its bound (0.05)"]),
        ({"temperature": 1.2, "image": {"temperature": 20.0}}, ["of the image head is at its bound (20)"]),
        ({"temperature": 1.2, "brier_before": 0.2, "brier_after": 0.3}, ["worse on the validation images"]),
        ({"temperature": 1.2, "brier_before": 0.3, "brier_after": 0.2}, []),
        ({"temperature": 1.2}, []),
        ({}, []),
    ],
)
def test_a_calibration_that_did_not_help_is_a_warning(calibration, said):
    warnings = calibration_warnings(calibration)
    assert len(warnings) == len(said)
    assert all(words in warning for words, warning in zip(said, warnings, strict=True))


def test_temperature_moves_scores_and_no_outline(predictor, trained):
    manifest = read_manifest(trained / "manifest.csv")
    rows = manifest.used("val").head(6)
    plain = score_images(predictor.at_temperature(1.0), manifest, rows).model
    hot = score_images(predictor.at_temperature(4.0), manifest, rows).model
    pd.testing.assert_frame_equal(plain[list(PIXEL_COLUMNS)], hot[list(PIXEL_COLUMNS)])
    pd.testing.assert_series_equal(plain["malignant_score_raw"], hot["malignant_score_raw"])
    assert (plain["malignant_score"] != hot["malignant_score"]).all()
    assert (plain["malignant_score"] == plain["malignant_score_raw"]).all()


def test_a_run_finished_without_calibration_gets_it_by_the_same_command(manifests, trained, tmp_path):
    run = shutil.copytree(trained, tmp_path / "first")
    best = run / "best.safetensors"
    before, weights = best.read_bytes(), weights_sha256(best)
    predictor, header = load_predictor(best, make_engine("cpu", "fp32"))
    stripped = {key: value for key, value in header.items() if key not in ("calibration", "sha256")}
    write_checkpoint(best, predictor.network.model, stripped)
    assert "calibration" not in read_header(best)

    root = ("--root", read_manifest(trained / "manifest.csv").roots["bus-uclm"])
    result = invoke("evaluate", "--out", tmp_path, "--run", "first", "--json", *root)
    assert result.exit_code == 0, result.stderr
    summary = json.loads(result.stdout)
    assert any("not calibrated" in warning for warning in summary["warnings"])
    assert summary["summaries"]["model"]["rates"]["called_sensitivity"]["mean"] is None

    result = invoke("train", "--out", tmp_path, "--run", "first", *root, *settings_options(manifests))
    assert result.exit_code == 0, result.stderr
    assert best.read_bytes() == before
    assert weights_sha256(best) == weights
