"""The report as Markdown: templates whose every value is text, whatever characters it holds.

The templates in ``templates/`` are Markdown. Each ``{{ value }}`` in them is escaped for Markdown (and so for the
HTML that is made from it), unless a filter of this file returned it.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from bus_smp.text import counted

# Characters that have a meaning in Markdown or HTML. An underscore inside a word has none, nor has a closing bracket
# unless a parenthesis, bracket or colon follows.
_SPECIAL = re.compile(
    r"([\\`*<>|~$&]|\](?=[(\[:])|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|(?<!\S)#|^[+=-](?=[\s+=-]|$))"
)
# In the text of a link or an image a single bracket has a meaning too.
_SPECIAL_IN_LABEL = re.compile(_SPECIAL.pattern.replace(r"\](?=[(\[:])", r"[\[\]]"))
_NUMBERING = re.compile(r"^(\d+)([.)])(?=\s|$)")


def one_line(text: str) -> str:
    """Text without what no page can show: control characters, line ends, halves of surrogate pairs."""
    return re.sub("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+", " ", text)


def escape(value: Any) -> Markup:
    """A value as Markdown that shows its text on one line and does nothing else; ``Markup`` stays as it is."""
    if isinstance(value, Markup):
        return value
    text = _SPECIAL.sub(r"\\\1", one_line(str(value)).lstrip())
    return finished(_NUMBERING.sub(r"\1\\\2", text))


def finished(text: str) -> Markup:
    """Markdown or HTML in which every value is escaped already; no template escapes it again."""
    # The only place that marks text as escaped: values pass through the functions of this file, HTML through markdown-it.
    return Markup(text)  # nosec B704


def label(text: str) -> Markup:
    """As ``escape``, for the text of a link or an image."""
    return finished(_SPECIAL_IN_LABEL.sub(r"\\\1", one_line(text)))


def link(url: str) -> Markup:
    """A web address as a link to itself; anything else as text. Nothing is loaded from it."""
    url = one_line(url)
    if not re.match(r"https?://[^\s]+$", url):
        return escape(url)
    target = re.sub(r"[\s<>()\\]", lambda match: f"%{ord(match.group()):02X}", url)
    return finished(f"[{label(url)}]({target})")


def code(text: str) -> Markup:
    """A code span; its fence is longer than any run of backticks in the text."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence, pad = "`" * (longest + 1), " " * (longest > 0)
    return finished(fence + pad + one_line(text) + pad + fence)


def table_row(cells: Sequence[Any]) -> Markup:
    """A row of a table, where a dash is only a dash."""
    return finished("| " + " | ".join("-" if cell == "-" else escape(cell) for cell in cells) + " |")


def table_head(cells: Sequence[Any]) -> Markup:
    """The head of a table and the line below it."""
    return finished(f"{table_row(cells)}\n|{'---|' * len(cells)}")


def table_group(text: str, columns: int) -> Markup:
    """A row that heads the rows below it."""
    return table_row([finished(f"**{escape(text)}**"), *[""] * (columns - 1)])


def format_number(value: Any, digits: int = 3) -> str:
    """A number with ``digits`` decimals; ``-`` where it is None or NaN."""
    return "-" if value is None or math.isnan(value) else f"{value:,.{digits}f}"


def templates(facts: Mapping[str, Any]) -> Environment:
    """The environment of all templates, in which ``facts`` can be used by name.

    A name or key that does not exist is an error, not an empty text.
    """
    environment = Environment(
        loader=PackageLoader("bus_smp.report"), autoescape=True, finalize=escape, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {
        "label": label, "link": link, "code": code, "row": table_row, "head": table_head, "group": table_group,
        "verbatim": lambda text: finished(one_line(text)), "count": "{:,}".format, "number": format_number,
        "plural": counted,
        "capitalised": lambda text: text[:1].upper() + text[1:],
    }  # fmt: skip
    environment.globals |= facts
    return environment
