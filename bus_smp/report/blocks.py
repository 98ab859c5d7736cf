"""What a report is made of, before it becomes HTML or Markdown: sections of paragraphs, tables and figures.

Text is a string, or a sequence of strings, ``Code`` and ``Link``. It is plain: who writes a page escapes it.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Code:
    """A word to be typed or a file's name."""

    text: str


@dataclass(frozen=True)
class Link:
    """``url`` is followed by the reader's click alone; nothing is loaded from it."""

    text: str
    url: str


Text = str | Sequence[str | Code | Link]


@dataclass(frozen=True)
class Paragraph:
    """``kind``: "" or "warning"."""

    text: Text
    kind: str = ""


@dataclass(frozen=True)
class Bullets:
    """``kind``: "" or "warning"."""

    items: Sequence[Text]
    kind: str = ""


@dataclass(frozen=True)
class Commands:
    """Lines to be typed, in their order."""

    lines: Sequence[str]


@dataclass(frozen=True)
class Heading:
    """A row of a table that heads the rows below it."""

    text: str


@dataclass(frozen=True)
class Table:
    """``rows`` are as long as ``head``, or a ``Heading``; the first cell of a row names it.

    ``prose``: cells hold sentences, not numbers.
    """

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[Text] | Heading]
    prose: bool = False


@dataclass(frozen=True)
class Figure:
    """A PNG file. ``alt``: what it shows; ``caption``: how to read it; ``name``: file name of a copy."""

    path: Path
    name: str
    alt: str
    caption: Text


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it; sections may hold sections."""

    title: str
    blocks: list["Block"] = field(default_factory=list)


Block = Paragraph | Bullets | Commands | Table | Figure | Section


@dataclass(frozen=True)
class Document:
    """A whole report."""

    title: str
    subtitle: str
    sections: list[Section]

    def figures(self) -> Iterator[Figure]:
        """All figures, in their order."""

        def within(blocks: Sequence[Block]) -> Iterator[Figure]:
            for block in blocks:
                if isinstance(block, Figure):
                    yield block
                elif isinstance(block, Section):
                    yield from within(block.blocks)

        yield from within(self.sections)


def parts(text: Text) -> Sequence[str | Code | Link]:
    """Text as a sequence of its parts."""
    return (text,) if isinstance(text, str) else text


def link(text: str, url: str) -> Link | str:
    """A link where ``url`` is a web address, else the text alone."""
    return Link(text, url) if re.match(r"https?://[^\s]+$", url) else text


def one_line(text: str) -> str:
    """Text without what no page can show: control characters, line ends, halves of surrogate pairs."""
    return re.sub("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+", " ", text)


def png_name(*words: str) -> str:
    """A file name from names of runs and figures that is plain in a path, a link and on a command line.

    Words that had to be changed are told apart by a hash.
    """
    name = "-".join(words)
    plain = re.sub(r"[^A-Za-z0-9._+-]+", "_", name)[:100]
    return (
        f"{plain}.png"
        if plain == name
        else f"{plain}-{hashlib.sha256(name.encode(errors='backslashreplace')).hexdigest()[:8]}.png"
    )


def is_png(path: Path) -> bool:
    """True where ``path`` is a file that begins as a PNG does."""
    try:
        with path.open("rb") as file:
            return file.read(8) == b"\x89PNG\r\n\x1a\n"
    except OSError:
        return False
