"""The operating point: the best pair of thresholds by brute force, fitted on validation only, and what it leaves of a mask."""

import itertools
import json
import shutil

import numpy as np
import pytest
from conftest import invoke
from hypothesis import given, settings
from hypothesis import strategies as st

import bus_smp
from bus_smp.data.manifest import Manifest, read_manifest
from bus_smp.errors import CheckpointError, ConfigError
from bus_smp.evaluation.calibration import calibrate
from bus_smp.evaluation.operating_point import FoundLesions, fit_operating_point
from bus_smp.inference.predictor import Prediction, load_predictor
from bus_smp.measures.decision import DecisionRules, MarkedLesions
from bus_smp.model.checkpoint import read_header, weights_sha256, write_checkpoint
from bus_smp.system.engine import make_engine

_PROBABILITIES = st.sampled_from([0.4, 0.5, 0.75, 0.9, 1.0])
_SHARES = st.sampled_from([0.001, 0.01, 0.1])


@st.composite
def _images(draw):
    """One image: its lesions, and predicted lesions with the lesions that each one finds."""
    lesions = draw(st.integers(0, 2))
    marked = draw(
        st.lists(
            st.tuples(
                _PROBABILITIES, _SHARES, st.sets(st.integers(0, lesions - 1)) if lesions else st.just(set())
            ),
            max_size=3,
        )
    )
    pairs = [(lesion, place) for place, (_, _, finds) in enumerate(marked) for lesion in finds]
    return FoundLesions(
        lesions,
        np.array([peak for peak, _, _ in marked]),
        np.array([share for _, share, _ in marked]),
        np.array([lesion for lesion, _ in pairs], int),
        np.array([place for _, place in pairs], int),
    )


def _outcome(images, least_probability, least_area):
    """Lesions found, normal images with a kept lesion, and kept lesions that find nothing; counted one by one."""
    found = alarms = false = 0
    for one in images:
        kept = {
            place
            for place in range(len(one.peaks))
            if one.peaks[place] >= least_probability and one.shares[place] >= least_area
        }
        pairs = [
            (lesion, place)
            for lesion, place in zip(one.reference, one.candidate, strict=True)
            if place in kept
        ]
        found += len({lesion for lesion, _ in pairs})
        alarms += one.lesions == 0 and bool(kept)
        false += len(kept - set(one.candidate.tolist()))
    return found, alarms, false


@settings(max_examples=150)
@given(st.lists(_images(), max_size=30))
def test_no_other_pair_of_thresholds_is_better(images):
    point = fit_operating_point(images)
    lesions = sum(one.lesions for one in images)
    plain = _outcome(images, 0, 0)
    assert (point["lesions"], point["found_plain"], point["false_alarms_plain"]) == (lesions, *plain[:2])
    if not plain[0]:
        assert point["least_probability"] is point["least_area"] is None
        assert ("finds none of the" if lesions else "no image with a lesion") in point["reason"]
        return
    chosen = _outcome(images, point["least_probability"], point["least_area"])
    assert (point["found"], point["false_alarms"]) == chosen[:2]
    needed = min(plain[0], next(n for n in range(lesions + 1) if 100 * n >= 95 * lesions))
    assert chosen[0] >= needed
    areas = {0.0, *(one.shares[place] for one in images for place in one.candidate)}
    pairs = itertools.product([0, 0.4, 0.5, 0.75, 0.9, 1.0, 2], areas)
    possible = [(probability, area, *_outcome(images, probability, area)) for probability, area in pairs]
    possible = [(*one[3:], one[1]) for one in possible if one[2] >= needed]
    assert (*chosen[1:], point["least_area"]) == min(possible)
    everywhere = itertools.product([0, 0.4, 0.5, 0.75, 0.9, 1.0], [0, 0.001, 0.01, 0.1, 1])
    assert chosen[1:] <= min(
        one[1:] for one in (_outcome(images, *pair) for pair in everywhere) if one[0] >= needed
    )


