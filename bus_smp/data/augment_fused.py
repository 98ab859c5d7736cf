"""All of the augmentation as one warp and one table: each pixel is computed once, from the cached image.

Flips, rotation, scale, zoom, aspect, shift and elastic deformation are added up in coordinates, on a coarse grid that is
then stretched to the image's size, and the image is resampled once. Gamma, brightness and contrast are one 256-entry table.
"""

import hashlib
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from bus_smp.data.marks import NUMBERS as MARK_NUMBERS
from bus_smp.data.marks import draw_marks

if TYPE_CHECKING:
    from bus_smp.config import AugmentSettings

# Elastic deformation, as fractions of the image's side: typical (root mean square) displacement in x and in y,
# and the length over which it varies. Smooth on the scale of a lesion, as tissue under a pressed
# probe: contours bend, speckle and margins stay.
ELASTIC_DISPLACEMENT = 0.008
ELASTIC_SMOOTHNESS = 0.08

# Cells along one side of the coarse grid. A cell is then 0.4 of ELASTIC_SMOOTHNESS, over which the
# field is a straight line to 0.03 px at 256 px; the flips and the affine part are straight anyway.
_CELLS = 32

# What a call draws before the elastic field: nine numbers, of four bytes each.
_NUMBERS = 9

# What the settings that are off by default draw, from a stream of their own: they change no other draw.
_MORE_NUMBERS = 10

# Largest sigma of the blur, in pixels.
_BLUR = 1.0

# Least and greatest side of a part without a lesion, as a share of the image's.
_PART = (0.35, 0.7)


