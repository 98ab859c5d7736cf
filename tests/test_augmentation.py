"""One image and its mask, changed at random: what holds for the fused augmentation and for its reference."""

import hashlib
import subprocess
import sys
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest

from bus_smp.config import AugmentSettings
from bus_smp.data.augment import Augmentation

SIZE = 48
STILL = {"rotate": 0, "scale": 0, "shift": 0, "brightness": 0, "contrast": 0, "elastic": 0}
STRONG = {"vertical_flip": 0.5, "elastic": 1.0}
# what only the fused augmentation has
MORE = {
    "zoom": 1.6, "aspect": 0.2, "gamma": 1.6, "depth_gain": 1, "blur": 0.5, "low_resolution": 0.5, "marks": 0.5,
    "lesion_free": 0.5,
}  # fmt: skip


def picture(seed: int = 0, size: int = SIZE) -> tuple[np.ndarray, np.ndarray]:
    """A smooth scan-like image, and a mask with both lesion classes."""
    rng = np.random.default_rng(seed)
    image = cv2.resize(
        rng.integers(40, 200, (8, 8, 3), dtype=np.uint8), (size, size), interpolation=cv2.INTER_NEAREST
    )
    mask = np.zeros((size, size), np.uint8)
    mask[size // 6 : size // 2, size // 5 : size // 2] = 1
    mask[size // 2 + 2 : -size // 6, size // 2 - 2 : -size // 5] = 2
    return image, mask


def same(first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.fixture(params=["fused", "albumentations"])
def augmented(request):
    """Makes an augmentation of the given settings, once for each implementation."""
    return lambda **settings: Augmentation(AugmentSettings(implementation=request.param, **settings))


def fused(**settings) -> Augmentation:
    return Augmentation(AugmentSettings(**settings))


def dark(**settings) -> Augmentation:
    """Changes nothing but what ``settings`` say."""
    return fused(**STILL, horizontal_flip=0, **settings)


def test_augmentation_is_the_same_for_benign_and_malignant(augmented):
    augment, (image, mask) = augmented(**STRONG), picture()
    exchange = np.array([0, 2, 1], np.uint8)
    for position in range(10):
        plain_image, plain_mask = augment(image, mask, (42, 0, position))
        other_image, other_mask = augment(image, exchange[mask], (42, 0, position))
        empty_image, empty_mask = augment(image, np.zeros_like(mask), (42, 0, position))
        assert np.array_equal(plain_image, other_image) and np.array_equal(plain_image, empty_image)
        assert np.array_equal(exchange[plain_mask], other_mask) and not empty_mask.any()


def test_augmentation_depends_only_on_its_seed(augmented):
    image, mask = picture()
    augment = augmented(**STRONG)
    first = [augment(image, mask, (42, 1, position)) for position in range(6)]
    np.random.seed(5)
    backwards = [augmented(**STRONG)(image, mask, (42, 1, position)) for position in reversed(range(6))]
    assert all(same(a, b) for a, b in zip(first, reversed(backwards), strict=True))


def test_another_seed_epoch_or_position_gives_another_picture(augmented):
    augment, (image, mask) = augmented(), picture()
    seeds = [(seed, epoch, position) for seed in (1, 2) for epoch in (0, 1, 2) for position in (0, 1, 2)]
    pictures = {augment(image, mask, seed)[0].tobytes() for seed in seeds}
    assert len(pictures) == len(seeds)


def test_masks_keep_their_alphabet_and_every_output_its_kind(augmented):
    augment, (image, mask) = augmented(**STRONG), picture()
    for position in range(30):
        changed_image, changed_mask = augment(image, mask, (0, position))
        assert changed_image.shape == image.shape and changed_mask.shape == mask.shape
        assert changed_image.dtype == changed_mask.dtype == np.uint8
        assert changed_image.flags.c_contiguous and changed_mask.flags.c_contiguous
        assert set(np.unique(changed_mask)) <= {0, 1, 2}


def test_the_mask_moves_with_the_image(augmented):
    augment = augmented(brightness=0, contrast=0, elastic=1.0, vertical_flip=0.5)
    _, mask = picture()
    image = np.repeat((mask > 0)[..., None], 3, 2).astype(np.uint8) * 255
    for position in range(20):
        changed_image, changed_mask = augment(image, mask, (7, position))
        differing = np.mean((changed_image[..., 0] > 127) != (changed_mask > 0))
        assert differing < 0.03  # pixels on the contour, where linear and nearest part


def test_what_comes_in_at_the_border_is_black_background(augmented):
    augment = augmented(**{**STILL, "shift": 0.4}, horizontal_flip=0)
    image = np.full((SIZE, SIZE, 3), 200, np.uint8)
    mask = np.full((SIZE, SIZE), 2, np.uint8)
    shares = []
    for position in range(10):
        changed_image, changed_mask = augment(image, mask, (0, position))
        assert np.array_equal(changed_image[..., 0] == 0, changed_mask == 0)
        shares.append((changed_mask == 0).mean())
    assert max(shares) > 0.2


def test_flips_are_drawn_independently(augmented):
    augment = augmented(**STILL, horizontal_flip=0.5, vertical_flip=0.5)
    image, mask = picture()
    views = {image[::v, ::h].tobytes(): (v, h) for v in (1, -1) for h in (1, -1)}
    seen = Counter(views[augment(image, mask, (42, 0, position))[0].tobytes()] for position in range(400))
    assert len(seen) == 4 and min(seen.values()) > 65  # 100 expected; 4 standard deviations below


def test_each_flip_has_its_own_probability(augmented):
    image, mask = picture()
    across = augmented(**STILL, horizontal_flip=1, vertical_flip=0)
    assert same(across(image, mask, (0,)), (image[:, ::-1], mask[:, ::-1]))
    over = augmented(**STILL, horizontal_flip=0, vertical_flip=1)
    assert same(over(image, mask, (0,)), (image[::-1], mask[::-1]))


def test_settings_at_zero_and_disabled_augmentation_change_nothing(augmented):
    image, mask = picture()
    for settings in (AugmentSettings(**STILL, horizontal_flip=0), AugmentSettings(enabled=False)):
        assert same(Augmentation(settings)(image, mask, (1, 2)), (image, mask))


def test_one_augmentation_serves_images_of_another_size(augmented):
    augment = augmented(**STRONG)
    image, mask = picture()
    small = augment(image[:32, :32], mask[:32, :32], (1,))
    augment(image, mask, (1,))
    assert same(augment(image[:32, :32], mask[:32, :32], (1,)), small)


@pytest.mark.parametrize("size", [32, 61, 100, 256, 300])
def test_at_any_size_nothing_moves_that_should_not(augmented, size):
    image, mask = picture(size=size)
    assert same(augmented(**STILL, horizontal_flip=1)(image, mask, (1,)), (image[:, ::-1], mask[:, ::-1]))


def test_images_can_be_filled_in_place_and_sources_stay(augmented):
    image, mask = picture()
    image.setflags(write=False)
    mask.setflags(write=False)
    for settings in ({"enabled": False}, STRONG):
        augment = augmented(**settings)
        batch, masks = np.full((3, SIZE, SIZE, 3), 7, np.uint8), np.full((3, SIZE, SIZE), 7, np.uint8)
        assert same(augment(image, mask, (4,), (batch[1], masks[1])), augment(image, mask, (4,)))
        assert same((batch[1], masks[1]), augment(image, mask, (4,)))
        assert (batch[[0, 2]] == 7).all() and (masks[[0, 2]] == 7).all()
    assert same((image, mask), picture())


def test_the_number_of_threads_changes_no_byte(augmented):
    image, mask = picture(size=256)
    augment, threads = augmented(**STRONG), cv2.getNumThreads()
    try:
        cv2.setNumThreads(1)
        alone = [augment(image, mask, (3, k)) for k in range(8)]
        cv2.setNumThreads(4)
        assert all(same(augment(image, mask, (3, k)), alone[k]) for k in range(8))
    finally:
        cv2.setNumThreads(threads)


@pytest.mark.parametrize("implementation", ["fused", pytest.param("albumentations", marks=pytest.mark.slow)])
def test_another_process_draws_the_same(implementation):
    augment = Augmentation(AugmentSettings(implementation=implementation, **STRONG))
    code = (
        "import sys, hashlib; sys.path.insert(0, sys.argv[1]); import test_augmentation as t\n"
        "s = t.AugmentSettings(implementation=sys.argv[2], **t.STRONG)\n"
        "print(hashlib.sha256(b''.join(a.tobytes() for a in t.Augmentation(s)(*t.picture(), (9, 2)))).hexdigest())"
    )
    here = hashlib.sha256(b"".join(a.tobytes() for a in augment(*picture(), (9, 2)))).hexdigest()
    there = subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parent), implementation],
        capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1],
    )  # fmt: skip
    assert there.stdout.strip() == here