def test_the_plain_mask_that_finds_too_few_loses_none_of_them_and_lesions_of_equal_probability_stay_together():
    def image(peak, lesions=1):
        place = np.arange(1 if lesions else 0)
        return FoundLesions(lesions, np.array([peak]), np.array([0.01]), place, place)

    missed = FoundLesions(1, np.empty(0), np.empty(0), np.empty(0, int), np.empty(0, int))
    point = fit_operating_point([image(0.6), image(0.6), image(0.9), missed, image(0.59, 0), image(0.6, 0)])
    assert (point["least_probability"], point["found"], point["false_alarms"]) == (0.6, 3, 1)
    # of twenty lesions one may be lost, of nineteen none
    for lesions, least in ((20, 0.9), (19, 0.5)):
        point = fit_operating_point([image(0.5), *[image(0.9)] * (lesions - 1)])
        assert point["least_probability"] == least


def _prediction(rules, shape=(32, 48)):
    """Two lesions: a large one that is sure, and a small one that is not."""
    raw = np.zeros((3, 16, 16), np.float32)
    raw[0] = 1
    raw[:, 2:8, 2:8] = np.array([0.1, 0.8, 0.1])[:, None, None]
    raw[:, 12:14, 12:14] = np.array([0.4, 0.0, 0.6])[:, None, None]
    return Prediction(raw, raw, shape, rules)


def test_the_mask_leaves_out_what_is_too_uncertain_or_too_small_only_when_asked():
    plain = _prediction(DecisionRules(0.5, 0.7, 0.0))
    assert set(np.unique(plain.mask)) == {0, 1, 2}
    np.testing.assert_array_equal(plain.mask, plain.plain_mask)
    sizes = sorted(plain.lesions.shares)
    np.testing.assert_allclose(sorted(plain.lesions.peaks), [0.6, 0.9], atol=1e-6)
    for rules in (
        DecisionRules(0.5, 0.7, 0.0, drops_lesions=True),
        DecisionRules(0.5, 0.0, sizes[1], drops_lesions=True),
    ):
        found = _prediction(rules)
        assert set(np.unique(found.mask)) == {0, 1}
        np.testing.assert_array_equal(found.mask == 1, plain.mask == 1)
    nothing = _prediction(DecisionRules(0.5, 0.95, 0.0, drops_lesions=True))
    assert not nothing.mask.any()
    assert (nothing.score, nothing.label) == (plain.score, "normal")
    assert plain.label == "malignant"
    everything = _prediction(DecisionRules(0.5, min(plain.lesions.peaks), sizes[0], True))
    np.testing.assert_array_equal(everything.mask, plain.mask)


def test_the_lesions_of_a_large_image_are_those_of_a_small_one(monkeypatch):
    small = _prediction(DecisionRules(), (300, 40))
    monkeypatch.setattr("bus_smp.inference.predictor._LARGE", 1)
    large = _prediction(DecisionRules(), (300, 40))
    np.testing.assert_allclose(large.lesions.peaks, small.lesions.peaks, atol=1e-6)
    np.testing.assert_array_equal(large.lesions.shares, small.lesions.shares)


def test_a_lesion_is_found_from_an_iou_of_a_tenth_on():
    truth, mask = np.zeros((1, 100), np.uint8), np.zeros((1, 100), np.uint8)
    truth[0, :10], mask[0, :1] = 1, 2
    for end, finds in ((10, 1), (11, 0)):
        truth[0, :end] = 1
        found = FoundLesions.of(truth, MarkedLesions.of(mask, np.zeros((1, 1, 100))))
        assert (found.lesions, len(found.reference), found.shares.tolist()) == (1, finds, [0.01])


# On a run


