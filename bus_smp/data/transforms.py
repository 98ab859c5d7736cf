"""Augmentation: rotation, scale, shift, flips, elastic, brightness and contrast; for every class the same.

The only file that imports albumentations. No function here is ever told a label, and no transform
looks at the mask: benign and malignant lesions are changed in the same way, so augmentation cannot
write the class into the texture.
"""

import os
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

import cv2
import numpy as np

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # otherwise the import asks PyPI for a newer version
import albumentations as A  # noqa: E402

if TYPE_CHECKING:
    from bus_smp.config import AugmentSettings

# Elastic deformation, as fractions of the image's side: typical (root mean square) displacement,
# and the length over which it varies. Smooth on the scale of a lesion, as tissue under a pressed
# probe: contours bend, speckle and margins stay.
ELASTIC_DISPLACEMENT = 0.008
ELASTIC_SMOOTHNESS = 0.08


def _elastic(size: int, probability: float) -> A.ElasticTransform:
    """albumentations blurs uniform noise in -1..1 with a Gaussian of ``sigma`` pixels and multiplies by ``alpha``.

    Blurring white noise leaves 1 / (2 sqrt(pi) sigma) of its standard deviation (1 / sqrt 3), which
    gives the ``alpha`` for a wanted displacement.
    """
    sigma = ELASTIC_SMOOTHNESS * size
    alpha = ELASTIC_DISPLACEMENT * size * np.sqrt(3) * 2 * np.sqrt(np.pi) * sigma
    return A.ElasticTransform(
        alpha=float(alpha),
        sigma=float(sigma),
        noise_distribution="uniform",
        interpolation=cv2.INTER_LINEAR,
        mask_interpolation=cv2.INTER_NEAREST,
        border_mode=cv2.BORDER_CONSTANT,
        fill=0,
        fill_mask=0,
        p=probability,
    )


def _pipeline(settings: "AugmentSettings", size: int) -> A.Compose:
    return A.Compose(
        [
            A.HorizontalFlip(p=settings.horizontal_flip),
            A.VerticalFlip(p=settings.vertical_flip),
            A.Affine(
                rotate=(-settings.rotate, settings.rotate),
                scale=(1 - settings.scale, 1 + settings.scale),
                keep_ratio=True,
                translate_percent=(-settings.shift, settings.shift),
                interpolation=cv2.INTER_LINEAR,
                mask_interpolation=cv2.INTER_NEAREST,
                border_mode=cv2.BORDER_CONSTANT,
                fill=0,
                fill_mask=0,
                p=1.0,
            ),
            _elastic(size, settings.elastic),
            A.RandomBrightnessContrast(
                brightness_limit=settings.brightness,
                contrast_limit=settings.contrast,
                brightness_by_max=False,  # relative to the image's mean: scans are dark, 20 % of 255 would drown them
                p=1.0,
            ),
        ]
    )


class Augmentation:
    """Random change of one image and its mask, a pure function of the seed given with each call.

    Args:
        settings: fractions and probabilities; with ``enabled=False`` images pass unchanged.
    """

    def __init__(self, settings: "AugmentSettings") -> None:
        self.settings = settings
        self._size = 0
        self._compose: A.Compose | None = None

    def __getstate__(self) -> dict:
        return {"settings": self.settings, "_size": 0, "_compose": None}

    def __call__(
        self, image: np.ndarray, mask: np.ndarray, seed: Sequence[int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return a changed copy.

        Args:
            image: uint8 (S, S, 3), RGB.
            mask: uint8 (S, S), class indices; stays within them (nearest neighbour, border 0).
            seed: non-negative integers, e.g. (seed, epoch, position). Nothing else decides the draw.
        """
        if not self.settings.enabled:
            return image.copy(), mask.copy()
        size = max(image.shape[:2])
        if self._compose is None or self._size != size:
            self._compose, self._size = _pipeline(self.settings, size), size
        # Two streams, because albumentations draws from numpy and from random. Not A.Compose(seed=...):
        # that gives every transform a twin of one generator, so that all flips fire together.
        numpy_seed, python_seed = np.random.SeedSequence(list(seed)).generate_state(2, np.uint64)
        self._compose.set_random_state(np.random.default_rng(numpy_seed), random.Random(int(python_seed)))
        changed = self._compose(image=image, mask=mask)
        return np.ascontiguousarray(changed["image"]), np.ascontiguousarray(changed["mask"])
