import cv2
import numpy as np
import pytest

from bus_smp.measures.baselines import BASELINES, largest_dark_blob


def _scan(shape=(300, 420)):
    """Speckled tissue with a dark ellipse, a smaller one, and a dark band that leaves the scan."""
    random = np.random.default_rng(0)
    grey = np.full(shape, 150, np.uint8)
    truth = np.zeros(shape, np.uint8)
    cv2.ellipse(truth, (200, 150), (60, 35), 10, 0, 360, 1, -1)
    grey[truth == 1] = 40
    cv2.circle(grey, (340, 80), 12, 40, -1)
    grey[270:, 60:360] = 30
    grey = np.clip(grey * random.normal(1, 0.15, shape), 10, 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2), truth


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize(
    "image",
    [np.zeros((1, 1, 3), np.uint8), np.full((1, 1, 3), 90, np.uint8), np.full((60, 80, 3), 90, np.uint8),
     np.zeros((60, 80, 3), np.uint8), np.full((3, 900, 3), 90, np.uint8), np.zeros((0, 0, 3), np.uint8)],
    ids=lambda image: f"{image.shape[0]}x{image.shape[1]} of {image.max(initial=0)}",
)  # fmt: skip
def test_an_image_without_structure_gives_an_empty_mask_of_its_size(name, image):
    mask = BASELINES[name](image)
    assert mask.shape == image.shape[:2]
    assert mask.dtype == np.uint8
    assert not mask.any()


def test_all_background_predicts_nothing_on_a_scan_with_a_lesion():
    assert not BASELINES["all-background"](_scan()[0]).any()


@pytest.mark.parametrize("turns", range(4))
def test_the_blob_is_the_largest_dark_area_that_does_not_leave_the_scan_at_any_side(turns):
    image, truth = (np.rot90(array, turns) for array in _scan())
    mask = largest_dark_blob(image)
    assert set(np.unique(mask)) == {0, 1}
    overlap = 2 * ((mask == 1) & (truth == 1)).sum() / (int(mask.sum()) + int(truth.sum()))
    assert overlap > 0.8


def test_a_black_frame_is_not_taken_for_a_lesion():
    image, _ = _scan()
    framed = np.zeros((400, 520, 3), np.uint8)
    framed[50:350, 50:470] = image
    mask = largest_dark_blob(framed)
    assert mask[50:350, 50:470].sum() == mask.sum() > 0
    assert mask[:52].sum() == mask[:, :52].sum() == 0


def test_the_blob_is_the_same_every_time_and_the_image_is_unchanged():
    image, _ = _scan()
    before = image.copy()
    assert np.array_equal(largest_dark_blob(image), largest_dark_blob(image[:, ::-1][:, ::-1]))
    assert np.array_equal(image, before)
