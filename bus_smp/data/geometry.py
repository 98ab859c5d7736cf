"""How an image comes onto the network's square grid and back: stretched or letterboxed, in colour or in grey.

The only place that knows both ways. Nothing is cropped, so every native pixel is predicted, and every metric is taken
at native size. The padding of a letterbox is black, as a scan is outside of its sector and as what augmentation
brings in. It is cut off before a prediction is enlarged, so no value in it has an effect.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from bus_smp.classes import IGNORED
from bus_smp.data.images import resize_image, resize_mask


@dataclass(frozen=True)
class Geometry:
    """The network's grid and the way onto it.

    Attributes:
        size: height and width of the grid in pixels.
        letterbox: whether the longest side becomes ``size`` and the rest of the square is padding; else the image is
            stretched to the square.
        grey: whether all three channels become their mean.
    """

    size: int
    letterbox: bool = False
    grey: bool = False

    @classmethod
    def of(cls, about: Mapping[str, Any]) -> "Geometry":
        """The geometry in a checkpoint's header or in the settings ``data``; older headers have only ``size``."""
        return cls(about["size"], about.get("geometry") == "letterbox", bool(about.get("grey")))

    def extent(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Height and width in pixels on the grid of an image of ``shape`` (H, W, ...)."""
        if not self.letterbox:
            return self.size, self.size
        longest = max(shape[:2])
        height, width = (max(1, round(side * self.size / longest)) for side in shape[:2])
        return height, width

    def place(self, shape: tuple[int, ...]) -> tuple[slice, slice]:
        """Rows and columns of the grid that an image of ``shape`` (H, W, ...) takes: the middle."""
        height, width = self.extent(shape)
        top, left = (self.size - height) // 2, (self.size - width) // 2
        return slice(top, top + height), slice(left, left + width)

    def fit(self, image: np.ndarray) -> np.ndarray:
        """Resize uint8 RGB (H, W, 3) to its extent, without the padding; what is returned fits as it is."""
        if self.grey:
            image = np.repeat(cv2.transform(image, np.full((1, 3), 1 / 3))[..., None], 3, axis=2)
        return resize_image(image, self.extent(image.shape))

    def image(self, image: np.ndarray) -> np.ndarray:
        """Return uint8 RGB (H, W, 3) on the grid: (S, S, 3)."""
        return self._padded(self.fit(image), image.shape, 0)

    def mask(self, mask: np.ndarray) -> np.ndarray:
        """Return class indices uint8 (H, W) on the grid: (S, S), ``IGNORED`` in the padding."""
        return self._padded(resize_mask(mask, self.extent(mask.shape)), mask.shape, IGNORED)

    def cut(self, grid: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Return the part of (C, S, S) that belongs to an image of ``shape`` (H, W, ...): (C, h, w)."""
        return np.ascontiguousarray(grid[(..., *self.place(shape))])

    def _padded(self, part: np.ndarray, shape: tuple[int, ...], value: int) -> np.ndarray:
        if not self.letterbox:
            return part
        grid = np.full((self.size, self.size, *part.shape[2:]), value, np.uint8)
        grid[self.place(shape)] = part
        return grid
