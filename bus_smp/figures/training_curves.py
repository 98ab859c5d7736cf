"""Losses, learning rate and validation Dice of a training, by epoch.

Curves differ in line style and marker as well as in colour. What is not defined is named, not drawn.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from bus_smp.figures.style import BLACK, BLUE, GREEN, GREY, ORANGE, PAGE, PURPLE, VERMILLION, save, style


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
    axes: Axes, x: np.ndarray, y: np.ndarray, label: str, color: str, dashes, marker: str, thin: bool = False
) -> None:
    """One curve. ``thin``: one of many; it has a marker only where there is no line."""
    known = np.isfinite(y)
    next_to = np.r_[False, known[:-1]] | np.r_[known[1:], False]
    # A value between two undefined ones is drawn only by its marker.
    marked = known & (~next_to | (not thin and np.arange(len(y)) % max(1, len(y) // 25) == 0))
    axes.plot(
        x, y, label=label, color=color, linestyle=dashes, linewidth=0.8 if thin else 1.8, marker=marker,
        markersize=3 if thin else 4, fillstyle="none", markevery=np.flatnonzero(marked).tolist(),
    )  # fmt: skip


def _add_legend(axes: Axes) -> None:
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
        # the loss of a single head is the total
        if len(heads) > 1:
            for name, column, color, dashes, marker in heads:
                drawn.append(_column(metrics, column))
                _curve(loss, epochs, drawn[-1], f"head at {name}", color, dashes, marker, thin=True)
        _curve(loss, epochs, total, "total (weighted mean)", BLACK, "-", "o")
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
        rate.set_yticks([0, top], ["0", f"{top:.2g}"])
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
        _add_legend(loss)
        save(figure, path, pdf=False)


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
        _add_legend(axes)
        save(figure, path, pdf=False)
