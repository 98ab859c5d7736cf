"""Free-response operating characteristics: lesions found against false lesions."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bus_smp.figures.style import BLUE, COLUMN, VERMILLION, add_legend, save, square, style, wrap

_LOOKS = ((BLUE, "-", "o"), (VERMILLION, (0, (5, 1.5)), "s"))
# False lesions per image: the rates at which detection is compared (LUNA16: Setio et al., Medical Image Analysis 42, 2017).
_RATES = (0.125, 0.25, 0.5, 1, 2, 4, 8)
_NAMES = ("1/8", "1/4", "1/2", "1", "2", "4", "8")


def write_froc(curves: Mapping[str, tuple], path: Path, title: str) -> None:
    """Free-response operating characteristics: lesions found against false lesions per image.

    Args:
        curves: name -> (false lesions per image >= 0, lesion sensitivity 0..1, ...), arrays in the order of a
            falling threshold; empty or NaN where there is no true lesion: named, not drawn. More is not read.
        path: PNG to write.
        title: wrapped to the figure's width.

    The marker: every predicted lesion counts (Bunch et al., SPIE 127, 1977; Chakraborty, Med Phys 1989). It stands at the edge
    where its rate is outside the axis.
    """
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
    with style():
        figure, axes = square(title, list(labels.values()))
        for i, (name, (false, found)) in enumerate(drawn.items()):
            color, dashes, marker = _LOOKS[i % len(_LOOKS)]
            look: dict[str, Any] = {"color": color, "clip_on": False}
            if not len(found):
                axes.plot(
                    [], [], linestyle=dashes, marker=marker, fillstyle="none", label=labels[name], **look
                )
                continue
            last = float(np.clip(false[-1], _RATES[0], _RATES[-1]))
            # Left of the axis nothing is drawn; at its edge is what is found with at most that many false lesions.
            inside = (false > _RATES[0]) & (false <= _RATES[-1])
            at_edge = found[false <= _RATES[0]].max(initial=0)
            axes.plot(
                np.r_[_RATES[0], false[inside], last], np.r_[at_edge, found[inside], found[false <= last].max(initial=0)],
                linestyle=dashes, drawstyle="steps-post", label=labels[name], linewidth=1.5, marker=marker, markevery=[-1],
                fillstyle="none", **look,
            )  # fmt: skip
            # No threshold finds more.
            axes.plot([last, _RATES[-1]], [found[-1]] * 2, linestyle=(0, (1, 2)), linewidth=0.8, **look)
        axes.set(xlim=(_RATES[0], _RATES[-1]), ylim=(0, 1))
        axes.set_xscale("log", base=2)
        axes.set_xticks(_RATES, _NAMES)
        axes.minorticks_off()
        axes.set_xlabel("false lesions per image (log scale)")
        axes.set_ylabel("lesions found (sensitivity)")
        if drawn:
            add_legend(figure)
        save(figure, path)