def test_scoring_touches_no_threshold_and_gives_the_numbers_at_the_point_next_to_the_plain_ones(
    trained, tmp_path
):
    run = shutil.copytree(trained, tmp_path / "first", ignore=shutil.ignore_patterns("eval-*"))
    header = read_header(run / "best.safetensors")
    root = ("--root", read_manifest(trained / "manifest.csv").roots["bus-uclm"])
    scored = ("evaluate", "--split", "val", "--out", tmp_path, "--run", "first", *root)
    result = invoke(*scored, "--json")
    assert result.exit_code == 0, result.stderr
    assert read_header(run / "best.safetensors") == header
    summary = json.loads(result.stdout)
    assert summary["calibration"]["operating_point"] == header["calibration"]["operating_point"]
    found = summary["summaries"]["model"]
    assert found["rates"]["false_alarm_rate_at_point"]["mean"] <= found["rates"]["false_alarm_rate"]["mean"]
    assert found["rates"]["miss_rate_at_point"]["mean"] >= found["rates"]["miss_rate"]["mean"]
    assert found["metrics"]["dice_lesion_at_point"]["n"] == found["metrics"]["dice_lesion"]["n"]
    # on the images that it was fitted on they are those of the fit
    point, alarms = header["calibration"]["operating_point"], found["rates"]["false_alarm_rate_at_point"]
    assert round(alarms["mean"] * alarms["n"]) == point["false_alarms"]
    sensitivity = found["rates"]["lesion_sensitivity_at_point"]["mean"]
    assert sensitivity == pytest.approx(point["found"] / point["lesions"])
    printed = invoke(*scored, "--full").stdout
    assert "Operating point Dice 0." in printed
    assert "False alarms, op. point" in printed


def test_a_validation_split_without_lesions_has_no_operating_point_and_says_so(trained):
    predictor, _ = load_predictor(trained / "best.safetensors", make_engine("cpu", "fp32"))
    manifest = read_manifest(trained / "manifest.csv")
    frame = manifest.frame[(manifest.frame["split"] != "val") | (manifest.frame["label"] == "normal")]
    point = calibrate(predictor, Manifest(frame, manifest.roots, manifest.about))["operating_point"]
    assert point["least_probability"] is None
    assert "no image with a lesion" in point["reason"]


@pytest.fixture
def old(trained, tmp_path):
    """The run as an older version left it."""
    run = shutil.copytree(trained, tmp_path / "old", ignore=shutil.ignore_patterns("eval-*"))
    best = run / "best.safetensors"
    predictor, header = load_predictor(best, make_engine("cpu", "fp32"))
    header["calibration"].pop("operating_point")
    header.pop("sha256")
    write_checkpoint(best, predictor.network.model, header)
    return run


def test_an_old_run_predicts_as_before_and_gets_an_operating_point_by_the_command_that_the_error_names(
    old, trained, bus_uclm_tree
):
    image = next(bus_uclm_tree.rglob("images/*.png"))
    np.testing.assert_array_equal(
        bus_smp.load(old).predict(image).mask, bus_smp.load(trained).predict(image).mask
    )
    with pytest.raises(ConfigError, match="older version") as caught:
        bus_smp.load(old, operating_point=True)
    command = caught.value.hint.split(" fits")[0].split()[1:]
    weights = weights_sha256(old / "best.safetensors")
    root = read_manifest(trained / "manifest.csv").roots["bus-uclm"]
    result = invoke(*command, "--root", root)
    assert result.exit_code == 0, result.stderr
    assert (old / "best.safetensors").read_bytes() == (trained / "best.safetensors").read_bytes()
    assert weights_sha256(old / "best.safetensors") == weights
    found = bus_smp.load(old, operating_point=True).predict(image)
    np.testing.assert_array_equal(found.mask, found.kept_mask)


def test_predict_shows_the_operating_point_on_request_and_names_it_in_the_rule(
    trained, bus_uclm_tree, tmp_path
):
    image = next(bus_uclm_tree.rglob("images/*.png"))
    for option, named in (((), False), (("--operating-point",), True)):
        to = tmp_path / str(named)
        result = invoke("predict", image, "--to", to, "--run", trained, *option, "--json")
        assert result.exit_code == 0, result.stderr
        (row,) = json.loads(result.stdout)
        assert ("the mask keeps lesions with a probability >=" in row["decision_rule"]) == named


def test_a_header_with_impossible_thresholds_is_refused(old):
    best = old / "best.safetensors"
    predictor, header = load_predictor(best, make_engine("cpu", "fp32"))
    for wrong in ([1], {"least_probability": "0.5"}, {"least_probability": 0.5, "least_area": -1}):
        calibration = header["calibration"] | {"operating_point": wrong}
        write_checkpoint(best, predictor.network.model, header | {"calibration": calibration})
        with pytest.raises(CheckpointError, match="cannot be used"):
            read_header(best)
