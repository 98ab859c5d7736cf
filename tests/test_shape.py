import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from masks import mask_pairs
from scipy import stats
from skimage.measure import label, perimeter_crofton, regionprops
from skimage.morphology import convex_hull_image

from bus_smp.errors import EvaluationError
from bus_smp.measures.shape import SHAPE_COLUMNS, SHAPES, agreement, lesion_shape, shape_row


def _row(truth, prediction):
    return shape_row(lesion_shape(truth), lesion_shape(prediction))


def _ellipse(half_height, half_width, middle=(0.0, 0.0)):
    rows, columns = np.mgrid[-130:131, -130:131]
    inside = ((rows - middle[0]) / half_height) ** 2 + ((columns - middle[1]) / half_width) ** 2 <= 1
    return inside.astype(np.uint8)


def _filled(height, width):
    return np.pad(np.ones((height, width), np.uint8), 3)


def _hull(region):
    """Pixels in the convex hull of pixel centres, by scikit-image, which takes no points on one line."""
    if np.linalg.matrix_rank(region.coords - region.coords[0]) < 2:
        return region.area
    return convex_hull_image(region.image, offset_coordinates=False).sum()


@settings(max_examples=200, deadline=None)
@given(pair=mask_pairs())
def test_shapes_agree_with_scikit_image_on_the_largest_component(pair):
    truth, prediction = pair
    row = _row(truth, prediction)
    assert tuple(row) == SHAPE_COLUMNS
    for side, mask in (("truth", truth), ("predicted", prediction)):
        ours = {shape: row[f"{shape}_{side}"] for shape in SHAPES}
        regions = regionprops(label(mask > 0, connectivity=2))
        if not regions:
            assert all(math.isnan(value) for value in ours.values())
            continue
        assert ours["area"] == (mask > 0).sum()
        largest = max(region.area for region in regions)
        expected = []
        for region in (r for r in regions if r.area == largest):
            top, left, bottom, right = region.bbox
            perimeter = perimeter_crofton(np.pad(region.image, 1), directions=4)
            hull = _hull(region)
            expected.append(
                (
                    (bottom - top) / (right - left),
                    min(1, 4 * math.pi * region.area / perimeter**2),
                    region.area / hull,
                )
            )
        got = (ours["depth_to_width"], ours["circularity"], ours["solidity"])
        assert any(got == pytest.approx(one) for one in expected)
        assert 0 < ours["circularity"] <= 1
        assert 0 < ours["solidity"] <= 1
        assert lesion_shape(mask) == ours


@pytest.mark.parametrize("radius", [10, 14.3, 25, 60, 120])
def test_a_disc_is_round_and_solid_and_as_deep_as_wide(radius):
    middles = [(0, 0), *np.random.default_rng(0).random((20, 2))]
    shapes = [lesion_shape(_ellipse(radius, radius, middle)) for middle in middles]
    for shape in shapes:
        assert shape["area"] == pytest.approx(math.pi * radius**2, rel=0.02)
        assert shape["circularity"] >= 0.93
        assert shape["solidity"] == 1
        assert shape["depth_to_width"] == pytest.approx(1, abs=0.06)
    assert np.mean([shape["circularity"] for shape in shapes]) == pytest.approx(1, abs=0.01)


def test_a_lesion_taller_than_wide_has_a_ratio_above_one_and_its_turned_image_the_inverse():
    tall, wide = lesion_shape(_ellipse(80, 40)), lesion_shape(_ellipse(40, 80))
    assert tall["depth_to_width"] == 161 / 81
    assert wide["depth_to_width"] == 81 / 161
    assert tall["circularity"] == pytest.approx(wide["circularity"])
    # 4 pi area / perimeter^2 of the ellipse itself, its perimeter by the elliptic integral
    assert tall["circularity"] == pytest.approx(0.841, abs=0.01)


def test_depth_is_measured_down_the_image_also_on_a_slanting_lesion():
    rows, columns = np.mgrid[:40, :40]
    slanting = (abs(rows - columns) <= 3).astype(np.uint8)
    assert lesion_shape(slanting)["depth_to_width"] == 1


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 9), (9, 1), (2, 2), (30, 30), (12, 50)])
def test_a_filled_rectangle_is_solid(height, width):
    shape = lesion_shape(_filled(height, width))
    assert (shape["area"], shape["depth_to_width"], shape["solidity"]) == (height * width, height / width, 1)


def test_circularity_of_a_square_is_as_much_too_high_as_documented():
    assert lesion_shape(_filled(100, 100))["circularity"] == pytest.approx(1.12 * math.pi / 4, abs=0.003)


def test_no_shape_is_rounder_than_round_however_few_its_pixels():
    assert lesion_shape(_filled(1, 1))["circularity"] == 1
    assert lesion_shape(_filled(2, 2))["circularity"] == 1


