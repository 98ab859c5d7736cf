"""Fake marks of a scanner's user, drawn on images of every class: calipers, dotted lines, text, corner boxes, frames.

On BUS-UCLM half of the images with a lesion have such marks and nearly none without, so a network can learn that a
caliper means a lesion. Drawn at random places, on normal images too, they mean nothing. Shapes and colours are those
of real marks in BUS-UCLM and BUSI; the mask is neither read nor changed.
"""

from collections.abc import Iterator, Sequence

import cv2
import numpy as np

# Numbers that one call takes at most.
NUMBERS = 32

_COLOURS = ((235, 215, 90), (120, 225, 170), (235, 235, 235), (200, 200, 130))
_WORDS = (
    "LEFT BREAST", "RIGHT BREAST", "LT AXILLA", "rt axilla", "AREA PALPABLE", "LOQ", "UIQ", "10:00 N3", "RAD", "ANTI-RAD",
    "1 D 1.24 cm", "2 D 0.87 cm", "D1 8.3 mm", "Vol 1.2 cc",
)  # fmt: skip
_LILAC, _INK = (148, 140, 185), (70, 66, 95)


def draw_marks(image: np.ndarray, numbers: Sequence[float]) -> None:
    """Draw some marks into uint8 RGB (S, S, 3), in place; the same for the same numbers.

    Args:
        numbers: ``NUMBERS`` of them, even in 0..1, which decide everything.
    """
    draw = iter(numbers)
    # at least calipers or text
    kind = next(draw)
    if kind < 0.7:
        _calipers(image, draw)
    if kind > 0.6:
        _text(image, draw)
    if next(draw) < 0.4:
        _corner_box(image, right=next(draw) < 0.7)
    if next(draw) < 0.2:
        _frame(image, draw)


def _between(draw: Iterator[float], low: float, high: float) -> float:
    return low + (high - low) * next(draw)


def _colour(draw: Iterator[float]) -> tuple[int, ...]:
    """One of the colours, rather dim or bright."""
    chosen, share = _COLOURS[int(next(draw) * len(_COLOURS))], _between(draw, 0.5, 1)
    return tuple(round(value * share) for value in chosen)


def _calipers(image: np.ndarray, draw: Iterator[float]) -> None:
    """One pair of crosses or two at right angles, in some cases with a dotted line between them."""
    size = len(image)
    colour, dotted = _colour(draw), next(draw) < 0.4
    centre = np.array([_between(draw, 0.2, 0.8), _between(draw, 0.15, 0.75)]) * size
    angle, pairs = _between(draw, 0, np.pi), 1 + (next(draw) < 0.5)
    # upright or tilted
    tilted = next(draw) < 0.4
    for pair in range(pairs):
        half = _between(draw, 0.04, 0.22) * size
        direction = angle + pair * np.pi / 2
        step = half * np.array([np.cos(direction), np.sin(direction)])
        ends = centre - step, centre + step
        for end in ends:
            _cross(image, end, colour, tilted != bool(pair))
        if dotted:
            count = max(2, int(half * 2 * 256 / size / 6))
            for share in np.linspace(0, 1, count + 1)[1:-1]:
                x, y = np.rint(ends[0] * (1 - share) + ends[1] * share).astype(int).tolist()
                cv2.circle(image, (x, y), 0, colour, max(1, round(size / 300)))


def _cross(image: np.ndarray, place: np.ndarray, colour: tuple[int, ...], tilted: bool) -> None:
    kind = cv2.MARKER_TILTED_CROSS if tilted else cv2.MARKER_CROSS
    size = len(image)
    x, y = np.rint(place).astype(int).tolist()
    cv2.drawMarker(image, (x, y), colour, kind, max(4, round(size / 36)), max(1, round(size / 400)))


def _text(image: np.ndarray, draw: Iterator[float]) -> None:
    size, words = len(image), _WORDS[int(next(draw) * len(_WORDS))]
    place = round(_between(draw, 0.03, 0.6) * size), round(_between(draw, 0.1, 0.97) * size)
    height = _between(draw, 0.3, 0.45) * size / 256
    colour = _colour(draw)
    cv2.putText(
        image, words, place, cv2.FONT_HERSHEY_SIMPLEX, height, colour, max(1, round(size / 400)), cv2.LINE_AA
    )


def _corner_box(image: np.ndarray, right: bool) -> None:
    """The sketch of a breast that shows where the probe was."""
    size = len(image)
    side, left = size * 9 // 64, size - size * 9 // 64 if right else 0
    cv2.rectangle(image, (left, size - side), (left + side, size), _LILAC, -1)
    cv2.ellipse(
        image, (left + side // 2, size - side // 2), (side // 3, side // 3), 0, 30, 300, _INK, 1, cv2.LINE_AA
    )
    cv2.circle(image, (left + side // 2, size - side // 3), max(1, side // 12), (235, 235, 235), -1)


def _frame(image: np.ndarray, draw: Iterator[float]) -> None:
    """The frame in which a Doppler scan is taken."""
    size, colour = len(image), _colour(draw)
    left, right = round(_between(draw, 0.05, 0.4) * size), round(_between(draw, 0.55, 0.95) * size)
    top, bottom = round(_between(draw, 0, 0.2) * size), round(_between(draw, 0.4, 0.9) * size)
    cv2.rectangle(image, (left, top), (right, bottom), colour, 1)
