"""The fused augmentation draws from the distribution of its reference, albumentations' list, and from the stated one.

Thresholds: two samples that have the same distribution differ by more than these in one of 10,000 tests; the seeds are
fixed, so a test that passes passes always. Where pixels or places are tested together, the limit is that for all of them.
"""

import cv2
import numpy as np
import pytest
from scipy.stats import ks_2samp, kstest, norm

from bus_smp.config import AugmentSettings
from bus_smp.data.augment import Augmentation

SIZE = 64
DRAWS = 500
STILL = dict.fromkeys(("rotate", "scale", "shift", "brightness", "contrast", "elastic", "horizontal_flip"), 0)
GEOMETRY = {"brightness": 0, "contrast": 0}
WIDE = {**GEOMETRY, "rotate": 40, "scale": 0.4, "shift": 0.15, "vertical_flip": 0.5, "elastic": 0.6}
RARE = 1e-4

# Reaches the pixels where the reference's noise, blurred with a replicated border, is no longer even.
MARGIN = 16


def draw(image, mask, implementation, draws=DRAWS, seed=1, **settings) -> tuple[np.ndarray, np.ndarray]:
    """``draws`` changed images and masks, stacked."""
    augment = Augmentation(AugmentSettings(implementation=implementation, **settings))
    pairs = [augment(image, mask, (seed, k)) for k in range(draws)]
    return np.stack([image for image, _ in pairs]), np.stack([mask for _, mask in pairs])


def compass() -> tuple[np.ndarray, np.ndarray]:
    """An image whose colours say where each pixel came from: x and y in quarters of a pixel, and 255 inside."""
    y, x = np.mgrid[:SIZE, :SIZE]
    return np.dstack([4 * x, 4 * y, np.full_like(x, 255)]).astype(np.uint8), np.zeros((SIZE, SIZE), np.uint8)


def sources(images: np.ndarray, x: int, y: int) -> np.ndarray:
    """Where the pixel (x, y) of each compass image came from, float (draws, 2); without those from outside."""
    there = images[:, y, x]
    return there[there[:, 2] == 255, :2] / 4.0


def scan() -> tuple[np.ndarray, np.ndarray]:
    """A smooth image, brighter than black to its border, and a mask with a lesion of each class."""
    noise = np.random.default_rng(5).integers(40, 200, (5, 5, 3), dtype=np.uint8)
    mask = np.zeros((SIZE, SIZE), np.uint8)
    cv2.ellipse(mask, (24, 26), (11, 7), 30, 0, 360, 1, -1)
    cv2.ellipse(mask, (44, 42), (6, 9), 10, 0, 360, 2, -1)
    return cv2.resize(noise, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC), mask


def largest_z(one: np.ndarray, other: np.ndarray) -> float:
    """Largest difference of the means over all pixels, in standard errors."""
    error = np.sqrt(one.var(0) / len(one) + other.var(0) / len(other))
    return float((np.abs(one.mean(0) - other.mean(0)) / np.maximum(error, 1e-6)).max())


def same_moments(one: np.ndarray, other: np.ndarray) -> None:
    """Mean and variance image of two stacks of images agree within what chance allows for so many pixels."""
    one, other = one.astype(float), other.astype(float)
    limit = norm.isf(RARE / one[0].size / 2)
    assert largest_z(one, other) < limit
    assert largest_z((one - one.mean(0)) ** 2, (other - other.mean(0)) ** 2) < limit


# WIDE holds every step of the default, wider.
@pytest.mark.parametrize("settings", [pytest.param(GEOMETRY, marks=pytest.mark.slow, id="default"), WIDE])
def test_landmarks_come_from_the_same_places(settings):
    fused, reference = (draw(*compass(), name, 1500, **settings)[0] for name in ("fused", "albumentations"))
    for x, y in [(32, 32), (20, 28), (44, 24), (26, 46)]:
        one, other = sources(fused, x, y), sources(reference, x, y)
        assert ks_2samp([len(one) / 1500], [len(other) / 1500]).pvalue > RARE
        for axis in (0, 1):
            assert ks_2samp(one[:, axis], other[:, axis]).pvalue > RARE / 8
        # and together: x against y, as the angle ties them
        assert ks_2samp(one @ [0.6, 0.8], other @ [0.6, 0.8]).pvalue > RARE / 8


