"""Where the model finds lesions, where it fails, and how its outlines measure: from tables alone.

What is not defined is named on the figure, and never drawn as a number.
"""

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bus_smp.figures.style import BLACK, BLUE, COLUMN, GREEN, GREY, PAGE, VERMILLION, save, style, wrap

_LOOKS = ((BLUE, "-", "o"), (VERMILLION, (0, (5, 1.5)), "s"), (GREEN, "-.", "^"), (BLACK, (0, (1, 1)), "D"))


def write_froc(curves: Mapping[str, tuple], path: Path, title: str) -> None:
    """Free-response operating characteristics: lesions found against false lesions per image.

    Args:
        curves: name -> (false lesions per image >= 0, lesion sensitivity 0..1, ...), arrays in the order of a
            falling threshold; empty or NaN where there is no true lesion: named, not drawn. More is not read.
        path: PNG to write.
        title: wrapped to the figure's width.

    The marker: every predicted lesion counts (Bunch et al., SPIE 127, 1977; Chakraborty, Med Phys 1989).
    """
    title = wrap(title, COLUMN - 0.2, 9)
    drawn = {}
    for name, (false, found, *_) in curves.items():
        false, found = np.asarray(false, float), np.asarray(found, float)
        known = np.isfinite(false) & np.isfinite(found)
        drawn[name] = false[known], found[known]
    labels = {
        name: wrap(
            f"{name}: {found[-1]:.3f} of the lesions at {false[-1]:.2f} false ones per image"
            if len(found)
            else f"{name}: not defined, no true lesion",
            COLUMN - 0.8,
        )
        for name, (false, found) in drawn.items()
    }
    lines = sum(label.count("\n") + 1 for label in labels.values())
    above, below = 0.12 + 0.17 * (title.count("\n") + 1), 0.55 + 0.17 * lines
    side = COLUMN - 0.75
    height = above + side + below
    with style():
        figure = Figure((COLUMN, height))
        axes = figure.add_axes((0.55 / COLUMN, below / height, side / COLUMN, side / height))
        most = max((false.max() for false, _ in drawn.values() if len(false)), default=0) or 1
        for i, (name, (false, found)) in enumerate(drawn.items()):
            color, dashes, marker = _LOOKS[i % len(_LOOKS)]
            # From nothing predicted, and level from the last point on: no threshold finds more.
            x, y = (np.r_[0, false, most], np.r_[0, found, found[-1]]) if len(found) else ([], [])
            axes.plot(
                x, y, color=color, linestyle=dashes, drawstyle="steps-post", label=labels[name],
                linewidth=1.5, marker=marker, markevery=[len(x) - 2] if len(x) else None, fillstyle="none",
                clip_on=False,
            )  # fmt: skip
        axes.set(xlim=(0, most), ylim=(0, 1))
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel("false lesions per image")
        axes.set_ylabel("lesions found (sensitivity)")
        figure.text(0.1 / COLUMN, 1 - 0.08 / height, title, fontsize=9, va="top")
        if drawn:
            figure.legend(loc="lower left", bbox_to_anchor=(0.02, 0), borderaxespad=0.3, labelspacing=0.35)
        save(figure, path)


# Difficulty

_BY = {"size": "lesion size", "class": "class", "flags": "flag", "dataset": "data set"}
_NAMES, _PANEL_GAP = 2.35, 0.2  # inches


def stratum_name(level: str, of: Mapping) -> str:
    """A level, with the share of the image that its lesions take where it has such ``bounds`` (0..1)."""
    if not of.get("bounds"):
        return level
    low, high = (f"{100 * bound:.1f}" for bound in of["bounds"])
    return f"{level} ({low} to {high} % of the image)"


