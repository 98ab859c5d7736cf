import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from masks import mask_pairs
from scipy.optimize import linear_sum_assignment
from skimage.measure import label

from bus_smp.errors import EvaluationError
from bus_smp.measures.lesions import COMPONENT_COLUMNS, DETECTION_COLUMNS, froc, match_lesions
from bus_smp.measures.shape import lesion_shape
from bus_smp.measures.surfaces import surface_metrics, surface_row


def _lesions(mask):
    """Bool masks of the components, by scikit-image."""
    labels = label(mask > 0, connectivity=2)
    return [labels == number for number in range(1, labels.max() + 1)]


def _iou_table(truth, prediction):
    return np.array(
        [[(t & p).sum() / (t | p).sum() for p in _lesions(prediction)] for t in _lesions(truth)]
    ).reshape(len(_lesions(truth)), len(_lesions(prediction)))


def _class(mask, lesion):
    return "malignant" if (mask[lesion] == 2).sum() >= (mask[lesion] == 1).sum() else "benign"


def _most_pairs(allowed):
    """The largest number of one-to-one pairs that a bool table allows."""
    return int(allowed[linear_sum_assignment(allowed, maximize=True)].sum())


def _strip(*lesions, width=100, value=1):
    """A mask one pixel high with a lesion from each start to each stop."""
    mask = np.zeros((1, width), np.uint8)
    for start, stop in lesions:
        mask[0, start:stop] = value
    return mask


def _counts(truth, prediction):
    row, _ = match_lesions(truth, prediction)
    return tuple(row[f"{kind}_iou{iou}"] for iou in (10, 50) for kind in ("hits", "false_lesions"))


@settings(max_examples=200, deadline=None)
@given(pair=mask_pairs())
def test_counts_and_components_agree_with_scikit_image_and_a_greedy_matching_by_hand(pair):
    truth, prediction = pair
    row, components = match_lesions(truth, prediction)
    assert tuple(row) == DETECTION_COLUMNS
    assert all(isinstance(value, int) for value in row.values())
    table = _iou_table(truth, prediction)
    assert (row["lesions_true"], row["lesions_predicted"]) == table.shape

    left, matched = table.copy(), []
    while left.size and left.max() >= 0.1:
        t, p = np.unravel_index(np.argmax(left), left.shape)
        matched.append((left[t, p], t, p))
        left[t], left[:, p] = 0, 0
    assert row["hits_iou10"] == len(matched)
    assert row["false_lesions_iou10"] == table.shape[1] - len(matched)
    assert sorted(c["iou"] for c in components if c["iou"]) == pytest.approx(sorted(m[0] for m in matched))

    lesions = _lesions(prediction)
    assert [c["component"] for c in components] == list(range(1, len(lesions) + 1))
    assert all(tuple(c) == COMPONENT_COLUMNS for c in components)
    seen = sorted((c["area"], c["class"]) for c in components)
    assert seen == sorted((int(p.sum()), _class(prediction, p)) for p in lesions)
    assert {c["score"] for c in components} <= {1.0}
    assert all(math.isnan(c["right_class"]) == (c["iou"] == 0) for c in components)
    assert row["right_class_iou10"] == sum(c["right_class"] == 1 for c in components)


@settings(max_examples=200, deadline=None)
@given(pair=mask_pairs(8))
def test_at_half_overlap_no_matching_finds_more_and_at_a_tenth_none_finds_twice_as_many(pair):
    table = _iou_table(*pair)
    row, _ = match_lesions(*pair)
    good = table >= 0.5
    assert (good.sum(axis=0) <= 1).all()
    assert (good.sum(axis=1) <= 1).all()
    assert row["hits_iou50"] == good.sum()
    assert row["hits_iou10"] <= _most_pairs(table >= 0.1) <= 2 * row["hits_iou10"]


def test_a_lesion_found_exactly_is_one_hit_and_nothing_false():
    assert _counts(_strip((10, 30)), _strip((10, 30))) == (1, 0, 1, 0)


def test_overlap_of_exactly_a_tenth_and_a_half_is_enough():
    assert _counts(_strip((0, 100)), _strip((0, 50))) == (1, 0, 1, 0)
    assert _counts(_strip((0, 100)), _strip((0, 49))) == (1, 0, 0, 1)
    assert _counts(_strip((0, 100)), _strip((0, 10))) == (1, 0, 0, 1)
    assert _counts(_strip((0, 100)), _strip((0, 9))) == (0, 1, 0, 1)


def test_a_lesion_seen_in_pieces_is_found_once_and_the_other_piece_is_false():
    truth, prediction = _strip((0, 100)), _strip((0, 60), (62, 100))
    assert _counts(truth, prediction) == (1, 1, 1, 1)
    _, components = match_lesions(truth, prediction)
    assert [c["iou"] for c in components] == [0.6, 0]


def test_one_prediction_over_two_lesions_finds_one_of_them():
    assert _counts(_strip((0, 40), (44, 100)), _strip((0, 100))) == (1, 0, 1, 0)


