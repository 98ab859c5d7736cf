"""Confusion matrices of whole images and of pixels."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from bus_smp.classes import CLASSES, LABELS
from bus_smp.figures.style import PAGE, ink_on, save, style, wrap


def write_confusion_matrix(
    image_matrix: np.ndarray, pixel_matrix: np.ndarray, path: Path, title: str
) -> None:
    """Two confusion matrices side by side: of whole images and of pixels.

    Args:
        image_matrix: int (3, 3), rows true and columns predicted normal, benign, malignant images.
        pixel_matrix: int (3, 3), rows true and columns predicted background, benign, malignant pixels.
        path: PNG to write.
        title: wrapped to the figure's width.

    A cell holds the count and its share of the row; a row without any is marked "none".
    """
    title = wrap(title, PAGE - 0.2, 9)
    above = 0.35 + 0.17 * (title.count("\n") + 1)
    side, below = 2.2, 0.95
    height = above + side + below
    colours = matplotlib.colormaps["cividis"]
    with style():
        figure = Figure((PAGE, height))
        panels = (
            (0.95, image_matrix, LABELS, "images", "Whole images"),
            (4.65, pixel_matrix, [c.name for c in CLASSES], "pixels", "Pixels (M = million)"),
        )
        for left, matrix, names, unit, heading in panels:
            axes = figure.add_axes((left / PAGE, below / height, side / PAGE, side / height))
            _matrix_panel(axes, np.asarray(matrix), names, colours, unit)
            axes.set_title(heading)
        bar = figure.add_axes((2.2 / PAGE, 0.38 / height, 2.8 / PAGE, 0.1 / height))
        bar.imshow(np.linspace(0, 1, 256)[None], cmap=colours, aspect="auto", extent=(0, 100, 0, 1))
        bar.set_yticks([])
        bar.tick_params(length=2, pad=1)
        bar.set_xlabel("share of the row in %", labelpad=1)
        bar.spines[:].set_visible(False)
        figure.text(0.1 / PAGE, 1 - 0.08 / height, title, fontsize=9, va="top")
        save(figure, path)


def _count(number: int) -> str:
    """An exact number up to 999,999, then millions: what a cell of the matrix can hold at 8 points."""
    return f"{number:,}" if number < 1_000_000 else f"{number / 1e6:,.1f} M"


def _matrix_panel(axes: Axes, matrix: np.ndarray, names: Sequence[str], colours, unit: str) -> None:
    totals = matrix.sum(axis=1)
    for row, total in enumerate(totals):
        if total == 0:
            axes.axhspan(row - 0.5, row + 0.5, facecolor="#EEEEEE", zorder=0)
            axes.text(1, row, "none", ha="center", va="center", color="#444444", style="italic")
            continue
        for column, number in enumerate(matrix[row]):
            share = number / total
            colour = colours(share)[:3]
            axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, color=colour))
            axes.text(
                column, row, f"{_count(int(number))}\n{_percent(share)}",
                ha="center", va="center", color=ink_on(colour),
            )  # fmt: skip
    axes.set(xlim=(-0.5, 2.5), ylim=(2.5, -0.5), aspect="equal")
    axes.set_xticks(range(3), names)
    rows = [f"{name}\n({_count(int(total))})" for name, total in zip(names, totals, strict=True)]
    axes.set_yticks(range(3), rows)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xticks(np.arange(0.5, 2), minor=True)
    axes.set_yticks(np.arange(0.5, 2), minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5)
    axes.tick_params(which="minor", length=0)
    axes.set_xlabel("predicted")
    axes.set_ylabel(f"true (number of {unit})")


def _percent(share: float) -> str:
    """One decimal, but never 0.0 % for something nor 100.0 % for not everything."""
    if 0 < share < 0.0005:
        return "<0.1 %"
    if 0.9995 <= share < 1:
        return ">99.9 %"
    return f"{100 * share:.1f} %"
