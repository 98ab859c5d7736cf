import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from masks import mask_pairs
from sklearn import metrics as sk

from bus_smp.errors import EvaluationError
from bus_smp.measures.image import measure_image
from bus_smp.measures.lesions import match_lesions
from bus_smp.measures.overlap import (
    METRIC_COLUMNS,
    PIXEL_COLUMNS,
    TARGETS,
    classes_of,
    confusion,
    image_metrics,
    image_row,
    malignant_score,
    predicted_label,
)
from bus_smp.measures.shape import lesion_shape, shape_row
from bus_smp.measures.surfaces import surface_row


def _random(seed, shape=(17, 23)):
    return np.random.default_rng(seed).integers(0, 3, shape).astype(np.uint8)


def _single(value, shape=(9, 7)):
    mask = np.zeros(shape, np.uint8)
    mask[4, 3] = value
    return mask


_SHAPE = (9, 7)
_EMPTY = np.zeros(_SHAPE, np.uint8)
_FULL = np.full(_SHAPE, 2, np.uint8)
MASKS = {
    "random": (_random(0), _random(1)),
    "same": (_random(2), _random(2)),
    "all empty": (_EMPTY, _EMPTY),
    "empty reference": (_EMPTY, _random(3, _SHAPE)),
    "empty prediction": (_random(4, _SHAPE), _EMPTY),
    "full": (_FULL, _FULL),
    "full reference": (_FULL, _random(5, _SHAPE)),
    "full prediction": (_random(6, _SHAPE), _FULL),
    "single pixel hit": (_single(1), _single(1)),
    "single pixel of the other class": (_single(1), _single(2)),
    "single pixel missed": (_single(2), _EMPTY),
    "1x1 background": (np.zeros((1, 1), np.uint8), np.zeros((1, 1), np.uint8)),
    "1x1 lesion": (np.full((1, 1), 1, np.uint8), np.full((1, 1), 1, np.uint8)),
    "1x1 wrong": (np.full((1, 1), 1, np.uint8), np.full((1, 1), 2, np.uint8)),
}


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("target", TARGETS)
def test_every_metric_agrees_with_scikit_learn_or_is_undefined_where_a_ratio_has_nothing_below(name, target):
    truth, prediction = (mask.reshape(-1) for mask in MASKS[name])
    ours = image_metrics(confusion(truth, prediction))
    true, seen = np.isin(truth, TARGETS[target]), np.isin(prediction, TARGETS[target])
    nan = {"zero_division": math.nan}
    expected = {
        "dice": sk.f1_score(true, seen, **nan) if true.any() else math.nan,
        "iou": sk.jaccard_score(true, seen, zero_division=0) if true.any() else math.nan,
        "sensitivity": sk.recall_score(true, seen, **nan),
        "precision": sk.precision_score(true, seen, **nan),
        "specificity": sk.recall_score(~true, ~seen, **nan),
    }
    for metric, value in expected.items():
        assert ours[f"{metric}_{target}"] == pytest.approx(value, abs=1e-6, nan_ok=True), metric


@pytest.mark.parametrize("name", MASKS)
def test_confusion_agrees_with_scikit_learn(name):
    truth, prediction = MASKS[name]
    expected = sk.confusion_matrix(truth.reshape(-1), prediction.reshape(-1), labels=[0, 1, 2])
    assert np.array_equal(confusion(truth, prediction), expected)
    assert confusion(truth, prediction).dtype == np.int64


_pairs = hnp.array_shapes(min_dims=2, max_dims=2, max_side=6).flatmap(
    lambda shape: st.tuples(*[hnp.arrays(np.uint8, shape, elements=st.integers(0, 2))] * 2)
)


@settings(max_examples=200, deadline=None)
@given(_pairs)
def test_metrics_stay_in_range_dice_follows_from_iou_and_is_symmetric(pair):
    truth, prediction = pair
    there, back = image_metrics(confusion(truth, prediction)), image_metrics(confusion(prediction, truth))
    for value in there.values():
        assert math.isnan(value) or 0 <= value <= 1
    for target in TARGETS:
        dice, iou = there[f"dice_{target}"], there[f"iou_{target}"]
        assert dice == pytest.approx(2 * iou / (1 + iou), nan_ok=True)
        assert math.isnan(dice) == (not np.isin(truth, TARGETS[target]).any())
        if not math.isnan(dice) and not math.isnan(back[f"dice_{target}"]):
            assert dice == back[f"dice_{target}"]
            assert there[f"sensitivity_{target}"] == back[f"precision_{target}"]


