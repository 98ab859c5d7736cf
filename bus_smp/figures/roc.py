"""Receiver operating characteristics, of images and of pixels."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from bus_smp.figures.style import (
    BLACK,
    BLUE,
    COLUMN,
    GREEN,
    GREY,
    VERMILLION,
    add_legend,
    save,
    square,
    style,
    wrap,
)

_LOOKS = ((BLUE, "-"), (GREEN, (0, (5, 1.5))), (VERMILLION, "-."))
_MARKERS = "osD^"

# A value, and its interval where it has one.
Interval = tuple[float, float | None, float | None]


def write_roc_curves(
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]],
    path: Path,
    title: str,
    band: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None,
    points: Mapping[str, tuple[Interval, Interval]] | None = None,
) -> None:
    """Receiver operating characteristics on one pair of axes.

    Args:
        curves: label -> (false-positive rates, true-positive rates) in 0..1, in the order of the legend. Empty arrays
            (one of the two classes is absent): named, not drawn.
        path: PNG to write.
        title: wrapped to the figure's width.
        band: false-positive rates, and the lower and upper limit of the true-positive rate of the first curve; NaN where there
            is no interval.
        points: label -> false-positive rate and true-positive rate of a fixed threshold, each as (value, low, high), the
            limits None where there is no interval.
    """
    points = points or {}
    labels = {name: wrap(name, COLUMN - 0.8) for name in (*curves, *points)}
    chance, interval = (
        "chance (AUC 0.500)",
        wrap("95 % interval of the curve, bootstrap over groups", COLUMN - 0.8),
    )
    with style():
        figure, axes = square(title, [*labels.values(), chance, *([interval] if band else ())])
        for i, (name, (false, true)) in enumerate(curves.items()):
            color, dashes = _LOOKS[i % len(_LOOKS)]
            axes.plot(
                false, true, color=color, linestyle=dashes, label=labels[name], linewidth=1.5, clip_on=False
            )
        if band:
            axes.fill_between(*band, color=_LOOKS[0][0], alpha=0.18, linewidth=0, label=interval)
        for (name, (x, y)), marker in zip(points.items(), _MARKERS, strict=False):
            axes.errorbar(
                x[0], y[0], xerr=_reach(x), yerr=_reach(y), color=BLACK, marker=marker, markersize=5,
                markerfacecolor="white", elinewidth=0.8, linestyle="none", label=labels[name], clip_on=False, zorder=3,
            )  # fmt: skip
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, label=chance, zorder=1)
        axes.set(xlim=(0, 1), ylim=(0, 1))
        axes.set_xlabel("false-positive rate (1 \N{MINUS SIGN} specificity)")
        axes.set_ylabel("true-positive rate (sensitivity)")
        add_legend(figure)
        save(figure, path)


def _reach(value: Interval) -> list[list[float]] | None:
    """How far an interval goes below and above its value, as matplotlib takes it."""
    mean, low, high = value
    return None if low is None or high is None else [[mean - low], [high - mean]]
