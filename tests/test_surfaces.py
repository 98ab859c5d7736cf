import math

import numpy as np
import pytest
from hypothesis import given, settings
from masks import mask_pairs
from scipy import ndimage
from scipy.spatial.distance import cdist

from bus_smp.measures import surfaces
from bus_smp.measures.overlap import TARGETS
from bus_smp.measures.surfaces import SURFACE_COLUMNS, SURFACE_METRICS, surface_metrics, surface_row


def _oracle(truth, prediction):
    """By every distance between border pixels (of MONAI's kind: taken off by one erosion), with scipy."""
    outlines = [np.argwhere(mask & ~ndimage.binary_erosion(mask)) for mask in (truth, prediction)]
    if len(outlines[0]) == 0:
        return dict.fromkeys(SURFACE_METRICS, math.nan)
    if len(outlines[1]) == 0:
        return {"hd95": math.nan, "asd": math.nan, "surface_dice": 0}
    distances = cdist(*outlines)
    there, back = distances.min(axis=1), distances.min(axis=0)
    return {
        "hd95": max(np.percentile(there, 95), np.percentile(back, 95)),
        "asd": (there.sum() + back.sum()) / (len(there) + len(back)),
        "surface_dice": ((there <= 2).sum() + (back <= 2).sum()) / (len(there) + len(back)),
    }


def _pixels(*places, shape=(20, 20)):
    mask = np.zeros(shape, bool)
    for place in places:
        mask[place] = True
    return mask


@pytest.mark.parametrize("pairs_per_pixel", [0, 8, 10**9])
@settings(max_examples=100, deadline=None)
@given(pair=mask_pairs())
def test_all_three_agree_with_every_distance_between_border_pixels_in_both_ways_of_finding_it(
    pairs_per_pixel, pair
):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(surfaces, "_PAIRS_PER_PIXEL", pairs_per_pixel)
        truth, prediction = (mask > 0 for mask in pair)
        ours = surface_metrics(truth, prediction)
        assert ours == pytest.approx(_oracle(truth, prediction), rel=1e-12, abs=1e-12, nan_ok=True)


@settings(max_examples=150, deadline=None)
@given(pair=mask_pairs())
def test_a_row_holds_for_each_target_what_measuring_only_it_gives(pair):
    row = surface_row(*pair)
    assert tuple(row) == SURFACE_COLUMNS
    for target, classes in TARGETS.items():
        expected = _oracle(*(np.isin(mask, classes) for mask in pair))
        assert {m: row[f"{m}_{target}"] for m in SURFACE_METRICS} == pytest.approx(
            expected, rel=1e-12, abs=1e-12, nan_ok=True
        )


@settings(max_examples=100, deadline=None)
@given(pair=mask_pairs())
def test_distances_do_not_care_which_mask_is_the_reference_nor_where_in_the_image_both_lie(pair):
    truth, prediction = (mask > 0 for mask in pair)
    ours = surface_metrics(truth, prediction)
    moved = surface_metrics(*(np.pad(mask, ((7, 2), (0, 5))) for mask in (truth, prediction)))
    assert ours == pytest.approx(moved, nan_ok=True)
    if truth.any() and prediction.any():
        assert ours == pytest.approx(surface_metrics(prediction, truth))
        assert 0 <= ours["surface_dice"] <= 1
        assert ours["asd"] >= 0
        assert ours["hd95"] >= 0


def test_large_ragged_masks_agree_too():
    random = np.random.default_rng(0)
    truth, prediction = (
        random.random((150, 170)) < 0.3,
        ndimage.zoom(random.random((15, 17)) < 0.3, 10, order=0),
    )
    assert surface_metrics(truth, prediction) == pytest.approx(_oracle(truth, prediction), rel=1e-12)


def test_equal_masks_are_no_distance_apart():
    for mask in (_pixels((3, 4)), _pixels((slice(2, 9), slice(3, 5))), np.ones((4, 5), bool)):
        assert surface_metrics(mask, mask) == {"hd95": 0, "asd": 0, "surface_dice": 1}


def test_two_single_pixels_are_as_far_apart_as_their_centres():
    assert surface_metrics(_pixels((2, 3)), _pixels((5, 7))) == {"hd95": 5, "asd": 5, "surface_dice": 0}


@pytest.mark.parametrize(("step", "dice"), [((0, 2), 1), ((2, 0), 1), ((1, 1), 1), ((2, 1), 0), ((0, 3), 0)])
def test_the_tolerance_of_surface_dice_is_two_pixels_and_two_pixels_count(step, dice):
    there = _pixels((5 + step[0], 5 + step[1]))
    assert surface_metrics(_pixels((5, 5)), there)["surface_dice"] == dice


@pytest.mark.parametrize("pairs_per_pixel", [0, 8])
def test_hd95_is_the_larger_of_the_two_directed_percentiles(monkeypatch, pairs_per_pixel):
    monkeypatch.setattr(surfaces, "_PAIRS_PER_PIXEL", pairs_per_pixel)
    line = _pixels((0, slice(0, 20)))
    with_speck = line | _pixels((12, 0), (12, 1))
    # 22 pixels, of which two are 12 away: the 95th percentile lies at 0-based rank 19.95, within .95 of the first of them
    expected = {"hd95": 0.95 * 12, "asd": 24 / 42, "surface_dice": 40 / 42}
    assert surface_metrics(line, with_speck) == pytest.approx(expected)
    assert surface_metrics(with_speck, line) == pytest.approx(expected)


def test_the_edge_of_a_hole_is_surface_and_the_inside_is_not():
    ring, disc = np.ones((9, 9), bool), np.ones((9, 9), bool)
    ring[4, 4] = False
    # The hole adds its four neighbours to the ring's surface, 3 pixels from that of the disc.
    assert surface_metrics(disc, ring)["asd"] == pytest.approx(4 * 3 / (32 + 36))


def test_a_mask_that_fills_the_image_has_its_surface_at_the_border():
    assert surface_metrics(np.ones((5, 5), bool), _pixels((2, 2), shape=(5, 5)))["asd"] == pytest.approx(
        (4 * 8**0.5 + 4 * 2 + 8 * 5**0.5 + 2) / 17
    )


def test_nothing_is_made_up_where_a_mask_is_empty():
    empty, something = np.zeros((6, 6), np.uint8), np.ones((6, 6), np.uint8)
    assert all(math.isnan(value) for value in surface_row(empty, empty).values())
    assert all(math.isnan(value) for value in surface_row(empty, something).values())
    missed = surface_row(something, empty)
    assert (missed["surface_dice_lesion"], missed["surface_dice_benign"]) == (0, 0)
    assert math.isnan(missed["surface_dice_malignant"])
    assert all(math.isnan(missed[f"{m}_{target}"]) for m in ("hd95", "asd") for target in TARGETS)


def test_an_image_without_pixels_has_no_surface():
    nothing = np.zeros((0, 7), np.uint8)
    assert all(math.isnan(value) for value in surface_row(nothing, nothing).values())


def test_a_lesion_of_the_wrong_class_has_the_right_outline():
    row = surface_row(np.full((6, 6), 1, np.uint8), np.full((6, 6), 2, np.uint8))
    assert (row["hd95_lesion"], row["surface_dice_lesion"], row["surface_dice_benign"]) == (0, 1, 0)
