"""Images, and next to them the same images with the true and the predicted outlines.

Only outlines are drawn, because a tint would hide the tissue. Line styles distinguish them, so that grey print shows all
that colours show: the truth is dashed, a benign prediction solid, a malignant one dotted.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path as Outline
from matplotlib.patheffects import Normal, Stroke

from bus_smp.classes import BENIGN, MALIGNANT
from bus_smp.figures.style import DPI, ORANGE, PAGE, SKY, save, style, wrap


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
_PANEL = (PAGE - _TEXT - 4 * _GAP) / 2
# What a line means: words, colour, dashes in line widths, width in points.
_TRUTH = ("truth", "white", (0, (5, 2.5)), 1.1)
_PREDICTIONS = {
    BENIGN: ("prediction: benign", SKY, "-", 1.1),
    MALIGNANT: ("prediction: malignant", ORANGE, (0, (0.1, 1.5)), 2.2),
}


def _fit(image: np.ndarray, inches: tuple[float, float]) -> np.ndarray:
    """Scale an image to fit a box of (width, height) inches, keeping its aspect ratio."""
    scale = min(inches[0] * DPI / image.shape[1], inches[1] * DPI / image.shape[0])
    size = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)


def _place(figure: Figure, picture: np.ndarray, left: float, top: float) -> tuple[int, int]:
    """Put pixels on the figure unscaled, ``left`` and ``top`` inches from its upper left corner; where that is, in pixels."""
    x, y = round(left * DPI), round(figure.bbox.height - top * DPI)
    figure.figimage(picture, x, y - picture.shape[0], origin="upper")
    return x, y


def _draw_lines(figure: Figure, lines: Sequence[np.ndarray], look: tuple) -> None:
    """Lines through float (n, 2) pixels of the figure, with a dark edge that keeps them visible on bright tissue.

    All are one path: of many small outlines, one by one, drawing would take many times as long.
    """
    _, color, dashes, width = look
    edge = [Stroke(linewidth=width + 1, foreground="black", alpha=0.75), Normal()]
    figure.add_artist(
        PathPatch(
            # In inches: a PDF has pixels of another size.
            Outline.make_compound_path(*(Outline(points / DPI) for points in lines)), fill=False, edgecolor=color,
            linestyle=dashes, linewidth=width, capstyle="round" if width > 2 else "butt", joinstyle="round",
            path_effects=edge, transform=figure.dpi_scale_trans, clip_on=False,
        )
    )  # fmt: skip


def _draw_outlines(figure: Figure, area: np.ndarray, place: tuple[int, int], look: tuple) -> None:
    """The outlines of bool (H, W), whose upper left corner is at ``place`` in pixels of the figure."""
    # One pixel further out: the line runs around the area, and around one pixel too.
    grown = cv2.dilate(area.view(np.uint8), np.ones((3, 3), np.uint8))
    lines = []
    for contour in cv2.findContours(grown, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)[0]:
        points = contour.reshape(-1, 2).astype(float)
        closed = np.vstack([points, points[:1]]) + 0.5
        lines.append(np.column_stack([place[0] + closed[:, 0], place[1] - closed[:, 1]]))
    if lines:
        _draw_lines(figure, lines, look)


def write_qualitative(cases: Sequence[Case], path: Path, title: str) -> None:
    """Rows of an image, and the same image with the outlines of truth and prediction, at their own aspect ratio.

    Rows are in the order given; the legend of the lines is below them.
    """
    title = wrap(title, PAGE - 0.2, 9)
    rows = []
    for case in cases:
        dice = wrap("lesion Dice " + ("not defined" if math.isnan(case.dice) else f"{case.dice:.3f}"), _TEXT)
        name = wrap(case.name, _TEXT)
        text = [wrap(case.note, 0.85 * _TEXT), name, wrap(f"true label: {case.label}", _TEXT), dice]
        lines = sum(part.count("\n") + 1 for part in text if part)
        image = _fit(case.image, (_PANEL, 0.65 * _PANEL))
        masks = [
            cv2.resize(mask, image.shape[1::-1], interpolation=cv2.INTER_NEAREST_EXACT)
            for mask in (case.truth, case.prediction)
        ]
        rows.append((text, image, masks, max(image.shape[0] / DPI, 0.15 * lines + 0.05)))

    head = 0.12 + 0.17 * (title.count("\n") + 1) + 0.22
    height = head + sum(row[-1] + _GAP for row in rows) + 0.35
    with style():
        figure = Figure((PAGE, height))
        figure.text(_GAP / PAGE, 1 - 0.08 / height, title, fontsize=9, va="top")
        lefts = [_TEXT + 2 * _GAP + i * (_PANEL + _GAP) for i in range(2)]
        for left, heading in zip(lefts, ("image", "truth and prediction"), strict=True):
            figure.text((left + _PANEL / 2) / PAGE, 1 - (head - 0.06) / height, heading, ha="center")
        top = head
        for (note, *rest), image, (truth, prediction), row_height in rows:
            y = 1 - top / height
            if note:
                figure.text(_GAP / PAGE, y, note, weight="bold", va="top", linespacing=1.25)
                y -= 0.15 * (note.count("\n") + 1) / height
            figure.text(_GAP / PAGE, y, "\n".join(rest), va="top", linespacing=1.25)
            for left in lefts:
                place = _place(figure, image, left + (_PANEL - image.shape[1] / DPI) / 2, top)
            for lesion, look in _PREDICTIONS.items():
                _draw_outlines(figure, prediction == lesion.index, place, look)
            _draw_outlines(figure, truth > 0, place, _TRUTH)
            top += row_height + _GAP
        _add_legend(figure, top + 0.06)
        save(figure, path)


def _add_legend(figure: Figure, top: float) -> None:
    """The lines on the grey of tissue, with what they mean."""
    height = figure.get_figheight()
    grey = np.full((round(0.2 * DPI), round(0.6 * DPI), 3), 110, np.uint8)
    for look, left in zip((_TRUTH, *_PREDICTIONS.values()), (_GAP, 1.9, 4.4), strict=True):
        x, y = _place(figure, grey, left, top)
        _draw_lines(
            figure, [np.array([[x + 0.06 * DPI, y - 0.1 * DPI], [x + 0.54 * DPI, y - 0.1 * DPI]])], look
        )
        figure.text((left + 0.68) / PAGE, 1 - (top + 0.1) / height, look[0], va="center")
