"""Train set against test set as heat maps."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from bus_smp.figures.style import BLACK, PAGE, VERMILLION, ink_on, save, style, wrap

# inches: row names, between two panels side by side
_NAMES, _GAP = 1.25, 0.15
# inches of a cell; a matrix of one cell is not enlarged
_WIDEST = 1.0


def write_matrix(cells: pd.DataFrame, path: Path, panels: Sequence[tuple[str, str, bool]]) -> None:
    """Heat maps of runs (rows) against targets (columns), one for each measure.

    Args:
        cells: the table of ``matrix.csv``, one row per run and target: ``run, trained_on, target, kind``
            (``in-domain``, ``external``, ``not known to be external`` or ``refused``), and per measure ``<measure>``, ``<measure>_low``,
            ``<measure>_high`` in 0..1, NaN where not defined; ``<measure>_sd`` where it is the mean of
            several runs. Rows and columns are in the order of their first appearance.
        path: PNG to write.
        panels: measure (a column of ``cells``), title, and whether a lower value is better.

    In every panel bright is good. An in-domain cell has a frame and the word, a refused one is hatched and
    has the word; a pair that is not in the table is left blank.
    """
    runs = list(dict.fromkeys(zip(cells["run"].astype(str), cells["trained_on"].astype(str), strict=True)))
    targets = list(dict.fromkeys(cells["target"].astype(str)))
    side_by_side = 0 < len(targets) <= 2
    room = (PAGE - _GAP) / 2 if side_by_side else PAGE
    width = min(_WIDEST, (room - _NAMES - 0.1) / max(1, len(targets)))
    names = [wrap(run, _NAMES - 0.15) + "\n" + wrap(f"({trained})", _NAMES - 0.15) for run, trained in runs]
    heads = [wrap(target, width - 0.04) for target in targets]
    rows = [max(0.58, 0.14 * (name.count("\n") + 1) + 0.08) for name in names]
    head = 0.28 + 0.14 * max((text.count("\n") + 1 for text in heads), default=1)
    panel = head + max(0.4, sum(rows)) + 0.12
    across = 2 if side_by_side else 1
    height = 0.3 + math.ceil(len(panels) / across) * panel + 0.62
    by_place = {(str(cell["run"]), str(cell["target"])): cell for cell in cells.to_dict("records")}
    with style():
        figure = Figure((PAGE, height))
        figure.text(
            0.1 / PAGE, 1 - 0.08 / height, "Trained on (rows), tested on (columns)", fontsize=9, va="top"
        )
        for i, (measure, words, falling) in enumerate(panels):
            left, top = i % across * (room + _GAP), 0.3 + i // across * panel
            figure.text((left + 0.1) / PAGE, 1 - (top + 0.03) / height, words, weight="bold", va="top")
            axes = figure.add_axes(
                (
                    (left + _NAMES) / PAGE,
                    1 - (top + head + sum(rows)) / height,
                    max(width * len(targets), 0.1) / PAGE,
                    max(sum(rows), 0.1) / height,
                )
            )
            axes.set(xlim=(0, max(len(targets), 1)), ylim=(max(sum(rows), 0.1), 0))
            axes.axis("off")
            for column, text in enumerate(heads):
                axes.text(column + 0.5, -0.04, text, ha="center", va="bottom", linespacing=1.1)
            y = 0.0
            for (run, _), name, tall in zip(runs, names, rows, strict=True):
                middle = 1 - (top + head + y + tall / 2) / height
                figure.text((left + 0.1) / PAGE, middle, name, va="center", linespacing=1.1)
                for column, target in enumerate(targets):
                    if (run, target) in by_place:
                        _cell(axes, by_place[run, target], measure, falling, (column, y, tall), width)
                y += tall
            if not runs:
                figure.text((left + 0.1) / PAGE, 1 - (top + head + 0.2) / height, "no cells", style="italic")
        _legend(figure)
        save(figure, path)


def _cell(
    axes: Axes, cell: dict, measure: str, falling: bool, place: tuple[float, float, float], width: float
) -> None:
    column, y, tall = place
    box: dict[str, Any] = {"xy": (column, y), "width": 1, "height": tall}
    kind, value = cell["kind"], cell[measure]
    lines, ink = [], "black"
    if kind == "refused":
        axes.add_patch(Rectangle(**box, facecolor="#F2F2F2", edgecolor="#BBBBBB", hatch="////", linewidth=0))
        lines = ["refused"]
    elif pd.isna(value):
        axes.add_patch(Rectangle(**box, facecolor="#EEEEEE"))
        lines = ["not\ndefined"]
    else:
        colour = matplotlib.colormaps["cividis"](float(np.clip(1 - value if falling else value, 0, 1)))[:3]
        axes.add_patch(Rectangle(**box, facecolor=colour))
        ink = ink_on(colour)
        low, high = cell.get(f"{measure}_low", math.nan), cell.get(f"{measure}_high", math.nan)
        known = not (pd.isna(low) or pd.isna(high))
        sd = cell.get(f"{measure}_sd", math.nan)
        if known:
            lines = [_number(value), f"{_number(low)}\N{EN DASH}{_number(high)}"]
        elif not pd.isna(sd):
            lines = [_number(value), f"sd {_number(sd)}"]
        else:
            lines = [_number(value), "no interval" if width >= 0.7 else "no int."]
    if kind == "in-domain":
        lines.append("in-domain" if width >= 0.6 else "own")
    elif kind not in ("external", "refused"):
        lines.append("external?")
    axes.add_patch(Rectangle(**box, fill=False, edgecolor="white", linewidth=1.5))
    if kind == "in-domain":
        inset = 0.025
        axes.add_patch(
            Rectangle(
                (column + inset / width, y + inset), 1 - 2 * inset / width, tall - 2 * inset, fill=False,
                edgecolor=VERMILLION, linewidth=1.6,
            )
        )  # fmt: skip
    axes.text(
        column + 0.5, y + tall / 2, "\n".join(lines), ha="center", va="center", color=ink, linespacing=1.1,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5} if kind == "refused" else None,
    )  # fmt: skip


def _number(value: float) -> str:
    """Two decimals without the leading zero, as a narrow cell can hold: .46, 1.00."""
    return f"{value:.2f}".removeprefix("0")


def _legend(figure: Figure) -> None:
    height = figure.get_figheight()
    bar = figure.add_axes((0.75 / PAGE, 0.36 / height, 1.6 / PAGE, 0.1 / height))
    bar.imshow(np.linspace(0, 1, 256)[None], cmap="cividis", aspect="auto")
    bar.set_axis_off()
    figure.text(0.7 / PAGE, 0.41 / height, "worse", ha="right", va="center")
    figure.text(2.4 / PAGE, 0.41 / height, "better", va="center")
    keys = figure.add_axes((2.95 / PAGE, 0.3 / height, 4.0 / PAGE, 0.22 / height))
    keys.set(xlim=(0, 4.0), ylim=(0, 0.22))
    keys.axis("off")
    keys.add_patch(Rectangle((0.02, 0.03), 0.3, 0.16, fill=False, edgecolor=VERMILLION, linewidth=1.6))
    keys.text(0.4, 0.11, "in-domain: own test split", va="center")
    keys.add_patch(
        Rectangle((2.12, 0.03), 0.3, 0.16, facecolor="#F2F2F2", edgecolor="#BBBBBB", hatch="////", lw=0)
    )
    keys.text(2.5, 0.11, "refused: not external", va="center")
    note = (
        "Value and 95 % interval (or sd over runs). Blank: not evaluated. Why a cell is refused: matrix.csv."
    )
    figure.text(0.1 / PAGE, 0.06 / height, note, color=BLACK)
