"""Reliability diagrams of lesion pixels and of malignant images."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bus_smp.classes import MALIGNANT
from bus_smp.figures.style import BLUE, GREY, PAGE, VERMILLION, save, style, wrap

# inches: a panel's side, and where the two begin
_SIDE, _LEFTS = 2.4, (0.8, 4.4)
# inches that a panel's legend may take
_TEXT = 3.0
# of the image-level diagram; there are fewer images than pixels
_BINS = 10

# stage -> (words, colour, dashes, marker)
_STAGES = {
    "before": ("before temperature", VERMILLION, (0, (4, 1.5)), "s"),
    "after": ("after temperature", BLUE, "-", "o"),
}


def write_calibration(reliability: pd.DataFrame, per_image: pd.DataFrame, path: Path, title: str) -> None:
    """Reliability of lesion pixels and of malignant images.

    Args:
        reliability: the table of ``reliability.csv``; ``stage`` is ``before`` or ``after``.
        per_image: the per-image table with ``malignant_score``, and where known ``malignant_score_raw``.
        path: PNG to write.
        title: wrapped to the figure's width.

    A point of a reliability diagram is a bin: mean probability against the share that is positive (DeGroot &
    Fienberg 1983; Niculescu-Mizil & Caruana, ICML 2005); an empty bin has none. The strip below counts them.
    """
    title = wrap(title, PAGE - 0.2, 9)
    with style():
        figure = Figure((PAGE, 1))
        above = 0.45 + 0.17 * (title.count("\n") + 1)
        height = above + _SIDE + 1.75
        figure.set_figheight(height)
        panels = [
            figure.add_axes((left / PAGE, 1 - (above + _SIDE) / height, _SIDE / PAGE, _SIDE / height))
            for left in _LEFTS
        ]
        strips = [
            figure.add_axes((left / PAGE, 1 - (above + _SIDE + 0.55) / height, _SIDE / PAGE, 0.4 / height))
            for left in _LEFTS
        ]
        pixels = {stage: _pixel_bins(reliability, stage) for stage in _STAGES}
        images = {
            stage: _image_bins(per_image, column)
            for stage, column in (("before", "malignant_score_raw"), ("after", "malignant_score"))
        }
        _reliability(panels[0], strips[0], pixels, "pixels")
        panels[0].set(title="Lesion pixels", ylabel="share that is lesion")
        strips[0].set_xlabel("lesion probability (mean of bin)")
        _reliability(panels[1], strips[1], images, "images")
        panels[1].set(title="Malignant images", ylabel="share that is malignant")
        strips[1].set_xlabel("malignant score (mean of bin)")
        for axes, left in zip(panels, _LEFTS, strict=True):
            handles, labels = axes.get_legend_handles_labels()
            figure.legend(
                handles, [wrap(label, _TEXT - 0.6) for label in labels], loc="upper left",
                bbox_to_anchor=((left - 0.5) / PAGE, 1 - (above + _SIDE + 0.97) / height), borderaxespad=0,
                labelspacing=0.3, handlelength=2.6,
            )  # fmt: skip
        figure.text(0.1 / PAGE, 1 - 0.08 / height, title, fontsize=9, va="top")
        save(figure, path)


def _pixel_bins(reliability: pd.DataFrame, stage: str) -> pd.DataFrame | None:
    """Columns low, high, n, p, share of one stage; None where the stage was not recorded."""
    if "stage" not in reliability or not (reliability["stage"] == stage).any():
        return None
    rows = reliability[reliability["stage"] == stage].sort_values("low")
    n = rows["pixels"].to_numpy(float)
    return _bins(
        rows["low"].to_numpy(float),
        rows["high"].to_numpy(float),
        n,
        rows["sum_probability"],
        rows["positives"],
    )


def _image_bins(per_image: pd.DataFrame, column: str) -> pd.DataFrame | None:
    if column not in per_image or per_image[column].isna().all():
        return None
    rows = per_image[per_image[column].notna()]
    score = rows[column].to_numpy(float)
    place = np.clip((score * _BINS).astype(int), 0, _BINS - 1)
    edges = np.arange(_BINS + 1) / _BINS
    malignant = (rows["label"] == MALIGNANT.name).to_numpy(float)
    n, total, positives = (np.bincount(place, w, _BINS) for w in (None, score, malignant))
    return _bins(edges[:-1], edges[1:], n, total, positives)


def _bins(low, high, n, total, positives) -> pd.DataFrame:
    n = np.asarray(n, float)
    with np.errstate(invalid="ignore", divide="ignore"):
        p, share = np.asarray(total, float) / n, np.asarray(positives, float) / n
    return pd.DataFrame({"low": low, "high": high, "n": n, "p": p, "share": share})


def _reliability(axes: Axes, strip: Axes, stages: dict[str, pd.DataFrame | None], unit: str) -> None:
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, zorder=1, label="perfect calibration")
    for (words, color, dashes, marker), bins in zip(_STAGES.values(), stages.values(), strict=True):
        if bins is None:
            axes.plot([], [], color=color, linestyle=dashes, label=f"{words}: not recorded")
            continue
        used = bins[bins["n"] > 0]
        axes.plot(
            used["p"], used["share"], color=color, linestyle=dashes, marker=marker, markersize=4,
            fillstyle="none", label=f"{words}, n={_short(used['n'].sum())}", clip_on=False,
        )  # fmt: skip
        edges = np.append(bins["low"], bins["high"].iloc[-1:])
        strip.stairs(bins["n"], edges, color=color, linestyle=dashes, linewidth=1.1)
    if all(bins is None for bins in stages.values()):
        axes.lines[0].remove()
        _say(axes, f"not defined: no scored {unit}")
    most = max((bins["n"].max() for bins in stages.values() if bins is not None), default=0)
    axes.set(xlim=(0, 1), ylim=(0, 1), xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
    axes.tick_params(labelbottom=False)
    strip.set_xlim(0, 1)
    strip.set_xticks((0, 0.5, 1), ("0", "0.5", "1"))
    if unit == "pixels" and most > 1000:
        strip.set_yscale("symlog", linthresh=1)
        strip.minorticks_off()
    strip.set_ylim(0, 1.15 * max(most, 1))
    strip.set_yticks((0, max(most, 1)), ("0", _short(max(most, 1))))
    strip.set_ylabel(unit if strip.get_yscale() == "linear" else f"{unit}\n(log)", labelpad=0)


def _short(number: float) -> str:
    """A count in two or three digits, as fits next to an axis: 950, 12k, 382k, 3.4M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        # 999,600 is 1.0M, not 1000k.
        if number >= 0.9995 * size:
            return f"{number / size:.{1 if number < 9.95 * size else 0}f}{letter}"
    return f"{number:.0f}"


def _say(axes: Axes, text: str) -> None:
    axes.text(
        0.5, 0.5, wrap(text, 0.9 * _SIDE), transform=axes.transAxes, ha="center", va="center",
        color="#444444", style="italic",
    )  # fmt: skip
