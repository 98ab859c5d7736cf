"""Receiver operating characteristics."""

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from bus_smp.figures.style import BLACK, BLUE, COLUMN, GREEN, GREY, ORANGE, SKY, VERMILLION, save, style, wrap


def write_roc_curves(
    curves: Mapping[str, tuple[np.ndarray, np.ndarray, float]], path: Path, title: str
) -> None:
    """Receiver operating characteristics on one pair of axes.

    Args:
        curves: name -> (false-positive rates, true-positive rates, AUC), rates in 0..1, in the order of
            the legend. An AUC of NaN means not defined (one of the two classes is absent): named, not drawn.
        path: PNG to write.
        title: wrapped to the figure's width.
    """
    looks = [
        (BLUE, "-"), (GREEN, (0, (5, 1.5))), (VERMILLION, "-."), (BLACK, (0, (1, 1))),
        (ORANGE, (0, (3, 1, 1, 1, 1, 1))), (SKY, (0, (8, 2))),
    ]  # fmt: skip
    title = wrap(title, COLUMN - 0.2, 9)
    labels = {}
    for name, (_, _, auc) in curves.items():
        value = "not defined" if math.isnan(auc) else f"{auc:.3f}"
        labels[name] = wrap(f"{name} (AUC {value})", COLUMN - 0.8)
    lines = sum(label.count("\n") + 1 for label in labels.values()) + 1
    above, below = 0.12 + 0.17 * (title.count("\n") + 1), 0.48 + 0.17 * lines
    side = COLUMN - 0.7
    height = above + side + below
    with style():
        figure = Figure((COLUMN, height))
        axes = figure.add_axes((0.55 / COLUMN, below / height, side / COLUMN, side / height))
        for (name, (fpr, tpr, auc)), (color, dashes) in zip(
            curves.items(), looks * (len(curves) // len(looks) + 1), strict=False
        ):
            known = not math.isnan(auc)
            axes.plot(
                fpr if known else [], tpr if known else [], color=color, linestyle=dashes, label=labels[name],
                linewidth=1.5, clip_on=False,
            )  # fmt: skip
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, label="chance (AUC 0.500)", zorder=1)
        axes.set(xlim=(0, 1), ylim=(0, 1))
        axes.set_xlabel("false-positive rate (1 \N{MINUS SIGN} specificity)")
        axes.set_ylabel("true-positive rate (sensitivity)")
        figure.text(0.1 / COLUMN, 1 - 0.08 / height, title, fontsize=9, va="top")
        figure.legend(
            loc="lower left", bbox_to_anchor=(0.02, 0), borderaxespad=0.3, labelspacing=0.35
        )  # fmt: skip
        save(figure, path)
