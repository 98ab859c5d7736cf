"""Images with the true and the predicted outline next to each other."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from matplotlib.figure import Figure

from bus_smp.classes import BENIGN, MALIGNANT
from bus_smp.figures.overlay import overlay
from bus_smp.figures.style import DPI, PAGE, save, style, wrap


@dataclass(frozen=True)
class Case:
    """One image of a qualitative figure.

    ``label`` is the image's true label; ``image`` uint8 (H, W, 3) RGB; ``truth`` and ``prediction``
    uint8 (H, W) of class indices; ``dice`` that of the lesion, either class, 0..1 or NaN where not defined; ``note`` why it is shown
    ("best", "median", "worst", "false alarm").
    """

    name: str
    label: str
    image: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray
    dice: float
    note: str = ""


_GAP, _TEXT = 0.08, 1.42  # inches between panels, and of the text column
_PANEL = (PAGE - _TEXT - 5 * _GAP) / 3


def _fit(image: np.ndarray, inches: tuple[float, float]) -> np.ndarray:
    """Scale an image to fit a box of (width, height) inches, keeping its aspect ratio."""
    scale = min(inches[0] * DPI / image.shape[1], inches[1] * DPI / image.shape[0])
    size = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)


def _place(figure: Figure, picture: np.ndarray, left: float, top: float) -> None:
    """Put pixels on the figure unscaled, ``left`` and ``top`` inches from its upper left corner."""
    height = figure.bbox.height
    figure.figimage(picture, round(left * DPI), round(height - top * DPI) - picture.shape[0], origin="upper")


def write_qualitative(cases: Sequence[Case], path: Path, title: str) -> None:
    """Rows of image, truth and prediction, each at its own aspect ratio, over a legend of colours and lines.

    The prediction carries the outline of the truth. Rows are in the order given.
    """
    title = wrap(title, PAGE - 0.2, 9)
    rows = []
    for case in cases:
        dice = wrap("lesion Dice " + ("not defined" if math.isnan(case.dice) else f"{case.dice:.3f}"), _TEXT)
        name = wrap(case.name, _TEXT)
        text = [wrap(case.note, 0.85 * _TEXT), name, wrap(f"true label: {case.label}", _TEXT), dice]
        lines = sum(part.count("\n") + 1 for part in text if part)
        image = _fit(case.image, (_PANEL, 1.25 * _PANEL))
        truth, prediction = (
            cv2.resize(mask, image.shape[1::-1], interpolation=cv2.INTER_NEAREST_EXACT)
            for mask in (case.truth, case.prediction)
        )
        pictures = image, overlay(image, truth), overlay(image, prediction, truth)
        rows.append((text, pictures, max(image.shape[0] / DPI, 0.15 * lines + 0.05)))

    head = 0.12 + 0.17 * (title.count("\n") + 1) + 0.22
    height = head + sum(row[2] + _GAP for row in rows) + 0.4
    with style():
        figure = Figure((PAGE, height))
        figure.text(_GAP / PAGE, 1 - 0.08 / height, title, fontsize=9, va="top")
        lefts = [_TEXT + 2 * _GAP + i * (_PANEL + _GAP) for i in range(3)]
        for left, heading in zip(lefts, ("image", "truth", "prediction"), strict=True):
            figure.text((left + _PANEL / 2) / PAGE, 1 - (head - 0.06) / height, heading, ha="center")
        top = head
        for (note, *rest), pictures, row_height in rows:
            y = 1 - top / height
            if note:
                figure.text(_GAP / PAGE, y, note, weight="bold", va="top", linespacing=1.25)
                y -= 0.15 * (note.count("\n") + 1) / height
            figure.text(_GAP / PAGE, y, "\n".join(rest), va="top", linespacing=1.25)
            for left, picture in zip(lefts, pictures, strict=True):
                _place(figure, picture, left + (_PANEL - picture.shape[1] / DPI) / 2, top)
            top += row_height + _GAP
        _legend_of_overlay(figure, top + 0.06)
        save(figure, path)


def _legend_of_overlay(figure: Figure, top: float) -> None:
    """Keys drawn by ``overlay`` itself, so that legend and pictures cannot differ."""
    height = figure.get_figheight()
    grey = np.full((round(0.24 * DPI), round(0.48 * DPI), 3), 110, np.uint8)
    blank = np.zeros(grey.shape[:2], np.uint8)
    oval = cv2.ellipse(blank.copy(), (grey.shape[1] // 2, grey.shape[0] // 2), (40, 18), 0, 0, 360, 1, -1)
    keys = [
        (overlay(grey, oval * BENIGN.index), "benign area\n(even)"),
        (overlay(grey, oval * MALIGNANT.index), "malignant area\n(hatched)"),
        (overlay(grey, blank, oval * BENIGN.index), "outline of the truth,\nbenign (dashed)"),
        (overlay(grey, blank, oval * MALIGNANT.index), "outline of the truth,\nmalignant (dotted)"),
    ]
    for (picture, label), left in zip(keys, (_GAP, 1.6, 3.3, 5.2), strict=True):
        _place(figure, picture, left, top)
        figure.text((left + 0.54) / PAGE, 1 - (top + 0.12) / height, label, va="center")