def test_an_empty_reference_never_has_a_dice_whatever_is_predicted():
    for prediction in (_EMPTY, _FULL, _single(1)):
        metrics = image_metrics(confusion(_EMPTY, prediction))
        for name in ("dice", "iou", "sensitivity"):
            assert all(math.isnan(metrics[f"{name}_{target}"]) for target in TARGETS)


def test_a_lesion_of_the_wrong_class_is_a_lesion_found_but_not_a_malignant_one():
    metrics = image_metrics(confusion(np.full((4, 4), 2), np.full((4, 4), 1)))
    assert metrics["dice_lesion"] == 1
    assert metrics["dice_malignant"] == 0
    assert math.isnan(metrics["dice_benign"])


def test_false_alarm_area_is_the_share_of_the_image_predicted_on_background():
    truth, prediction = np.zeros((10, 10), np.uint8), np.zeros((10, 10), np.uint8)
    truth[:2] = 1
    prediction[1:4] = 2
    assert image_metrics(confusion(truth, prediction))["false_alarm_area"] == 0.2


@pytest.mark.parametrize(
    ("truth", "prediction", "named"),
    [
        (np.zeros((4, 5), int), np.zeros((5, 4), int), r"\(5, 4\)"),
        (np.zeros((4, 5), int), np.full((4, 5), 3), "prediction holds class index 3"),
        (np.full((4, 5), 255, np.uint8), np.zeros((4, 5), int), "reference holds class index 255"),
        (np.zeros((4, 5), int), np.full((4, 5), -1), "class index -1"),
        (np.zeros((4, 5), int), np.zeros((4, 5)), "float64"),
    ],
)
def test_a_mask_of_another_size_or_of_unknown_classes_is_never_measured(truth, prediction, named):
    with pytest.raises(EvaluationError, match=named):
        measure_image(truth, prediction)


@settings(max_examples=100, deadline=None)
@given(pair=mask_pairs())
def test_an_image_is_measured_inside_the_box_of_its_lesions_as_it_is_measured_whole(pair):
    truth, prediction = pair
    probability = np.random.default_rng(0).random(truth.shape)
    row, components = measure_image(truth, prediction, probability)
    lesions, of_whole = match_lesions(truth, prediction, probability)
    shapes = shape_row(lesion_shape(truth), lesion_shape(prediction))
    whole = image_row(confusion(truth, prediction)) | surface_row(truth, prediction) | lesions | shapes
    assert row == pytest.approx(whole, nan_ok=True)
    assert list(row) == list(whole)
    inside, everywhere = (
        np.array(sorted((c["area"], c["score"], c["iou"]) for c in found)) for found in (components, of_whole)
    )
    assert inside == pytest.approx(everywhere)


def test_large_integer_types_and_many_classes_are_counted_without_overflow():
    truth = np.arange(200, dtype=np.int64)
    assert np.array_equal(confusion(truth, truth, 200), np.eye(200, dtype=int))


@pytest.mark.parametrize(
    ("pixels", "label"),
    [
        ((9, 0, 0), "normal"),
        ((9, 1, 0), "benign"),
        ((9, 2, 1), "benign"),
        ((9, 1, 1), "malignant"),
        ((0, 1, 2), "malignant"),
    ],
)
def test_predicted_label_is_the_larger_lesion_and_malignant_on_a_tie(pixels, label):
    counts = np.zeros((3, 3), int)
    counts[1] = pixels
    assert predicted_label(counts) == label


def test_a_row_holds_the_metrics_and_the_nine_counts_it_came_from():
    counts = confusion(*MASKS["random"])
    row = image_row(counts)
    assert set(row) == {*METRIC_COLUMNS, *PIXEL_COLUMNS, "false_alarm_area", "predicted_label"}
    assert [row[column] for column in PIXEL_COLUMNS] == counts.reshape(-1).tolist()


def test_malignant_score_is_the_highest_malignant_probability():
    assert malignant_score(np.array([[[0.2, 0.1]], [[0.7, 0.2]], [[0.1, 0.7]]])) == 0.7
    with pytest.raises(EvaluationError, match="NaN"):
        malignant_score(np.array([[[0.2, 0.1]], [[0.7, 0.2]], [[0.1, math.nan]]]))


@given(hnp.arrays(np.float32, (3, 4, 5), elements=st.sampled_from(np.float32([0, 0.25, 0.5, 1]))))
def test_the_class_of_a_pixel_is_the_first_of_the_most_probable(probabilities):
    assert np.array_equal(classes_of(probabilities), probabilities.argmax(axis=0))
    assert classes_of(probabilities).dtype == np.uint8