def test_the_best_overlap_goes_first_even_where_two_worse_ones_were_possible():
    truth, prediction = _strip((0, 30), (35, 55)), _strip((0, 10), (12, 50))
    table = _iou_table(truth, prediction)
    assert (table >= 0.1).tolist() == [[True, True], [False, True]]
    assert table[0, 1] == table.max()
    assert _counts(truth, prediction)[:2] == (1, 1)


def test_of_equal_overlaps_the_same_class_is_taken_whichever_side_it_lies_on():
    truth, prediction = np.array([[1, 1, 1, 1, 1]], np.uint8), np.array([[1, 1, 0, 2, 2]], np.uint8)
    for turned in (slice(None), slice(None, None, -1)):
        row, _ = match_lesions(truth[:, turned].copy(), prediction[:, turned].copy())
        assert (row["hits_iou10"], row["right_class_iou10"]) == (1, 1)


def test_no_count_depends_on_how_the_image_is_turned():
    """Small masks of noise: many overlaps are equal, and pairs that exclude one another."""
    rng = np.random.default_rng(0)
    for _ in range(60):
        truth, prediction = rng.choice(3, (2, 7, 9), p=[0.6, 0.2, 0.2]).astype(np.uint8)
        rows = [
            match_lesions(turn(truth).copy(), turn(prediction).copy())[0]
            for turn in (np.asarray, np.fliplr, np.flipud, np.rot90, np.transpose)
        ]
        assert all(row == rows[0] for row in rows)


@pytest.mark.parametrize(
    "measure",
    [
        lambda mask: match_lesions(mask, mask),
        lesion_shape,
        lambda mask: surface_row(mask, mask),
        lambda mask: surface_metrics(mask > 0, mask > 0),
    ],
)
def test_a_mask_with_three_dimensions_is_an_error_that_names_its_shape(measure):
    with pytest.raises(ValueError, match=r"two dimensions, \(H, W\); this one has the shape \(2, 8, 9\)"):
        measure(np.ones((2, 8, 9), np.uint8))


def test_corners_that_touch_are_one_lesion():
    mask = np.eye(4, dtype=np.uint8)
    row, components = match_lesions(mask, mask)
    assert (row["lesions_true"], row["lesions_predicted"], components[0]["area"]) == (1, 1, 4)


@pytest.mark.parametrize(
    ("benign", "malignant", "name"),
    [(3, 0, "benign"), (3, 2, "benign"), (2, 2, "malignant"), (0, 1, "malignant")],
)
def test_a_component_has_the_class_of_most_of_its_pixels_and_a_tie_is_malignant(benign, malignant, name):
    mask = np.array([[0] + [1] * benign + [2] * malignant + [0]], np.uint8)
    for truth_class, word in ((1, "benign"), (2, "malignant")):
        row, (component,) = match_lesions((mask > 0) * np.uint8(truth_class), mask)
        assert component["class"] == name
        assert component["right_class"] == row["right_class_iou10"] == (name == word)
    row, (component,) = match_lesions(mask, (mask > 0) * np.uint8(2))
    assert component["right_class"] == (name == "malignant")


def test_two_neighbours_of_different_class_are_one_lesion():
    row, _ = match_lesions(np.array([[1, 1, 2]], np.uint8), np.array([[1, 1, 1]], np.uint8))
    assert (row["lesions_true"], row["hits_iou50"], row["right_class_iou10"]) == (1, 1, 1)


def test_nothing_there_or_nothing_predicted_gives_zeros():
    empty, lesion = np.zeros((5, 9), np.uint8), np.ones((5, 9), np.uint8)
    assert match_lesions(empty, empty) == (dict.fromkeys(DETECTION_COLUMNS, 0), [])
    assert match_lesions(np.zeros((0, 3), np.uint8), np.zeros((0, 3), np.uint8))[1] == []
    row, components = match_lesions(lesion, empty)
    assert (row["lesions_true"], sum(row.values()), components) == (1, 1, [])
    row, (component,) = match_lesions(empty, lesion)
    assert (row["false_lesions_iou10"], row["false_lesions_iou50"], component["iou"]) == (1, 1, 0)
    assert math.isnan(component["right_class"])


def test_a_score_is_the_mean_lesion_probability_of_its_own_pixels():
    prediction = np.zeros((6, 8), np.uint8)
    prediction[2:4, 1], prediction[3, 5:8] = 1, 2
    probability = np.random.default_rng(0).random((6, 8), np.float32)
    _, components = match_lesions(prediction, prediction, probability)
    expected = {2: probability[2:4, 1].mean(), 3: probability[3, 5:8].mean()}
    assert {c["area"]: c["score"] for c in components} == pytest.approx(expected)


def test_rounding_never_takes_a_score_past_one():
    mask = np.ones((3, 3), np.uint8)
    (component,) = match_lesions(mask, mask, np.full((3, 3), 1.0001, np.float32))[1]
    assert component["score"] == 1