def test_rotation_scale_and_shift_span_the_ranges_that_the_settings_state():
    still = {**STILL, "rotate": 30, "scale": 0.3}
    images, _ = draw(*compass(), "fused", 1000, **still)
    step = (sources(images, 42, 32) - sources(images, 22, 32)) / 20  # where a step to the right leads
    angles, scales = np.degrees(np.arctan2(step[:, 1], step[:, 0])), 1 / np.hypot(*step.T)
    assert kstest(angles, "uniform", args=(-30, 60)).pvalue > RARE
    assert kstest(scales, "uniform", args=(0.7, 0.6)).pvalue > RARE
    images, _ = draw(*compass(), "fused", 1000, **{**STILL, "shift": 0.2})
    shift = 32 - sources(images, 32, 32)
    assert np.array_equal(np.unique(shift), np.arange(-12, 13))  # 0.2 x 64 = 12.8, and whole pixels
    assert np.corrcoef(shift.T)[0, 1] < 4 / np.sqrt(1000)


@pytest.mark.parametrize("name", ["fused", "albumentations"])
def test_the_elastic_field_has_the_stated_strength_and_smoothness(name):
    images, _ = draw(*compass(), name, 1500, **{**STILL, "elastic": 1})
    middle = sources(images, 32, 32) - 32
    rms, length = 0.008 * SIZE, 0.08 * SIZE
    bound = 4 * rms / np.sqrt(2 * len(middle))
    assert np.abs(middle.mean(0)).max() < 4 * rms / np.sqrt(len(middle))
    assert (
        np.abs(np.sqrt(middle.var(0) - 1 / 16 / 12) - rms).max() < bound
    )  # less what rounding to quarters adds
    for distance in (4, 8, 12):
        other = sources(images, 32 + distance, 32) - [32 + distance, 32]
        expected = np.exp(-((distance / length) ** 2) / 4)  # of white noise blurred by a Gaussian
        assert abs(np.mean(middle * other) / rms**2 - expected) < 0.1
    assert abs(np.corrcoef(middle.T)[0, 1]) < 4 / np.sqrt(len(middle))


def test_the_fused_field_is_as_strong_at_the_border_as_in_the_middle():
    images, _ = draw(*compass(), "fused", 1500, **{**STILL, "elastic": 1})
    for x, y in [(32, 3), (3, 32), (60, 32), (32, 60), (3, 60)]:
        moved = sources(images, x, y) - [x, y]
        assert len(moved) > 1450 and np.abs(moved.std(0) - 0.008 * SIZE).max() < 0.06


@pytest.mark.parametrize("name", ["fused", "albumentations"])
def test_the_elastic_field_comes_as_often_as_stated(name):
    images, _ = draw(*compass(), name, 1000, **{**STILL, "elastic": 0.3})
    moved = (images != compass()[0]).any((1, 2, 3)).mean()
    assert abs(moved - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 1000)


def test_mean_and_variance_images_agree_up_to_the_border_where_nothing_is_elastic():
    settings = {"elastic": 0.0, "vertical_flip": 0.2}
    fused, reference = (draw(*scan(), name, **settings) for name in ("fused", "albumentations"))
    same_moments(fused[0], reference[0])
    for index in (1, 2):
        same_moments(fused[1] == index, reference[1] == index)


