"""Lesion Dice and missed lesions within subgroups of the images."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bus_smp.figures.style import BLUE, PAGE, VERMILLION, save, style, wrap

SUBGROUP_WORDS = {"size": "lesion size", "class": "class", "flags": "flag", "dataset": "data set"}
_NAMES, _PANEL_GAP = 2.35, 0.2  # inches
_DRAWN = ("dice_lesion", "miss_rate")


def subgroup_name(level: str, of: Mapping) -> str:
    """A level, with the share of the image that its lesions take where it has such ``bounds`` (0..1)."""
    if not of.get("bounds"):
        return level
    low, high = (f"{100 * bound:.1f}" for bound in of["bounds"])
    return f"{level} ({low} to {high} % of the image)"


def write_subgroups(subgroups: Mapping[str, Mapping[str, Mapping]], path: Path, title: str) -> None:
    """Lesion Dice and missed lesions by subgroup: a dot, its interval, and the number of images behind it.

    Args:
        subgroups: what the images are divided by -> level -> estimates by name, of which ``dice_lesion`` and
            ``miss_rate`` are drawn; the form that ``summarise`` gives them.
        path: PNG to write.
        title: wrapped to the figure's width.

    A hollow dot has no interval. A subgroup in which neither number is defined (normal images) has no row, and a number that is
    not defined has a note.
    """
    title = wrap(title, PAGE - 0.2, 9)
    rows: list[tuple[str, Mapping | None]] = []
    for by, every in subgroups.items():
        levels = {name: of for name, of in every.items() if any(_is_defined(of.get(key)) for key in _DRAWN)}
        # The one data set of the evaluation is no subgroup.
        if not levels or (by == "dataset" and len(every) == 1):
            continue
        rows.append((wrap(f"by {SUBGROUP_WORDS.get(by, by)}", _NAMES - 0.1), None))
        rows += [(wrap(subgroup_name(level, of), _NAMES - 0.25), of) for level, of in levels.items()]
    heights = [
        0.06 + 0.15 * (name.count("\n") + 1) + (0.06 if subgroup is None else 0) for name, subgroup in rows
    ]
    middles = np.cumsum(heights) - np.array(heights) / 2
    above, plot, below = 0.22 + 0.17 * (title.count("\n") + 1), max(0.5, sum(heights)), 0.62
    height = above + plot + below
    width = (PAGE - _NAMES - 0.1 - 2 * _PANEL_GAP) / 2
    with style():
        figure = Figure((PAGE, height))
        panels = [
            figure.add_axes(
                (
                    (_NAMES + 0.1 + i * (width + _PANEL_GAP)) / PAGE,
                    below / height,
                    width / PAGE,
                    plot / height,
                )
            )
            for i in range(2)
        ]
        for (name, subgroup), middle in zip(rows, middles, strict=True):
            figure.text(
                (0.1 if subgroup is None else 0.2) / PAGE, 1 - (above + middle) / height, name, va="center",
                weight="bold" if subgroup is None else "normal",
            )  # fmt: skip
        drawings = (
            ("lesion Dice", BLUE, "o"),
            ("missed lesions (share of lesion images)", VERMILLION, "s"),
        )
        for axes, key, (words, color, marker) in zip(panels, _DRAWN, drawings, strict=True):
            for (_, subgroup), middle in zip(rows, middles, strict=True):
                if subgroup is not None:
                    _dot(axes, subgroup.get(key), middle, color, marker)
                else:
                    axes.axhline(middle - 0.12, color="#CCCCCC", linewidth=0.6)
            axes.set(xlim=(0, 1), ylim=(plot, 0), xlabel=words, yticks=())
            axes.set_xticks((0, 0.25, 0.5, 0.75, 1), ("0", ".25", ".5", ".75", "1"))
            axes.grid(axis="x", color="#DDDDDD", linewidth=0.6)
            axes.set_axisbelow(True)
            axes.spines["left"].set_visible(False)
        if not rows:
            figure.text(
                0.1 / PAGE, 1 - (above + 0.2) / height, "not defined: no image shows a lesion", style="italic"
            )
        note = "Dot and 95 % interval; hollow: no interval. n: images the number is taken over."
        figure.text(0.1 / PAGE, 0.06 / height, note, color="#444444")
        figure.text(0.1 / PAGE, 1 - 0.08 / height, title, fontsize=9, va="top")
        save(figure, path)


def _is_defined(estimate: Mapping | None) -> bool:
    return estimate is not None and estimate["mean"] is not None


def _dot(axes: Axes, estimate: Mapping | None, y: float, color: str, marker: str) -> None:
    """One estimate; its n is on the side where there is room."""
    if not estimate or not _is_defined(estimate):
        axes.text(0.02, y, "not defined", va="center", style="italic", color="#444444")
        return
    mean, low, high = estimate["mean"], estimate["low"], estimate["high"]
    interval = low is not None
    if interval:
        axes.plot([low, high], [y, y], color=color, linewidth=1.5, solid_capstyle="butt", clip_on=False)
    axes.plot(
        [mean],
        [y],
        color=color,
        marker=marker,
        markersize=5,
        fillstyle="full" if interval else "none",
        clip_on=False,
    )
    left, right = (low, high) if interval else (mean, mean)
    beside = {"x": right + 0.04, "ha": "left"} if 1 - right >= left else {"x": left - 0.04, "ha": "right"}
    axes.text(y=y, s=f"n={estimate['n']}", va="center", color="#444444", **beside)