def _tables(lesions_true, candidates):
    """Images "0", "1", ... with so many lesions; candidates (image, score, iou)."""
    per_image = pd.DataFrame(
        {"dataset": "d", "image_id": [str(i) for i in range(len(lesions_true))], "lesions_true": lesions_true}
    )
    components = pd.DataFrame(candidates, columns=["image_id", "score", "iou"]).assign(dataset="d")
    return per_image, components.astype({"score": float, "iou": float})


def test_the_curve_goes_from_nothing_marked_to_everything_marked():
    tables = _tables(
        [1, 0, 2, 1], [("0", 0.9, 0.7), ("1", 0.8, 0), ("2", 0.8, 0.2), ("2", 0.6, 0), ("3", 0.5, 0.5)]
    )
    false, sensitivity, thresholds = froc(*tables)
    assert thresholds.tolist() == [math.inf, 0.9, 0.8, 0.6, 0.5, 0]
    assert false.tolist() == [0, 0, 0.25, 0.5, 0.5, 0.5]
    assert sensitivity.tolist() == [0, 0.25, 0.5, 0.5, 0.75, 0.75]
    false, sensitivity, _ = froc(*tables, iou=0.5)
    assert false.tolist() == [0, 0, 0.5, 0.75, 0.75, 0.75]
    assert sensitivity.tolist() == [0, 0.25, 0.25, 0.25, 0.5, 0.5]


_candidates = st.lists(
    st.tuples(
        st.sampled_from("012"), st.sampled_from([0, 0.25, 0.5, 1]), st.sampled_from([0, 0.1, 0.4, 0.5, 1])
    )
)


@settings(max_examples=100, deadline=None)
@given(candidates=_candidates, iou=st.sampled_from([0.1, 0.5]))
def test_each_point_of_the_curve_counts_what_scores_no_less_than_its_threshold(candidates, iou):
    false, sensitivity, thresholds = froc(*_tables([30, 0, 30], candidates), iou)
    assert false.dtype == sensitivity.dtype == thresholds.dtype == np.float64
    assert (np.diff(thresholds) < 0).all()
    for point in zip(false, sensitivity, thresholds, strict=True):
        marked = [c for c in candidates if c[1] >= point[2]]
        assert point[0] == pytest.approx(sum(c[2] < iou for c in marked) / 3)
        assert point[1] == pytest.approx(sum(c[2] >= iou for c in marked) / 60)


def test_without_lesions_there_is_no_sensitivity_but_there_are_false_lesions():
    false, sensitivity, _ = froc(*_tables([0, 0], [("0", 0.9, 0)]))
    assert false.tolist() == [0, 0.5, 0.5]
    assert np.isnan(sensitivity).all()


def test_without_candidates_the_curve_stays_at_its_start():
    false, sensitivity, thresholds = froc(*_tables([1, 2], []))
    assert (false.tolist(), sensitivity.tolist(), thresholds.tolist()) == ([0, 0], [0, 0], [math.inf, 0])


def test_the_curve_ends_at_the_counts_of_the_masks_it_came_from():
    random = np.random.default_rng(0)
    rows, candidates = [], []
    for image in range(6):
        truth, prediction = (np.repeat(np.repeat(random.random((2, 9, 9)) < 0.2, 4, 1), 4, 2) * 1).astype(
            np.uint8
        )
        row, components = match_lesions(truth, prediction, random.random(truth.shape))
        rows.append({"dataset": "d", "image_id": str(image)} | row)
        candidates += [{"dataset": "d", "image_id": str(image)} | c for c in components]
    per_image = pd.DataFrame(rows)
    assert per_image["hits_iou10"].sum() > per_image["hits_iou50"].sum() > 0
    for iou in (10, 50):
        false, sensitivity, _ = froc(per_image, pd.DataFrame(candidates), iou / 100)
        assert false[-1] == pytest.approx(per_image[f"false_lesions_iou{iou}"].mean())
        assert sensitivity[-1] == per_image[f"hits_iou{iou}"].sum() / per_image["lesions_true"].sum()


def test_tables_that_do_not_belong_together_are_refused():
    per_image, components = _tables([1], [("0", 0.9, 0), ("4", 0.9, 0)])
    with pytest.raises(EvaluationError, match="d 4 has components but is not in the per-image table"):
        froc(per_image, components)
    with pytest.raises(EvaluationError, match="per-image table lacks the columns lesions_true"):
        froc(per_image.drop(columns="lesions_true"), components)
    with pytest.raises(EvaluationError, match="components lacks the columns score"):
        froc(per_image, components.drop(columns="score"))
    with pytest.raises(EvaluationError, match="no rows"):
        froc(per_image[:0], components[:0])
    with pytest.raises(EvaluationError, match="NaN"):
        froc(*_tables([1], [("0", math.nan, 0)]))
    with pytest.raises(ValueError, match="nothing is matched below"):
        froc(per_image, components[:1], iou=0.05)
