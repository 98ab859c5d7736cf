"""What every figure shares: sizes, style, text that fits, and the writing of the files.

Every figure is 3.5 or 7 inches wide (one or two columns of a paper) with no text below 8 points, in the
colours of Okabe and Ito (2008), which colour-blind readers can distinguish. The same input gives the same
bytes. No display, no pyplot, no state between calls.
"""

import bisect
import functools
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties

from bus_smp.system.files import replacing

COLUMN, PAGE = 3.5, 7.0  # inches
# what journals ask of figures with lines
DPI = 300

BLACK, ORANGE, SKY, GREEN, BLUE, VERMILLION, PURPLE = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7",
)  # fmt: skip
GREY = "#767676"

_STYLE: dict[str, Any] = {
    "figure.dpi": DPI,
    "savefig.dpi": DPI,
    # comes with matplotlib, so every machine draws the same
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.labelsize": 8,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "legend.handlelength": 3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.3,
    # TrueType: text in a PDF stays text, and journals take the fonts
    "pdf.fonttype": 42,
    # each picture of a gallery keeps its own pixels: smaller files, in a third of the time
    "image.composite_image": False,
    # a file name may hold dollar signs
    "text.parse_math": False,
}


def style() -> AbstractContextManager[None]:
    """Our style on top of matplotlib's defaults, so that a user's matplotlibrc changes nothing."""
    return matplotlib.style.context(["default", _STYLE])


def ink_on(colour: tuple[float, float, float]) -> str:
    """Black or white, whichever is readable on an RGB colour of 0..1, by its relative luminance."""
    red, green, blue = colour
    return "black" if 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2 > 0.18 else "white"


def square(title: str, labels: Sequence[str]) -> tuple[Figure, Axes]:
    """A figure of one column: the title, square axes, and room below them for the legend that ``add_legend`` draws.

    Args:
        title: wrapped to the figure's width.
        labels: every label of the legend, wrapped already.
    """
    title = wrap(title, COLUMN - 0.2, 9)
    lines = sum(label.count("\n") + 1 for label in labels)
    above, below, side = 0.12 + 0.17 * (title.count("\n") + 1), 0.5 + 0.17 * lines, COLUMN - 0.75
    height = above + side + below
    figure = Figure((COLUMN, height))
    figure.text(0.1 / COLUMN, 1 - 0.08 / height, title, fontsize=9, va="top")
    return figure, figure.add_axes((0.55 / COLUMN, below / height, side / COLUMN, side / height))


def add_legend(figure: Figure) -> None:
    """The legend of a ``square`` figure, at its foot."""
    figure.legend(loc="lower left", bbox_to_anchor=(0.02, 0), borderaxespad=0.3, labelspacing=0.35)


def save(figure: Figure, path: Path, pdf: bool = True) -> None:
    """Write a figure as PNG and, next to it, as PDF for a paper; without date and version, each all or nothing.

    Args:
        pdf: False for figures that are drawn after every epoch: a PDF takes .2 s.
    """
    formats = {"png": {"Software": None}}
    if pdf:
        formats["pdf"] = {"CreationDate": None, "Creator": None, "Producer": None}
    for kind, metadata in formats.items():
        with replacing(path.with_suffix(f".{kind}")) as temporary, warnings.catch_warnings():
            # a name in another script: boxes instead of letters, and no warning
            warnings.filterwarnings("ignore", message="Glyph .* missing")
            if kind == "png":
                figure.savefig(temporary, format=kind, metadata=metadata, pil_kwargs={"compress_level": 1})
            else:
                with _fonts_without_layout():
                    figure.savefig(temporary, format=kind, metadata=metadata)


@contextmanager
def _fonts_without_layout() -> Iterator[None]:
    """Leave the tables of ligatures and kerning out of the fonts in a PDF: half of its time goes into reading them.

    No viewer needs them, because matplotlib has placed each glyph. It has no option for this, so fontTools' default is changed.
    """
    # here, because not every figure is a PDF
    from fontTools.subset import Options

    name = "_drop_tables_default"
    before = getattr(Options, name, [])
    setattr(Options, name, [*before, "GSUB", "GPOS", "GDEF", "kern"])
    try:
        yield
    finally:
        setattr(Options, name, before)


@functools.cache
def _renderer() -> RendererAgg:
    return FigureCanvasAgg(Figure((1, 1), dpi=DPI)).get_renderer()


def _inches(text: str, size: float) -> float:
    """Width of one line of text of ``size`` points."""
    font = FontProperties(family=_STYLE["font.family"], size=size)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        return _renderer().get_text_width_height_descent(text, font, ismath=False)[0] / DPI


def wrap(text: str, inches: float, size: float = 8) -> str:
    """Break text into lines no wider than ``inches``, after a space, ``_``, ``-`` or ``/`` where there is one."""
    lines = []
    for rest in text.splitlines():
        while rest and _inches(rest, size) > inches:
            fits = (
                bisect.bisect_right(range(1, len(rest)), inches, key=lambda n: _inches(rest[:n], size)) or 1
            )
            at = max(rest.rfind(mark, 1, fits + (mark == " ")) for mark in " _-/") + 1 or fits
            lines.append(rest[:at].rstrip())
            rest = rest[at:].lstrip()
        lines.append(rest)
    return "\n".join(lines)