def write_difficulty(strata: Mapping[str, Mapping[str, Mapping]], path: Path, title: str) -> None:
    """Lesion Dice and missed lesions by stratum: a dot, its interval, and the number of images behind it.

    Args:
        strata: what the images are divided by -> level -> estimates by name, of which ``dice_lesion`` and
            ``miss_rate`` are drawn; the form that ``summarise`` gives them.
        path: PNG to write.
        title: wrapped to the figure's width.

    A hollow dot has no interval; a stratum where the number is not defined says so.
    """
    title = wrap(title, PAGE - 0.2, 9)
    rows: list[tuple[str, Mapping | None]] = []
    for by, levels in strata.items():
        rows.append((wrap(f"by {_BY.get(by, by)}", _NAMES - 0.1), None))
        rows += [(wrap(stratum_name(level, of), _NAMES - 0.25), of) for level, of in levels.items()]
    heights = [
        0.06 + 0.15 * (name.count("\n") + 1) + (0.06 if stratum is None else 0) for name, stratum in rows
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
        for (name, stratum), middle in zip(rows, middles, strict=True):
            figure.text(
                (0.1 if stratum is None else 0.2) / PAGE, 1 - (above + middle) / height, name, va="center",
                weight="bold" if stratum is None else "normal",
            )  # fmt: skip
        drawings = (
            (panels[0], "dice_lesion", "Dice of the lesion", BLUE, "o"),
            (panels[1], "miss_rate", "missed lesions (share)", VERMILLION, "s"),
        )
        for axes, key, words, color, marker in drawings:
            for (_, stratum), middle in zip(rows, middles, strict=True):
                if stratum is not None:
                    _dot(axes, stratum.get(key), middle, color, marker)
                else:
                    axes.axhline(middle - 0.12, color="#CCCCCC", linewidth=0.6)
            axes.set(xlim=(0, 1), ylim=(plot, 0), xlabel=words, yticks=())
            axes.set_xticks((0, 0.25, 0.5, 0.75, 1), ("0", ".25", ".5", ".75", "1"))
            axes.grid(axis="x", color="#DDDDDD", linewidth=0.6)
            axes.set_axisbelow(True)
            axes.spines["left"].set_visible(False)
        if not rows:
            figure.text(0.1 / PAGE, 1 - (above + 0.2) / height, "not defined: no strata", style="italic")
        note = "Dot and 95 % interval; hollow: no interval. n: images the number is taken over."
        figure.text(0.1 / PAGE, 0.06 / height, note, color="#444444")
        figure.text(0.1 / PAGE, 1 - 0.08 / height, title, fontsize=9, va="top")
        save(figure, path)


def _dot(axes: Axes, estimate: Mapping | None, y: float, color: str, marker: str) -> None:
    """One estimate; its n stands on the side where there is room."""
    if estimate is None or estimate["mean"] is None:
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


# Agreement

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
            if len(truth) == 0:
                axes.set(xticks=(), yticks=())
                text = wrap("not defined: no lesion was found", 0.85 * side)
                axes.text(0.5, 0.5, text, ha="center", va="center", style="italic", color="#444444")
            elif quantity == "area":
                _bland_altman(axes, truth, predicted, of)
            else:
                _against(axes, truth, predicted, words)
            figure.text(
                (x - 0.45) / PAGE, 1 - (y + side + 0.44) / height, _agreement_words(of, quantity == "area"),
                va="top", linespacing=1.3,
            )  # fmt: skip
        figure.text(0.1 / PAGE, 1 - 0.08 / height, title, fontsize=9, va="top")
        save(figure, path)


def _bland_altman(axes: Axes, truth: np.ndarray, predicted: np.ndarray, of: Mapping) -> None:
    thousand = max(truth.max(), predicted.max()) >= 10_000
    unit, scale = ("thousand pixels", 1000.0) if thousand else ("pixels", 1.0)
    mean, difference = (truth + predicted) / 2 / scale, (predicted - truth) / scale
    axes.plot(mean, difference, "o", color=BLUE, markersize=3, fillstyle="none", alpha=0.7, linestyle="none")
    axes.axhline(0, color=GREY, linewidth=0.8)
    lines = [
        (of.get("bias"), "-", 1.3),
        (of.get("loa_low"), (0, (4, 2)), 1.1),
        (of.get("loa_high"), (0, (4, 2)), 1.1),
    ]
    drawn = [difference.min(), difference.max(), 0.0]
    for value, dashes, width in lines:
        if _known(value):
            axes.axhline(value / scale, color=VERMILLION, linestyle=dashes, linewidth=width)
            drawn.append(value / scale)
    margin = 0.08 * (max(drawn) - min(drawn)) or 1.0
    axes.set(xlim=(0, 1.05 * mean.max()), ylim=(min(drawn) - margin, max(drawn) + margin))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel(f"mean of truth and prediction ({unit})")
    axes.set_ylabel("prediction \N{MINUS SIGN} truth")


def _against(axes: Axes, truth: np.ndarray, predicted: np.ndarray, words: str) -> None:
    most = 1.05 * max(truth.max(), predicted.max())
    axes.plot([0, most], [0, most], color=GREY, linewidth=0.8, zorder=1)
    axes.plot(truth, predicted, "o", color=BLUE, markersize=3, fillstyle="none", alpha=0.7, linestyle="none")
    axes.set(xlim=(0, most), ylim=(0, most), xlabel=f"{words}, truth", ylabel=f"{words}, prediction")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(5))


def _known(value: float | None) -> bool:
    return value is not None and not math.isnan(value)


def _agreement_words(of: Mapping, is_area: bool) -> str:
    """Two lines: n, r and the mean difference; the limits of agreement, and as which lines they are drawn."""

    def number(value: float | None) -> str:
        if not _known(value):
            return "not defined"
        return (f"{value:+,.0f}" if is_area else f"{value:+.3f}").replace("-", "\N{MINUS SIGN}")

    solid, dashed = (" (solid)", " (dashed)") if is_area else ("", "")
    r = number(of.get("r")) if not _known(of.get("r")) else f"{of['r']:.3f}".replace("-", "\N{MINUS SIGN}")
    limits = (
        " to ".join(number(of[key]) for key in ("loa_low", "loa_high"))
        if _known(of.get("loa_low"))
        else "not defined"
    )
    return (
        f"n={of.get('n', 0)}, r {r}; mean difference {number(of.get('bias'))}{solid},\n"
        f"limits of agreement {limits}{dashed}"
    )
