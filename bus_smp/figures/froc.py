"""Free-response operating characteristics: lesions found against false lesions."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bus_smp.figures.style import BLACK, BLUE, COLUMN, GREEN, VERMILLION, save, style, wrap

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
            # The curve begins where nothing is predicted, and is level after its last point: no threshold finds more.
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