class FusedAugmentation:
    """Random change of square images of one size, a pure function of the seed given with each call.

    Keeps its working memory between calls, so each thread needs its own.

    Args:
        settings: fractions and probabilities.
        size: side of the images in pixels.
    """

    def __init__(self, settings: "AugmentSettings", size: int) -> None:
        self._settings, self._size = settings, size
        cell = max(1, size // _CELLS)
        # One node outside of each border, so that every pixel lies between nodes.
        count = -(-size // cell) + 2
        places = (np.arange(count, dtype=np.float32) - 0.5) * cell - 0.5
        self._nodes = np.ascontiguousarray(np.stack(np.meshgrid(places, places), axis=-1))  # (x, y)
        self._map = np.empty((count * cell, count * cell, 2), np.float32)
        self._map_inside = self._map[cell : cell + size, cell : cell + size]

        self._sigma = ELASTIC_SMOOTHNESS * size / cell
        # noise around the grid too, so that the field is as strong at the border as in the middle
        self._margin = math.ceil(3 * self._sigma)
        self._noise_shape = (count + 2 * self._margin, count + 2 * self._margin, 2)
        # Blurring white noise leaves 1 / (2 sqrt(pi) sigma) of its standard deviation, which for a byte is this:
        byte = math.sqrt((256**2 - 1) / 12)
        self._strength = np.float32(ELASTIC_DISPLACEMENT * size * 2 * math.sqrt(math.pi) * self._sigma / byte)

        # OpenCV warps four channels in half the time of three
        self._before = np.empty((size, size, 4), np.uint8)
        self._after = np.empty((size, size, 4), np.uint8)
        self._grey_levels = np.arange(256, dtype=np.float32)
        self._depth = ((np.arange(size, dtype=np.float32) + 0.5) / size - 0.5)[:, None]
        self._gain = np.empty((size, 3 * size), np.float32)

    def __call__(
        self, image: np.ndarray, mask: np.ndarray, seed: Sequence[int], out: tuple[np.ndarray, np.ndarray]
    ) -> None:
        """Write the changed image and mask into ``out``; arguments as in ``Augmentation``."""
        size = self._size
        # A hash as generator: for so few numbers cheaper than seeding one, and the same in any version of numpy.
        stream = _stream(seed)
        angle, scale, right, down, across, over, elastic, contrast, brightness = _numbers(stream, _NUMBERS)
        more = _stream(seed, "more")
        zoom, aspect, gamma, gain, marked, part, *resolution = _numbers(more, _MORE_NUMBERS)
        empty = None
        if part < self._settings.lesion_free:
            empty = _find_empty_part(mask, *_numbers(_stream(seed, "part"), 2))
        if empty is not None:
            # exactly that part, so that no lesion comes in from around it
            scale = zoom = right = down = 0.5

        nodes = self._nodes
        if elastic < self._settings.elastic:
            nodes = nodes + self._displacement(stream)
        matrix = self._matrix(angle, scale, right, down, across, over, zoom, aspect)
        if empty is not None:
            x, y, share = empty
            matrix *= share
            matrix[:, 2] += np.array([x, y]) + share / 2 - 0.5
        width = self._map.shape[0]
        cv2.resize(cv2.transform(nodes, matrix), (width, width), dst=self._map)  # linear

        black = {"borderMode": cv2.BORDER_CONSTANT, "borderValue": 0}
        new_image, new_mask = out
        cv2.cvtColor(image, cv2.COLOR_RGB2RGBA, dst=self._before)
        cv2.remap(self._before, self._map_inside, None, cv2.INTER_LINEAR, dst=self._after, **black)
        cv2.cvtColor(self._after, cv2.COLOR_RGBA2RGB, dst=new_image)
        cv2.remap(mask, self._map_inside, None, cv2.INTER_NEAREST, dst=new_mask, **black)
        if marked < self._settings.marks:
            draw_marks(new_image, _numbers(_stream(seed, "marks"), MARK_NUMBERS))
        self._lose_resolution(new_image, *resolution)

        # one channel: faster, and one mean for all colours
        rows = new_image.reshape(size, -1)
        if self._settings.depth_gain:
            gains = np.exp(self._depth * (self._settings.depth_gain * (2 * gain - 1)))
            # the mean stays, as otherwise much of a bright image would become white
            means = cv2.reduce(rows, 1, cv2.REDUCE_AVG, dtype=cv2.CV_32F)
            self._gain[:] = gains * (means.sum() / max((means * gains).sum(), 1.0))
            cv2.multiply(rows, self._gain, dst=rows, dtype=cv2.CV_8U)
        mean = cv2.sumElems(rows)[0] / rows.size
        factor = 1 + self._settings.contrast * (2 * contrast - 1)
        # relative to the image's mean: scans are dark, 20 % of 255 would drown them
        offset = self._settings.brightness * (2 * brightness - 1) * mean
        levels: np.ndarray = self._grey_levels
        if self._settings.gamma > 1:
            levels = 255 * (levels / 255) ** np.float32(self._settings.gamma ** (2 * gamma - 1))
        table = np.clip(levels * np.float32(factor) + np.float32(offset), 0, 255).astype(np.uint8)
        cv2.LUT(rows, table, dst=rows)

    def _lose_resolution(
        self, image: np.ndarray, low: float, share: float, blurred: float, sigma: float
    ) -> None:
        """Shrink and enlarge, and blur, in place; arguments in 0..1."""
        size = self._size
        if low < self._settings.low_resolution:
            side = round(size * (0.5 + 0.5 * share))
            small = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)
            cv2.resize(small, (size, size), dst=image, interpolation=cv2.INTER_LINEAR)
        if blurred < self._settings.blur:
            # OpenCV takes a sigma of 0 for one of its own choice
            cv2.GaussianBlur(image, (0, 0), max(_BLUR * sigma, 0.01), dst=image)

    def _displacement(self, stream: Any) -> np.ndarray:
        """Smooth random displacement of the nodes in pixels, float32 (count, count, 2): white noise, blurred."""
        start = 4 * _NUMBERS
        noise = np.frombuffer(stream.digest(start + math.prod(self._noise_shape)), np.uint8, offset=start)
        white = (noise.reshape(self._noise_shape) - np.float32(127.5)) * self._strength
        field = cv2.GaussianBlur(white, (0, 0), self._sigma)
        return field[self._margin : -self._margin, self._margin : -self._margin]

    def _matrix(
        self,
        angle: float,
        scale: float,
        right: float,
        down: float,
        across: float,
        over: float,
        zoom: float,
        aspect: float,
    ) -> np.ndarray:
        """Where in the source a pixel comes from, (2, 3); arguments in 0..1.

        The image is flipped, then scaled and turned about its centre, then shifted by whole pixels; this is the way back.
        """
        settings, centre = self._settings, (self._size - 1) / 2
        radians = math.radians(settings.rotate * (2 * angle - 1))
        scale = (1 + settings.scale * (2 * scale - 1)) * settings.zoom ** (2 * zoom - 1)
        cos, sin = math.cos(radians) / scale, math.sin(radians) / scale
        # half of it to each side, so that the area stays
        wider = (1 + settings.aspect) ** (aspect - 0.5)
        x = centre + int(settings.shift * (2 * right - 1) * self._size)
        y = centre + int(settings.shift * (2 * down - 1) * self._size)
        flip_x = (-1.0 if across < settings.horizontal_flip else 1.0) / wider
        flip_y = (-1.0 if over < settings.vertical_flip else 1.0) * wider
        return np.array(
            [
                [flip_x * cos, -flip_x * sin, centre - flip_x * (cos * x - sin * y)],
                [flip_y * sin, flip_y * cos, centre - flip_y * (sin * x + cos * y)],
            ]
        )


def _find_empty_part(mask: np.ndarray, share: float, chosen: float) -> tuple[int, int, float] | None:
    """A square without lesion and padding: its left and upper pixel, and its side as a share of the image's; None: there is none.

    Args:
        share, chosen: in 0..1, for the side and for one of the places.
    """
    share = _PART[0] + (_PART[1] - _PART[0]) * share
    side = math.ceil(share * len(mask))
    sums = cv2.integral(np.minimum(mask, 1))
    inside = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
    places = np.flatnonzero(inside == 0)
    if not len(places):
        return None
    y, x = divmod(int(places[int(chosen * len(places))]), inside.shape[1])
    return x, y, share


def _stream(seed: Sequence[int], *what: str) -> Any:
    return hashlib.shake_128(",".join(map(str, (*seed, *what))).encode())


def _numbers(stream: Any, count: int) -> list[float]:
    """The first numbers of a stream, even in 0..1, of four bytes each."""
    return (np.frombuffer(stream.digest(4 * count), "<u4") / 2.0**32).tolist()
