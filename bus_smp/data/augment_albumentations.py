"""The same augmentation as albumentations' list of transforms: the reference that the fused one is held against.

The only file that imports albumentations, which takes 3 s; so it is imported where a run asks for it, and by tests.
It resamples twice where an image is deformed, and its elastic field is 4 times as strong at the very border
(18 times in the corners) as in the image, because albumentations blurs its noise with a replicated border.
"""

import os
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

import cv2
import numpy as np

# otherwise the import asks PyPI for a newer version
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
import albumentations as A  # noqa: E402

from bus_smp.data.augment_fused import ELASTIC_DISPLACEMENT, ELASTIC_SMOOTHNESS  # noqa: E402

if TYPE_CHECKING:
    from bus_smp.config import AugmentSettings


class AlbumentationsAugmentation:
    """Random change of square images of one size, a pure function of the seed given with each call.

    Args:
        settings: fractions and probabilities.
        size: side of the images in pixels.
    """

    def __init__(self, settings: "AugmentSettings", size: int) -> None:
        border = {
            "interpolation": cv2.INTER_LINEAR,
            "mask_interpolation": cv2.INTER_NEAREST,
            "border_mode": cv2.BORDER_CONSTANT,
            "fill": 0,
            "fill_mask": 0,
        }
        # albumentations blurs uniform noise in -1..1 with a Gaussian of ``sigma`` pixels and multiplies by
        # ``alpha``. Blurring leaves 1 / (2 sqrt(pi) sigma) of its standard deviation (1 / sqrt 3), which
        # gives the ``alpha`` for a wanted displacement.
        sigma = ELASTIC_SMOOTHNESS * size
        alpha = ELASTIC_DISPLACEMENT * size * np.sqrt(3) * 2 * np.sqrt(np.pi) * sigma
        self._compose = A.Compose(
            [
                A.HorizontalFlip(p=settings.horizontal_flip),
                A.VerticalFlip(p=settings.vertical_flip),
                A.Affine(
                    rotate=(-settings.rotate, settings.rotate),
                    scale=(1 - settings.scale, 1 + settings.scale),
                    keep_ratio=True,
                    translate_percent=(-settings.shift, settings.shift),
                    p=1.0,
                    **border,
                ),
                A.ElasticTransform(
                    alpha=float(alpha),
                    sigma=float(sigma),
                    noise_distribution="uniform",
                    p=settings.elastic,
                    **border,
                ),
                A.RandomBrightnessContrast(
                    brightness_limit=settings.brightness,
                    contrast_limit=settings.contrast,
                    brightness_by_max=False,  # relative to the image's mean, as in the fused one
                    p=1.0,
                ),
            ]
        )

    def __call__(
        self, image: np.ndarray, mask: np.ndarray, seed: Sequence[int], out: tuple[np.ndarray, np.ndarray]
    ) -> None:
        """Write the changed image and mask into ``out``; arguments as in ``Augmentation``."""
        # Two streams, because albumentations draws from numpy and from random. Not A.Compose(seed=...):
        # that gives every transform a twin of one generator, so that all flips fire together.
        numpy_seed, python_seed = np.random.SeedSequence(list(seed)).generate_state(2, np.uint64)
        self._compose.set_random_state(np.random.default_rng(numpy_seed), random.Random(int(python_seed)))
        changed = self._compose(image=image, mask=mask)
        np.copyto(out[0], changed["image"])
        np.copyto(out[1], changed["mask"])
