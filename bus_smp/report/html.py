"""Markdown to one HTML page that needs nothing else: no network, no script, no font of its own."""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from markupsafe import Markup
from PIL import Image

from bus_smp import __version__
from bus_smp.figures.style import DPI
from bus_smp.report.markdown import finished, one_line

# characters; a longer cell holds a sentence, not a number
_PROSE = 60


# Pixels per inch of figures in a page: enough for the screen, small enough to send. The folders hold all 300.
_DPI_OF_LINES, _DPI_OF_TISSUE = 150, 120
_JPEG_QUALITY = 60


def page_html(text: str, title: str, pictures: Mapping[str, Path], kind: str = "report") -> str:
    """Markdown as a page; equal text gives equal bytes.

    HTML in the text is shown as text. A policy in the page's head forbids what is not in it: scripts, and anything from
    elsewhere.

    Args:
        text: begins with a heading of the first level and holds one of the second.
        pictures: file name in ``images/`` -> PNG file, which becomes part of the page.
        kind: ``report``: with a table of contents, folded away; another name becomes a class of the page's body.
    """
    markdown = MarkdownIt("commonmark", {"html": False}, renderer_cls=_Page).enable("table")
    tokens = _with_figures(_with_captions(markdown.parse(text)))
    contents = _with_ids(tokens)
    first = next(i for i, token in enumerate(tokens) if token.tag == "h2")
    header, main = (
        finished(markdown.renderer.render(part, markdown.options, {"pictures": pictures}))
        for part in (tokens[:first], tokens[first:])
    )
    environment = Environment(
        loader=PackageLoader("bus_smp.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template("page.html.j2").render(
        title=one_line(title), version=__version__, header=header, contents=contents, main=main, kind=kind
    )


class _Page(RendererHTML):
    """Links without a referrer, figures from ``env["pictures"]``, tables that scroll."""

    def link_open(self, tokens, i, options, env) -> str:
        tokens[i].attrSet("rel", "noreferrer")
        return self.renderToken(tokens, i, options, env)

    def image(self, tokens, i, options, env) -> str:
        source, width = _embedded(env["pictures"][tokens[i].attrs["src"].removeprefix("images/")])
        alt = Markup.escape(_text(tokens[i]))
        return f'<img src="{source}" style="width: {width}px" alt="{alt}">'

    def table_open(self, tokens, i, options, env) -> str:
        caption = Markup.escape(tokens[i].meta["caption"])
        return (
            f'<div class="scroll" role="region" tabindex="0" aria-label="{caption}">\n'
            f"<table>\n<caption>{caption}</caption>\n"
        )

    def table_close(self, tokens, i, options, env) -> str:
        return "</table>\n</div>\n"


def _embedded(path: Path) -> tuple[str, int]:
    """A figure as a data address, and its width on the screen in CSS pixels.

    Pictures of tissue become JPEG, lines stay PNG with few colours: a report of several runs can be sent by mail.
    """
    with Image.open(path, formats=["PNG"]) as opened:
        dpi = opened.info.get("dpi", (DPI, DPI))[0]
        picture = opened.convert("RGB")
    # a third wider than on paper: a screen is read from further away
    width = round(picture.width / dpi * 96 * 4 / 3)
    # Figures of lines are mostly white, pictures of tissue are not.
    thumbnail = picture.reduce(max(1, min(picture.size) // 200)).convert("L")
    is_lines = sum(thumbnail.histogram()[250:]) > 0.5 * thumbnail.width * thumbnail.height
    scale = min(1.0, (_DPI_OF_LINES if is_lines else _DPI_OF_TISSUE) / dpi)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    # reducing_gap: many times faster, and as good for the eye
    picture = picture.resize(size, Image.Resampling.BICUBIC, reducing_gap=1.5)
    data = io.BytesIO()
    if is_lines:
        # a palette: a third of the bytes
        palette = picture.quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
        palette.save(data, "PNG", optimize=True)
    else:
        picture.save(data, "JPEG", quality=_JPEG_QUALITY, optimize=True)
    return (
        f"data:image/{'png' if is_lines else 'jpeg'};base64,{base64.b64encode(data.getvalue()).decode('ascii')}",
        width,
    )


def _text(token: Token) -> str:
    return "".join(child.content for child in token.children or ())


def _with_captions(tokens: Sequence[Token]) -> list[Token]:
    """Bold lines become captions of the tables below them; a row with only a bold cell heads the rows below it."""
    done: list[Token] = []
    for i, token in enumerate(tokens):
        if token.type == "table_open":
            token.meta = {"caption": _text(done[-2])}
            del done[-3:]
        elif token.type == "tr_open" and tokens[i + 1].type == "td_open":
            close = next(j for j in range(i, len(tokens)) if tokens[j].type == "tr_close")
            cells = [one for one in tokens[i:close] if one.type == "inline"]
            row = tokens[i + 1 : close]
            row[0].tag = row[2].tag = "th"
            row[0].attrSet("scope", "row")
            if cells[0].content.startswith("**") and not any(cell.content for cell in cells[1:]):
                token.attrSet("class", "group")
                row[0].attrs = {"scope": "colgroup", "colspan": str(len(cells))}
                for one in row[3:]:
                    one.hidden, one.children, one.content = True, [], ""
        elif token.type == "th_open":
            token.attrSet("scope", "col")
        elif token.type == "td_open" and len(_text(tokens[i + 1])) > _PROSE:
            token.attrSet("class", "prose")
        done.append(token)
    return done


def _with_figures(tokens: list[Token]) -> list[Token]:
    """A paragraph of an image and a line in italics becomes a figure with its caption."""
    for i, token in enumerate(tokens):
        children = token.children or []
        if token.type == "inline" and children and children[0].type == "image":
            tokens[i - 1].tag = tokens[i + 1].tag = "figure"
            token.children = [child for child in children if child.type != "hardbreak"]
            for child in token.children:
                child.tag = child.tag.replace("em", "figcaption")
    return tokens


def _with_ids(tokens: Sequence[Token]) -> list[dict[str, Any]]:
    """Give the headings of two levels ids; the table of contents: ``id, title, inner`` of each."""
    contents: list[dict[str, Any]] = []
    for i, token in enumerate(tokens):
        if token.type == "heading_open" and token.tag in ("h2", "h3"):
            if token.tag == "h2":
                level, name = contents, f"s{len(contents) + 1}"
            else:
                level = contents[-1]["inner"]
                name = f"{contents[-1]['id']}-{len(level) + 1}"
            token.attrSet("id", name)
            level.append({"id": name, "title": _text(tokens[i + 1]), "inner": []})
    return contents