def test_the_fused_augmentation_never_waits_for_albumentations():
    code = """
import sys, numpy as np
from bus_smp.config import AugmentSettings
from bus_smp.data.augment import Augmentation
Augmentation(AugmentSettings())(np.zeros((32, 32, 3), np.uint8), np.zeros((32, 32), np.uint8), (1,))
assert not {"albumentations", "torch"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


def test_the_further_changes_are_the_same_for_benign_and_malignant_and_depend_only_on_the_seed():
    augment, (image, mask) = fused(**STRONG, **MORE), picture()
    exchange = np.array([0, 2, 1], np.uint8)
    first = [augment(image, mask, (42, 0, position)) for position in range(20)]
    assert len({one.tobytes() for one, _ in first}) == 20
    for position in reversed(range(20)):
        other_image, other_mask = fused(**STRONG, **MORE)(image, exchange[mask], (42, 0, position))
        assert same((other_image, exchange[other_mask]), first[position])


def test_a_further_change_moves_no_draw_of_the_others():
    image, mask = picture()
    plain = [fused(marks=0)(image, mask, (1, position)) for position in range(12)]
    marked = [fused(marks=0.5)(image, mask, (1, position)) for position in range(12)]
    unchanged = [np.array_equal(one, other) for (one, _), (other, _) in zip(plain, marked, strict=True)]
    assert 2 < sum(unchanged) < 10
    assert all(np.array_equal(one, other) for (_, one), (_, other) in zip(plain, marked, strict=True))


def test_marks_are_drawn_on_the_image_and_never_in_the_mask():
    image, mask = picture()
    for position in range(20):
        changed, kept = dark(marks=1)(image, mask, (3, position))
        share = (changed != image).any(2).mean()
        assert 0 < share < 0.3 and np.array_equal(kept, mask)


def test_a_part_without_lesion_is_a_part_of_the_image_and_a_full_image_stays_whole():
    y, x = np.mgrid[:SIZE, :SIZE].astype(np.uint8)
    image, mask = np.dstack([5 * x, 5 * y, 0 * x]), np.zeros((SIZE, SIZE), np.uint8)
    mask[8:18, 10:22] = 1
    shares = []
    for position in range(40):
        part, empty = dark(lesion_free=1)(image, mask, (5, position))
        if empty.any():
            # no place was found
            assert same((part, empty), (image, mask))
            continue
        # the outermost pixels may be mixed with what is outside of the image
        left, right, top, bottom = (round(int(v) / 5) for v in (*part[1, [1, -2], 0], *part[[1, -2], 1, 1]))
        assert not mask[top + 1 : bottom, left + 1 : right].any()
        shares.append((right - left + 1) / SIZE)
    assert len(shares) > 20 and 0.3 < min(shares) < max(shares) < 0.75
    assert same(dark(lesion_free=1)(image, np.ones_like(mask), (5, 0)), (image, np.ones_like(mask)))


def test_zoom_aspect_gamma_and_depth_gain_span_the_stated_ranges():
    disc = np.zeros((100, 100), np.uint8)
    cv2.circle(disc, (50, 50), 20, 1, -1)
    grey = np.full((100, 100, 3), 90, np.uint8)

    def extents(**settings):
        masks = [dark(**settings)(grey, disc, (1, k))[1] for k in range(300)]
        return np.array([(mask.any(0).sum(), mask.any(1).sum()) for mask in masks]) / 41

    width, height = extents(zoom=1.6).T
    assert abs(width.min() - 1 / 1.6) < 0.03 and abs(width.max() - 1.6) < 0.06
    assert abs(np.median(width) - 1) < 0.1 and np.abs(width / height - 1).max() < 0.08
    width, height = extents(aspect=0.2).T
    assert abs((width / height).min() - 1 / 1.2) < 0.06 and abs((width / height).max() - 1.2) < 0.06
    assert np.abs(width * height - 1).max() < 0.1

    levels = [dark(gamma=1.6)(grey, disc, (1, k))[0][0, 0, 0] for k in range(300)]
    exponents = np.log(np.array(levels) / 255) / np.log(90 / 255)
    assert abs(exponents.min() - 1 / 1.6) < 0.03 and abs(exponents.max() - 1.6) < 0.03
    columns = np.array([dark(depth_gain=1)(grey, disc, (1, k))[0][:, 0, 0] for k in range(300)]).astype(float)
    gains = np.log(columns[:, -1] / columns[:, 0])
    assert abs(gains.min() + 1) < 0.05 and abs(gains.max() - 1) < 0.05
    assert np.abs(columns.mean(1) - 90).max() < 1


def test_blur_and_low_resolution_lose_detail_and_keep_the_mask():
    image, mask = picture()
    noise = np.random.default_rng(0).integers(0, 256, image.shape, np.uint8)

    def detail(one: np.ndarray) -> float:
        return float(cv2.Laplacian(one, cv2.CV_64F).std())

    for name in ("blur", "low_resolution"):
        changed = [dark(**{name: 0.5})(noise, mask, (1, k)) for k in range(60)]
        assert all(np.array_equal(kept, mask) for _, kept in changed)
        softer = [detail(one) < detail(noise) for one, _ in changed]
        assert 15 < sum(softer) < 45
        assert all(
            np.array_equal(one, noise) for (one, _), soft in zip(changed, softer, strict=True) if not soft
        )


def test_the_padding_of_a_letterbox_stays_padding_and_no_part_is_taken_of_it():
    image, mask = picture()
    mask[:10] = mask[-10:] = 255
    for position in range(30):
        _, changed = fused(**STRONG, **MORE)(image, mask, (1, position))
        assert set(np.unique(changed)) <= {0, 1, 2, 255}
        part = dark(lesion_free=1)(image, mask, (1, position))[1]
        assert np.array_equal(part, mask) or not part.any()


def test_the_reference_refuses_by_name_what_it_does_not_have():
    with pytest.raises(ValueError, match="implementation=albumentations has no zoom, marks; use fused"):
        AugmentSettings(implementation="albumentations", zoom=1.5, marks=0.1)