def test_spikes_holes_and_notches_cost_circularity_and_solidity():
    disc = _ellipse(40, 40)
    spiky, holed, notched = disc.copy(), disc.copy(), disc.copy()
    spiky[130, 130:220] = 1
    holed[125:136, 125:136] = 0
    notched[120:141, 130:] = 0
    whole = lesion_shape(disc)
    for mask in (spiky, holed, notched):
        assert lesion_shape(mask)["circularity"] < whole["circularity"] - 0.1
        assert lesion_shape(mask)["solidity"] < whole["solidity"] - 0.02


def test_solidity_of_an_l_is_its_pixels_over_those_in_the_triangle_it_spans():
    corner = np.zeros((5, 5), np.uint8)
    corner[:, 0] = corner[4] = 1
    assert lesion_shape(corner)["solidity"] == 9 / 15


def test_area_is_of_all_lesions_and_shape_only_of_the_largest_even_with_another_in_its_box():
    mask = np.zeros((30, 40), np.uint8)
    mask[2:22, 2] = mask[21, 2:12] = 1
    alone = lesion_shape(mask)
    mask[4:6, 8:10] = 2
    mask[25:28, 20:28] = 2
    shape = lesion_shape(mask)
    assert (alone["area"], shape["area"]) == (29, 29 + 4 + 24)
    assert shape | {"area": 29} == alone
    assert shape["depth_to_width"] == 2


def test_a_missed_lesion_has_no_size_rather_than_size_zero():
    row = _row(_filled(4, 5), np.zeros((10, 11), np.uint8))
    assert row["area_truth"] == 20
    assert all(math.isnan(row[f"{shape}_predicted"]) for shape in SHAPES)
    assert all(math.isnan(value) for value in _row(*np.zeros((2, 0, 4), np.uint8)).values())


@settings(max_examples=50, deadline=None)
@given(pair=mask_pairs())
def test_shape_depends_neither_on_class_nor_on_place(pair):
    truth, prediction = pair
    row = _row(truth, prediction)
    of_one_class = _row((truth > 0).astype(np.uint8), (prediction > 0) * np.uint8(2))
    assert row == pytest.approx(of_one_class, nan_ok=True)
    assert row == pytest.approx(_row(*(np.pad(mask, ((4, 0), (1, 3))) for mask in pair)), nan_ok=True)


def test_limits_of_agreement_by_hand():
    result = agreement(np.array([10.0, 20, 30, 40]), np.array([11.0, 19, 33, 41]))
    sd = math.sqrt((0 + 4 + 4 + 0) / 3)  # of the differences 1, -1, 3, 1
    assert result == pytest.approx(
        {
            "n": 4,
            "n_undefined": 0,
            "bias": 1,
            "sd": sd,
            "loa_low": 1 - 1.96 * sd,
            "loa_high": 1 + 1.96 * sd,
            "r": np.corrcoef([10, 20, 30, 40], [11, 19, 33, 41])[0, 1],
        }
    )


_numbers = st.floats(0, 100, width=32) | st.just(math.nan)


@pytest.mark.filterwarnings("error")
@settings(max_examples=100, deadline=None)
@given(pairs=st.lists(st.tuples(_numbers, _numbers), max_size=12))
def test_pairs_without_both_numbers_are_counted_and_otherwise_not_there(pairs):
    truth, predicted = np.array(pairs).reshape(-1, 2).T
    both = ~np.isnan(truth) & ~np.isnan(predicted)
    result, without = agreement(truth, predicted), agreement(truth[both], predicted[both])
    assert (result["n"], result["n_undefined"]) == (both.sum(), (~both).sum())
    assert result | {"n_undefined": 0} == pytest.approx(without, nan_ok=True)
    assert math.isnan(result["bias"]) == (both.sum() < 1)
    assert math.isnan(result["sd"]) == math.isnan(result["loa_low"]) == (both.sum() < 2)
    assert math.isnan(result["r"]) or -1 - 1e-9 <= result["r"] <= 1 + 1e-9


def test_correlation_is_pearsons_and_undefined_where_it_would_mean_nothing():
    random = np.random.default_rng(0)
    truth = random.random(30)
    predicted = truth + 0.2 * random.random(30)
    assert agreement(truth, predicted)["r"] == pytest.approx(stats.pearsonr(truth, predicted).statistic)
    assert math.isnan(agreement(truth[:2], predicted[:2])["r"])
    # three times .1 sum to .30000000000000004: the variance of equal numbers is not 0 in floats
    assert math.isnan(agreement(truth[:3], np.full(3, 0.1))["r"])
    assert math.isnan(agreement(np.full(3, 0.1), truth[:3])["r"])


def test_a_constant_offset_is_bias_without_spread():
    result = agreement(np.arange(5.0), np.arange(5.0) - 2)
    assert (result["bias"], result["sd"], result["loa_low"], result["loa_high"]) == (-2, 0, -2, -2)
    assert result["r"] == pytest.approx(1)


def test_measurements_that_do_not_pair_up_are_refused():
    with pytest.raises(EvaluationError, match=r"\(3,\) and \(1,\)"):
        agreement(np.ones(3), np.ones(1))
