"""Augmentation: geometry, tone, resolution and fake marks; for every class the same.

No function here gets a label or asks the mask for a class: benign and malignant lesions are changed in the same way,
so augmentation cannot write the class into the texture. Only ``augment.lesion_free`` looks where any lesion is.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bus_smp.data.augment_fused import FusedAugmentation

if TYPE_CHECKING:
    from bus_smp.config import AugmentSettings


class Augmentation:
    """Random change of one image and its mask, a pure function of the seed given with each call.

    Args:
        settings: fractions and probabilities; with ``enabled=False`` images pass unchanged.
            ``implementation`` chooses who computes it: the fused warp, or albumentations.
    """

    def __init__(self, settings: "AugmentSettings") -> None:
        self.settings = settings
        self._size = 0
        self._change: Any = None

    def __getstate__(self) -> dict:
        return {"settings": self.settings, "_size": 0, "_change": None}

    def __call__(
        self,
        image: np.ndarray,
        mask: np.ndarray,
        seed: Sequence[int],
        out: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return a changed copy, in new arrays or in ``out``.

        Args:
            image: uint8 (S, S, 3), RGB.
            mask: uint8 (S, S), class indices; stays within them (nearest neighbour, border 0).
            seed: non-negative integers, e.g. (seed, epoch, position). Nothing else decides the draw.
            out: contiguous arrays of the same kind, to be filled: saves a copy where a batch is made.
        """
        if out is None:
            out = np.empty(image.shape, np.uint8), np.empty(mask.shape, np.uint8)
        if not self.settings.enabled:
            np.copyto(out[0], image)
            np.copyto(out[1], mask)
            return out
        if self._change is None or self._size != len(image):
            self._change, self._size = _make(self.settings, len(image)), len(image)
        self._change(image, mask, seed, out)
        return out


def _make(settings: "AugmentSettings", size: int):
    if settings.implementation == "fused":
        return FusedAugmentation(settings, size)
    from bus_smp.data.augment_albumentations import AlbumentationsAugmentation

    return AlbumentationsAugmentation(settings, size)
