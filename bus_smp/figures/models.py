"""Networks side by side: size, work, memory and time."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bus_smp.figures.style import (
    BLACK,
    BLUE,
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

_BARS = (
    ("parameters", "Parameters, millions", 1e-6),
    ("gflop_per_image", "GFLOP per image", 1.0),
    ("peak_memory_mb", "Peak memory, MB", 1.0),
)
_SUFFIX = "_ms"
_MARKS = (
    ("o", BLUE),
    ("s", ORANGE),
    ("^", GREEN),
    ("D", PURPLE),
    ("v", VERMILLION),
    ("P", SKY),
    ("X", BLACK),
    ("*", GREY),
)
# inches
_NAMES, _BAR, _GAP, _ROW = 1.3, 0.95, 0.18, 0.34


def write_models(table: pd.DataFrame, path: Path) -> None:
    """One row for each network: bars for size, work and memory, and a mark for its time on each backend.

    Args:
        table: that of ``models.csv``: ``model, encoder, size_px, batch, parameters, gflop_per_image,
            peak_memory_mb, note``, and ``<backend>_ms`` per image, perhaps with ``_ms_low`` and ``_ms_high``.
            A network without numbers has its note in their place.
        path: PNG to write.
    """
    models = table.to_dict("records")
    backends = [name.removesuffix(_SUFFIX) for name in table.columns if name.endswith(_SUFFIX)]
    columns = 3
    legend = 0.2 * -(-len(backends) // columns)
    top, bottom = 0.62, 0.5 + legend
    height = top + _ROW * max(1, len(models)) + bottom
    with style():
        figure = Figure((PAGE, height))
        figure.text(0.1 / PAGE, 1 - 0.08 / height, _title(table), fontsize=9, va="top")
        left = _NAMES
        for key, words, factor in _BARS:
            axes = _panel(figure, left, _BAR, (top, bottom), models, words)
            _bars(axes, [_number(model.get(key)) * factor for model in models])
            left += _BAR + _GAP
        times = _panel(figure, left, PAGE - left - 0.15, (top, bottom), models, "Time per image, ms")
        _times(times, models, backends)
        for y, model in enumerate(models):
            middle = 1 - (top + _ROW * (y + 0.5)) / height
            figure.text(
                0.1 / PAGE, middle, wrap(str(model["model"]), _NAMES - 0.15), va="center", linespacing=1.1
            )
            if np.isnan(_number(model.get("parameters"))):
                note = wrap(f"not compared: {model.get('note', '')}", PAGE - _NAMES - 0.2).split("\n")
                figure.text(
                    _NAMES / PAGE, middle, "\n".join(note[:2]), va="center", style="italic", color=GREY
                )
        _legend(figure, backends, columns, legend)
        save(figure, path)


def _title(table: pd.DataFrame) -> str:
    if table.empty:
        return "No networks"
    first = table.iloc[0]
    images = "one image" if first["batch"] == 1 else f"{first['batch']} images"
    return f"Networks with the encoder {first['encoder']}: {images} of {first['size_px']} px at a time (less is better)"


def _panel(
    figure: Figure, left: float, width: float, edges: tuple[float, float], models: Sequence, words: str
) -> Axes:
    height = figure.get_figheight()
    top, bottom = edges
    axes = figure.add_axes((left / PAGE, bottom / height, width / PAGE, (height - top - bottom) / height))
    axes.set(ylim=(max(1, len(models)) - 0.5, -0.5), yticks=[])
    axes.text(
        0,
        1.02,
        wrap(words, width),
        transform=axes.transAxes,
        va="bottom",
        weight="bold",
        linespacing=1.1,
    )
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.set_xticks([])
    return axes


def _bars(axes: Axes, values: Sequence[float]) -> None:
    known = [value for value in values if not np.isnan(value)]
    # room for the number behind the longest bar
    axes.set_xlim(0, 1.6 * max(known, default=1) or 1)
    for y, value in enumerate(values):
        if not np.isnan(value):
            axes.barh(y, value, height=0.55, color=SKY)
            axes.plot([0, 0], [y - 0.36, y + 0.36], color=BLACK, linewidth=0.8, clip_on=False)
            axes.annotate(
                _short(value), (value, y), xytext=(3, 0), textcoords="offset points", va="center", color=BLACK
            )


def _times(axes: Axes, models: Sequence[dict], backends: Sequence[str]) -> None:
    """Marks on a logarithmic axis, a line from the quickest to the slowest backend, the two numbers next to it."""
    known = [
        value
        for model in models
        for backend in backends
        if not np.isnan(value := _number(model.get(backend + _SUFFIX)))
    ]
    if not known:
        axes.text(0.02, 0.5, "not measured", transform=axes.transAxes, style="italic", color=GREY)
        return
    low, high = np.log10(min(known)), np.log10(max(known))
    room = max(0.25 * (high - low), 0.12)
    axes.set(xscale="log", xlim=(10 ** (low - room), 10 ** (high + room)))
    axes.minorticks_off()
    axes.set_xticks([])
    for y, model in enumerate(models):
        found = [(_number(model.get(backend + _SUFFIX)), i) for i, backend in enumerate(backends)]
        found = sorted(pair for pair in found if not np.isnan(pair[0]))
        if not found:
            continue
        least, most = found[0][0], found[-1][0]
        axes.plot([least, most], [y, y], color="#CCCCCC", linewidth=1, zorder=1)
        for value, i in found:
            marker, color = _MARKS[i % len(_MARKS)]
            # equal times do not hide each other
            height = y + 0.5 * (i - (len(backends) - 1) / 2) / len(backends)
            axes.plot(
                value, height, marker, color=color, markersize=5.5, markeredgecolor="white", markeredgewidth=0.5,
                zorder=2, clip_on=False,
            )  # fmt: skip
        sides = [(least, (-6, 0), "right"), (most, (6, 0), "left")]
        for value, offset, side in sides if len(found) > 1 else sides[1:]:
            axes.annotate(
                _short(value), (value, y), xytext=offset, textcoords="offset points", ha=side, va="center"
            )


def _legend(figure: Figure, backends: Sequence[str], columns: int, tall: float) -> None:
    height = figure.get_figheight()
    axes = figure.add_axes((_NAMES / PAGE, 0.3 / height, (PAGE - _NAMES) / PAGE, max(tall, 0.01) / height))
    axes.set(xlim=(0, columns), ylim=(-(-len(backends) // columns) or 1, 0))
    axes.axis("off")
    for i, backend in enumerate(backends):
        marker, color = _MARKS[i % len(_MARKS)]
        x, y = i % columns, i // columns + 0.5
        axes.plot(x + 0.04, y, marker, color=color, markersize=5.5, clip_on=False)
        axes.text(x + 0.1, y, backend.replace("_", " "), va="center")
    note = "Times: median on a logarithmic axis, the quickest and the slowest in numbers. Memory: without the weights."
    figure.text(0.1 / PAGE, 0.08 / height, note)


def _number(value: Any) -> float:
    return float("nan") if value is None or pd.isna(value) else float(value)


def _short(value: float) -> str:
    """Three significant digits, without an exponent."""
    return f"{value:,.0f}" if abs(value) >= 99.95 else f"{value:#.3g}"
