"""How the sizes and shapes of the predicted lesions agree with the true ones."""

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bus_smp.figures.style import BLUE, GREY, PAGE, VERMILLION, save, style, wrap

_SHAPES = (("depth_to_width", "depth to width"), ("circularity", "circularity"), ("solidity", "solidity"))


def write_agreement(
    per_image: pd.DataFrame, agreement: Mapping[str, Mapping], path: Path, title: str
) -> None:
    """Bland-Altman plot of lesion area, and truth against prediction for three measures of shape.

    Args:
        per_image: the per-image table: ``dice_lesion``, ``<quantity>_truth``, ``<quantity>_predicted``.
            Drawn are the images whose lesion was found (lesion Dice > 0), as ``agreement`` takes them.
        agreement: quantity (``area``, ``depth_to_width``, ``circularity``, ``solidity``) -> ``n, bias,
            loa_low, loa_high, r``, None or NaN where not defined.
        path: PNG to write.
        title: wrapped to the figure's width.

    Bland & Altman, Lancet 327, 1986: limits of agreement are the mean difference +- 1.96 standard deviations.
    """
    title = wrap(title, PAGE - 0.2, 9)
    found = per_image[per_image["dice_lesion"] > 0]
    side, left, gap, foot = 2.3, 0.85, 1.35, 0.95
    above = 0.4 + 0.17 * (title.count("\n") + 1)
    height = above + 2 * (side + foot) + 0.25
    with style():
        figure = Figure((PAGE, height))
        for i, (quantity, words) in enumerate((("area", "lesion area"), *_SHAPES)):
            x, y = left + i % 2 * (side + gap), above + i // 2 * (side + foot + 0.15)
            axes = figure.add_axes((x / PAGE, 1 - (y + side) / height, side / PAGE, side / height))
            axes.set_title(words[0].upper() + words[1:])
            pair = [f"{quantity}_truth", f"{quantity}_predicted"]
            truth, predicted = found.reindex(columns=pair).dropna().to_numpy(float).T
            of = agreement.get(quantity) or {}
            scale, unit = 1.0, ""
            if quantity == "area":
                thousand = max(truth.max(initial=0), predicted.max(initial=0)) >= 10_000
                scale, unit = (1000.0, "thousand pixels") if thousand else (1.0, "pixels")
            if len(truth) == 0:
                axes.set(xticks=(), yticks=())
                text = wrap("not defined: no lesion was found", 0.85 * side)
                axes.text(0.5, 0.5, text, ha="center", va="center", style="italic", color="#444444")
            elif quantity == "area":
                _bland_altman(axes, truth, predicted, of, scale, unit)
            else:
                _against(axes, truth, predicted, words)
            figure.text(
                (x - 0.45) / PAGE, 1 - (y + side + 0.44) / height, _agreement_words(of, scale, unit), va="top",
                linespacing=1.3,
            )  # fmt: skip
        figure.text(0.1 / PAGE, 1 - 0.08 / height, title, fontsize=9, va="top")
        save(figure, path)


def _dots(axes: Axes, x: np.ndarray, y: np.ndarray) -> None:
    """A dot for each lesion; the more there are, the smaller and paler, so that where many lie looks darker than one."""
    size, alpha = (3.0, 0.6) if len(x) <= 100 else (2.2, max(0.08, min(0.6, 130 / len(x))))
    axes.plot(x, y, "o", color=BLUE, markersize=size, markeredgewidth=0, alpha=alpha, linestyle="none")


def _bland_altman(
    axes: Axes, truth: np.ndarray, predicted: np.ndarray, of: Mapping, scale: float, unit: str
) -> None:
    mean, difference = (truth + predicted) / 2 / scale, (predicted - truth) / scale
    _dots(axes, mean, difference)
    axes.axhline(0, color=GREY, linewidth=0.8)
    lines = [
        (of.get("bias"), "-", 1.3),
        (of.get("loa_low"), (0, (4, 2)), 1.1),
        (of.get("loa_high"), (0, (4, 2)), 1.1),
    ]
    drawn = [difference.min(), difference.max(), 0.0]
    for value, dashes, width in lines:
        if value is not None and _known(value):
            axes.axhline(value / scale, color=VERMILLION, linestyle=dashes, linewidth=width)
            drawn.append(value / scale)
    margin = 0.08 * (max(drawn) - min(drawn)) or 1.0
    axes.set(xlim=(0, 1.05 * mean.max()), ylim=(min(drawn) - margin, max(drawn) + margin))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.set_xlabel(f"mean of truth and prediction ({unit})")
    axes.set_ylabel(f"prediction \N{MINUS SIGN} truth ({unit})")


def _against(axes: Axes, truth: np.ndarray, predicted: np.ndarray, words: str) -> None:
    both = np.concatenate([truth, predicted])
    margin = 0.05 * (both.max() - both.min()) or 0.05
    # The axes begin at the smallest value: solidity is never near 0.
    limits = max(0.0, both.min() - margin), both.max() + margin
    axes.plot(limits, limits, color=GREY, linewidth=0.8, zorder=1)
    _dots(axes, truth, predicted)
    axes.set(xlim=limits, ylim=limits, xlabel=f"{words}, truth", ylabel=f"{words}, prediction")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))


def _known(value: float | None) -> bool:
    return value is not None and not math.isnan(value)


def _agreement_words(of: Mapping, scale: float, unit: str) -> str:
    """Two lines: n, r and the mean difference; the limits of agreement, and as which lines an area's are drawn.

    Numbers are divided by ``scale``, as the axes are; a whole unit has no decimals.
    """

    def number(value: float | None) -> str:
        if value is None or math.isnan(value):
            return "not defined"
        digits = 3 if not unit else 1 if scale > 1 else 0
        return f"{value / scale:+,.{digits}f}".replace("-", "\N{MINUS SIGN}")

    solid, dashed = (" (solid)", " (dashed)") if unit else ("", "")
    r = number(of.get("r")) if not _known(of.get("r")) else f"{of['r']:.3f}".replace("-", "\N{MINUS SIGN}")
    limits = (
        " to ".join(number(of[key]) for key in ("loa_low", "loa_high"))
        if _known(of.get("loa_low"))
        else "not defined"
    )
    return (
        f"n={of.get('n', 0):,}, r {r}; mean difference {number(of.get('bias'))}{solid},\n"
        f"limits of agreement {limits}{dashed}"
    )