def test_mean_and_variance_images_agree_with_everything_on():
    fused, reference = (draw(*scan(), name) for name in ("fused", "albumentations"))
    inside = np.s_[:, MARGIN:-MARGIN, MARGIN:-MARGIN]
    same_moments(fused[0][inside], reference[0][inside])
    for index in (1, 2):
        same_moments(fused[1][inside] == index, reference[1][inside] == index)


@pytest.mark.parametrize("settings", [{}, WIDE], ids=["default", "wide"])
def test_lesions_keep_their_alphabet_and_the_distribution_of_their_areas(settings):
    fused, reference = (draw(*scan(), name, **settings)[1] for name in ("fused", "albumentations"))
    assert set(np.unique(fused)) == set(np.unique(reference)) == {0, 1, 2}
    for index in (1, 2):
        areas = [(masks == index).sum((1, 2)) for masks in (fused, reference)]
        assert ks_2samp(*areas).pvalue > RARE


def test_as_much_black_comes_in_at_the_border():
    image, mask = np.full((SIZE, SIZE, 3), 200, np.uint8), np.ones((SIZE, SIZE), np.uint8)
    shares = [
        (draw(image, mask, name, **{**GEOMETRY, "elastic": 0})[1] == 0).mean((1, 2))
        for name in ("fused", "albumentations")
    ]
    assert ks_2samp(*shares).pvalue > RARE
    # The reference cuts the deformed image at the frame of the one before; the fused one looks behind it.
    fused, reference = (
        (draw(image, mask, name, **{**GEOMETRY, "elastic": 1})[1] == 0).mean((1, 2))
        for name in ("fused", "albumentations")
    )
    assert fused.mean() < reference.mean()
    assert ks_2samp(fused, shares[0]).statistic < 0.1


def test_brightness_and_contrast_have_the_same_distribution_and_are_relative_to_the_mean():
    image, mask = scan()
    image[:32], image[32:] = 60, 140  # mean 100
    settings = {**STILL, "brightness": 0.2, "contrast": 0.3}
    pairs = [
        draw(image, mask, name, 1000, **settings)[0][:, [0, -1], 0, 0] for name in ("fused", "albumentations")
    ]
    (factors, offsets), (other_factors, other_offsets) = (
        ((high - low) / 80, low - 60 * (high - low) / 80)
        for low, high in (pair.T.astype(float) for pair in pairs)
    )
    assert ks_2samp(factors, other_factors).pvalue > RARE and ks_2samp(offsets, other_offsets).pvalue > RARE
    assert (
        kstest(factors + np.random.default_rng(0).uniform(-0.5, 0.5, 1000) / 80, "uniform", (0.7, 0.6)).pvalue
        > RARE
    )
    assert offsets.min() > -22 and offsets.max() < 22 and offsets.std() > 10
    for pair in pairs:  # 256 levels in, at most 256 out: a table, the same for all pixels of one image
        assert pair.min() >= 60 * 0.7 - 21 and pair.max() <= 140 * 1.3 + 20


def test_draws_are_independent():
    """Flips, angle, scale and both shifts, read off the images that all of them changed."""
    image, _ = compass()
    settings = {**GEOMETRY, "rotate": 10, "scale": 0.1, "elastic": 0, "vertical_flip": 0.5}
    images, _ = draw(image, np.zeros((SIZE, SIZE), np.uint8), "fused", 1500, **settings)
    a, b, c = (sources(images, x, y) for x, y in [(22, 32), (42, 32), (32, 42)])
    right, down = (b - a) / 20, (c - (a + b) / 2) / 10
    across, over = np.sign(right[:, 0]), np.sign(down[:, 1])
    numbers = [
        across,
        over,
        np.arctan2(over * right[:, 1], across * right[:, 0]),
        np.hypot(*right.T),
        across * ((a + b)[:, 0] / 2 - 31.5),
        over * ((a + b)[:, 1] / 2 - 31.5),
    ]
    tied = np.corrcoef(numbers) - np.eye(len(numbers))
    assert np.abs(tied).max() < 4.5 / np.sqrt(1500)
