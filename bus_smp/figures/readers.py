"""Shares of a reader study: a dot and an interval for each reader."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from bus_smp.figures.style import BLUE, GREEN, GREY, ORANGE, PAGE, PURPLE, SKY, VERMILLION, save, style, wrap

_COLOURS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY)
# Width of the names of the measures in inches.
_NAMES = 2.7


def write_readers(
    readers: Mapping[str, Mapping[str, Any]], words: Mapping[str, str], path: Path, title: str
) -> None:
    """Draw the shares of ``tabulate_readers``, one row for each measure, one dot in it for each reader.

    Args:
        readers: reader -> ``measures``: key -> estimate.
        words: of the measures to draw, in their order; those that no reader has are left out.
        path: PNG to write. A hollow dot has no interval.
        title: wrapped to the figure's width.
    """
    keys = [key for key in words if any(key in of["measures"] for of in readers.values())]
    step = 0.14 * len(readers) + 0.12
    above, below = 0.2 + 0.17 * (title.count("\n") + 1), 0.5 + 0.17 * ((len(readers) + 2) // 3)
    height = above + below + max(1, len(keys)) * step
    with style():
        figure = Figure((PAGE, height))
        axes = figure.add_axes(
            (_NAMES / PAGE, below / height, (PAGE - _NAMES - 0.2) / PAGE, 1 - (above + below) / height)
        )
        for place, (name, of) in enumerate(readers.items()):
            colour = GREY if name not in list(readers)[: len(_COLOURS)] else _COLOURS[place % len(_COLOURS)]
            for row, key in enumerate(keys):
                one = of["measures"].get(key)
                if one is None or one["mean"] is None:
                    continue
                y = row * step + 0.06 + 0.14 * (place + 0.5)
                known = one["low"] is not None
                if known:
                    axes.plot([100 * one["low"], 100 * one["high"]], [y, y], color=colour, linewidth=1.3)
                axes.plot(
                    100 * one["mean"],
                    y,
                    "o",
                    color=colour,
                    markersize=4,
                    markerfacecolor=colour if known else "white",
                )
            axes.plot([], [], "o-", color=colour, markersize=4, label=wrap(name, 1.8))
        axes.set(
            xlim=(-2, 102),
            ylim=(max(1, len(keys)) * step, 0),
            xlabel="share of images, % (line: 95 % interval)",
        )
        axes.set_yticks(
            [(row + 0.5) * step for row in range(len(keys))], [wrap(words[key], _NAMES - 0.2) for key in keys]
        )
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        figure.legend(loc="lower left", bbox_to_anchor=(0.02, 0), ncols=3, borderaxespad=0.3)
        figure.text(0.1 / PAGE, 1 - 0.08 / height, title, fontsize=9, va="top")
        save(figure, path)
