"""Errors against the share of images for which the model decides: of the malignant call, and of the masks."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

from bus_smp.classes import MALIGNANT
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


def write_coverage(per_image: pd.DataFrame, path: Path, title: str, no_threshold: str) -> None:
    """Error of the malignant call against coverage: the images of which the model is surest are kept first.

    Args:
        per_image: the per-image table with ``label`` and where known ``called_malignant`` and ``call_confidence``.
        path: PNG to write.
        title: wrapped to the figure's width.
        no_threshold: why ``call_confidence`` is empty, where it is.
    """
    columns = ["call_confidence", "called_malignant"]
    known = per_image.reindex(columns=[*columns, "label"]).dropna(subset=columns)
    wrong = (known["called_malignant"] == 1) != (known["label"] == MALIGNANT.name)
    coverage, risk, area = risk_coverage(known["call_confidence"].to_numpy(float), wrong.to_numpy())
    kept = wrap(f"only the surest images decided, n={len(known):,} (area {area:.3f})", COLUMN - 0.8)
    every = f"all images decided: error {risk[-1]:.3f}" if len(risk) else ""
    with style():
        figure, axes = square(title, [kept, every] if len(risk) else [])
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="coverage (share of the images that are decided)")
        axes.set_ylabel("error of the call (share of wrong calls)")
        if len(risk):
            axes.plot(
                coverage, risk, color=GREEN, linewidth=1.5, marker="o" if len(risk) == 1 else "", clip_on=False, label=kept
            )  # fmt: skip
            axes.axhline(risk[-1], color=GREY, linewidth=1, linestyle=(0, (1, 1)), label=every)
            axes.set_ylim(0, min(1.0, max(0.1, 1.15 * risk.max())))
            axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
            add_legend(figure)
        else:
            why = wrap(f"not defined: {no_threshold if len(per_image) else 'no image'}", 0.7 * COLUMN)
            axes.text(0.5, 0.5, why, ha="center", va="center", color="#444444", style="italic")
        save(figure, path)


# Column of the per-image table -> words, colour, dashes.
_UNSURE = {
    "disagreement_networks": ("disagreement of the networks", GREEN, "-"),
    "disagreement_views": ("disagreement of the views", BLUE, (0, (5, 1.5))),
    "lesion_entropy": ("entropy", VERMILLION, "-."),
    "ood_score": ("distance to the training images", BLACK, ":"),
}


def write_uncertainty(per_image: pd.DataFrame, path: Path, title: str) -> None:
    """1 - lesion Dice against coverage, for each uncertainty: the images with the least are kept first.

    Args:
        per_image: the per-image table; only images with a lesion are counted.
        path: PNG to write.
        title: wrapped to the figure's width.
    """
    shown = per_image[per_image["dice_lesion"].notna()]
    risk = 1 - shown["dice_lesion"].to_numpy(float)
    curves = {}
    for column, (words, color, dashes) in _UNSURE.items():
        unsure = shown[column].to_numpy(float)
        if len(shown) and not np.isnan(unsure).any():
            curves[words] = (*risk_coverage(-unsure, risk), color, dashes)
    best = risk_coverage(-risk, risk)
    labels = [wrap(f"{words} (area {area:.3f})", COLUMN - 0.8) for words, (_, _, area, *_) in curves.items()]
    least = wrap(f"by the true Dice: no order is better (area {best[2]:.3f})", COLUMN - 0.8)
    with style():
        figure, axes = square(title, [*labels, least] if curves else [])
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="coverage (share of the images with a lesion)")
        axes.set_ylabel("1 - lesion Dice, mean of the images kept")
        for label, (coverage, mean, _, color, dashes) in zip(labels, curves.values(), strict=True):
            axes.plot(
                coverage, mean, color=color, linestyle=dashes, linewidth=1.5, clip_on=False, label=label,
                marker="o" if len(mean) == 1 else "",
            )  # fmt: skip
        if curves:
            axes.plot(*best[:2], color=GREY, linewidth=1, linestyle=(0, (1, 1)), label=least)
            add_legend(figure)
        else:
            why = "not defined: no image shows a lesion"
            axes.text(0.5, 0.5, why, ha="center", va="center", color="#444444", style="italic")
        save(figure, path)


def risk_coverage(confidence: np.ndarray, wrong: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Error among the most confident images, against the share of images that is kept.

    El-Yaniv & Wiener, JMLR 11, 2010; the area is the mean risk over the coverages 1/n, 2/n, ... 1 (AURC;
    Geifman & El-Yaniv, ICLR 2019). Images of equal confidence are kept or left together, at their mean error.

    Args:
        confidence: float (images,), larger is more confident; may be infinite, not NaN.
        wrong: bool (images,), or float, how wrong each is.

    Returns:
        coverage in (0, 1], risk in 0..1, both float (images,), and the area; empty and NaN without images.
    """
    n = len(confidence)
    if n == 0:
        return np.empty(0), np.empty(0), float("nan")
    # 0: the most confident
    _, tie = np.unique(-np.asarray(confidence, float), return_inverse=True)
    of_tie = np.bincount(tie, np.asarray(wrong, float)) / np.bincount(tie)
    risk = np.cumsum(of_tie[np.sort(tie)]) / np.arange(1, n + 1)
    return np.arange(1, n + 1) / n, risk, float(risk.mean())
