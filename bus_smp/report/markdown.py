"""A report as Markdown, for a repository's pages."""

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from bus_smp.report.blocks import (
    Block,
    Bullets,
    Code,
    Commands,
    Document,
    Figure,
    Heading,
    Link,
    Paragraph,
    Section,
    Table,
    Text,
    one_line,
    parts,
)
from bus_smp.system.files import replacing, write_text

# Whatever a name could say to Markdown or HTML. An underscore inside a word says nothing, nor do brackets
# that no parenthesis, bracket or colon follows.
_SPECIAL = re.compile(r"([\\`*<>|~$&]|\](?=[(\[:])|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))")


_SPECIAL_IN_LABEL = re.compile(
    _SPECIAL.pattern.replace(r"\](?=[(\[:])", r"[\[\]]")
)  # none may stand alone there
_BAR = re.compile(r"(?<!\\)\|")
# What would make a list or a heading of a line that begins with it.
_BEGINNING = re.compile(r"^(\d*)([#+-]|[.)](?=\s))")


def write_markdown(document: Document, path: Path) -> list[Path]:
    """Write ``path``, and the figures it shows where ``images_beside`` says. Equal input gives equal bytes.

    Returns:
        the images written.

    Raises:
        BusSmpError: if the disk is full or the folder cannot be written to.
    """
    images = images_beside(path, document)
    for image, figure in zip(images, document.figures(), strict=True):
        with replacing(image) as temporary:
            temporary.write_bytes(figure.path.read_bytes())
    write_text(path, markdown_text(document))
    return images


def images_beside(path: Path, document: Document) -> list[Path]:
    """Where the figures of ``document.figures()`` go if it becomes the page ``path``: ``images/`` beside it."""
    return [Path(path).parent / "images" / figure.name for figure in document.figures()]


def markdown_text(document: Document) -> str:
    """The document as GitHub's Markdown; figures are looked for in ``images/``."""
    lines = [f"# {_inline(document.title)}", "", _inline(document.subtitle), ""]
    for section in document.sections:
        lines += _section(section, 2)
    return "\n".join(lines).rstrip("\n") + "\n"


def _section(section: Section, level: int) -> Iterator[str]:
    yield from (f"{'#' * min(level, 6)} {_inline(section.title)}", "")
    for block in section.blocks:
        if isinstance(block, Section):
            yield from _section(block, level + 1)
        else:
            yield from _WRITERS[type(block)](block)
            yield ""


def _paragraph(block: Paragraph) -> Iterator[str]:
    yield f"> **Warning:** {_inline(block.text)}" if block.kind == "warning" else _at_the_start(block.text)


def _bullets(block: Bullets) -> Iterator[str]:
    yield from ("- " + _at_the_start(item) for item in block.items)


def _at_the_start(text: Text) -> str:
    return _BEGINNING.sub(r"\1\\\2", _inline(text))


def _commands(block: Commands) -> Iterator[str]:
    yield from (f"    {one_line(line)}" for line in block.lines)


def _table(block: Table) -> Iterator[str]:
    yield from (f"**{_inline(block.caption)}**", "")
    yield _row([_inline(cell) for cell in block.head])
    yield "|" + "---|" * len(block.head)
    for row in block.rows:
        if isinstance(row, Heading):
            yield _row([f"**{_inline(row.text)}**", *[""] * (len(block.head) - 1)])
        else:
            yield _row([_inline(cell) for cell in row])


def _row(cells: Sequence[str]) -> str:
    # a bar ends a cell even inside a code span
    return "| " + " | ".join(_BAR.sub(r"\|", cell) for cell in cells) + " |"


def _figure(block: Figure) -> Iterator[str]:
    yield f"![{_label(block.alt)}](images/{block.name})"
    yield from ("", f"*{_inline(block.caption)}*")


_WRITERS: dict[type, Callable[[Block], Iterator[str]]] = {
    Paragraph: _paragraph, Bullets: _bullets, Commands: _commands, Table: _table, Figure: _figure,
}  # fmt: skip


def _inline(text: Text) -> str:
    return "".join(_part(part) for part in parts(text))


def _part(part: str | Code | Link) -> str:
    if isinstance(part, Link):
        url = re.sub(r"[\s<>()\\]", lambda match: f"%{ord(match.group()):02X}", part.url)
        return f"[{_label(part.text)}]({url})"
    if isinstance(part, Code):
        # a fence longer than any run of backticks inside
        longest = max((len(run) for run in re.findall("`+", part.text)), default=0)
        fence, pad = "`" * (longest + 1), " " * (longest > 0)
        return fence + pad + one_line(part.text) + pad + fence
    return _escaped(part)


def _escaped(text: str) -> str:
    return _SPECIAL.sub(r"\\\1", one_line(text))


def _label(text: str) -> str:
    return _SPECIAL_IN_LABEL.sub(r"\\\1", one_line(text))
