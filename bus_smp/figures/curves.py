"""Curves and matrices of a run and of an evaluation, made from tables and arrays alone.

Curves differ in line style and marker as well as in colour, and what is not defined is said so.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from bus_smp.classes import CLASSES, LABELS
from bus_smp.figures.style import (
    BLACK,
    BLUE,
    COLUMN,
    GREEN,
    GREY,
    ORANGE,
    PAGE,
    PURPLE,
    SKY,
    VERMILLION,
    save,
    style,
    wrap,
)

# Curves over epochs


def _column(metrics: pd.DataFrame, name: str) -> np.ndarray:
    """Float64 (epochs,); NaN where the column is missing or a cell is empty or infinite."""
    if name not in metrics:
        return np.full(len(metrics), np.nan)
    values = pd.to_numeric(metrics[name], errors="coerce").to_numpy(float)
    return np.where(np.isfinite(values), values, np.nan)


def _best_epoch(metrics: pd.DataFrame) -> tuple[int, float] | None:
    """Epoch and value of the first highest validation lesion Dice; None where it was never defined."""
    dice = _column(metrics, "val_dice_lesion")
    if np.isnan(dice).all():
        return None
    best = int(np.nanargmax(dice))
    return int(metrics["epoch"].iloc[best]), float(dice[best])


def _epoch_axis(axes: Axes, epochs: np.ndarray) -> None:
    axes.set_xlabel("epoch")
    if len(epochs):
        margin = max(0.5, 0.02 * (epochs.max() - epochs.min()))
        axes.set_xlim(epochs.min() - margin, epochs.max() + margin)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))


def _curve(
    axes: Axes, x: np.ndarray, y: np.ndarray, label: str, color: str, dashes, marker: str, **more
) -> None:
    known = np.isfinite(y)
    beside = np.r_[False, known[:-1]] | np.r_[known[1:], False]
    # A value between two undefined ones is drawn by its marker alone.
    marked = known & (~beside | (np.arange(len(y)) % max(1, len(y) // 25) == 0))
    axes.plot(
        x, y, label=label, color=color, linestyle=dashes, marker=marker, markersize=4, fillstyle="none",
        markevery=np.flatnonzero(marked).tolist(), **more,
    )  # fmt: skip


def _legend_beside(axes: Axes) -> None:
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.02), borderaxespad=0)


def write_loss_curves(metrics: pd.DataFrame, path: Path) -> None:
    """Training loss, its heads, and the learning rate below them.

    Args:
        metrics: one row per epoch with ``epoch, train_loss, lr, val_dice_lesion`` and
            ``train_loss_main, train_loss_aux_2, _4, _8`` where there are several heads.
        path: PNG to write.
    """
    epochs = _column(metrics, "epoch")
    heads = [
        ("full size", "train_loss_main", BLUE, (0, (5, 1.5)), "s"),
        ("1/2 size", "train_loss_aux_2", VERMILLION, "-.", "^"),
        ("1/4 size", "train_loss_aux_4", GREEN, (0, (3, 1, 1, 1, 1, 1)), "D"),
        ("1/8 size", "train_loss_aux_8", PURPLE, ":", "v"),
    ]
    heads = [head for head in heads if not np.isnan(_column(metrics, head[1])).all()]
    with style():
        figure = Figure((PAGE, 3.5))
        grid = figure.add_gridspec(
            2, 1, height_ratios=(3, 1), left=0.095, right=0.715, top=0.92, bottom=0.125, hspace=0.28
        )
        loss, rate = figure.add_subplot(grid[0]), figure.add_subplot(grid[1])
        total = _column(metrics, "train_loss")
        drawn = [total]
        if len(heads) > 1:  # a single head is the total
            for name, column, color, dashes, marker in heads:
                drawn.append(_column(metrics, column))
                _curve(loss, epochs, drawn[-1], f"head at {name}", color, dashes, marker, linewidth=1)
        _curve(loss, epochs, total, "total (weighted mean)", BLACK, "-", "o", linewidth=1.8)
        values = np.concatenate(drawn)
        values = values[np.isfinite(values)]
        if len(values) and values.min() > 0 and values.max() > 10 * values.min():
            loss.set_yscale("log")
            loss.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            loss.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            loss.yaxis.set_minor_formatter(NullFormatter())
        elif len(values) and values.min() >= 0:
            loss.set_ylim(0, 1.06 * values.max() or 1)
        loss.set_ylabel("training loss")
        loss.set_title("Training loss per epoch", loc="left")

        _curve(rate, epochs, _column(metrics, "lr"), "learning rate", ORANGE, "-", ".")
        top = np.nanmax(_column(metrics, "lr"), initial=0) or 1
        rate.set_ylim(0, 1.15 * top)
        rate.set_yticks([0, top], ["0", f"{top:.3g}"])
        rate.set_title("Learning rate", loc="left")
        best = _best_epoch(metrics)
        if best:
            label = f"best epoch {best[0]}\n(highest validation\nlesion Dice, {best[1]:.3f})"
            loss.axvline(best[0], color=GREY, linestyle=(0, (1, 1)), zorder=1, label=label)
            rate.axvline(best[0], color=GREY, linestyle=(0, (1, 1)), zorder=1)
        for axes in (loss, rate):
            _epoch_axis(axes, epochs)
        loss.set_xlabel("")
        loss.tick_params(labelbottom=False)
        _legend_beside(loss)
        save(figure, path)


def write_dice_curve(metrics: pd.DataFrame, path: Path) -> None:
    """Validation Dice of lesion (either class), benign and malignant; gaps where it is not defined.

    Args:
        metrics: one row per epoch with ``epoch, val_dice_lesion, val_dice_benign, val_dice_malignant``.
        path: PNG to write.
    """
    epochs = _column(metrics, "epoch")
    with style():
        figure = Figure((PAGE, 3.0))
        axes = figure.add_axes((0.095, 0.15, 0.62, 0.755))
        for name, label, color, dashes, marker in (
            ("lesion", "lesion (either class)", BLUE, "-", "o"),
            ("benign", "benign", GREEN, (0, (5, 1.5)), "s"),
            ("malignant", "malignant", VERMILLION, "-.", "^"),
        ):
            values = _column(metrics, f"val_dice_{name}")
            if np.isnan(values).all():
                label += ": not defined"
            _curve(axes, epochs, values, label, color, dashes, marker)
        best = _best_epoch(metrics)
        if best:
            label = f"best epoch {best[0]}\n(lesion Dice {best[1]:.3f})"
            axes.axvline(best[0], color=GREY, linestyle=(0, (1, 1)), zorder=1, label=label)
        axes.set_ylim(-0.02, 1.02)
        axes.set_ylabel("Dice on validation images")
        axes.set_title("Validation Dice per epoch", loc="left")
        _epoch_axis(axes, epochs)
        _legend_beside(axes)
        save(figure, path)


# Evaluation


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
            red, green, blue, _ = colours(share)
            axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, color=(red, green, blue)))
            light = 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2  # relative luminance
            axes.text(
                column, row, f"{_count(int(number))}\n{_percent(share)}",
                ha="center", va="center", color="black" if light > 0.18 else "white",
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
