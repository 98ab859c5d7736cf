"""A report as one HTML file that needs nothing else: no network, no script, no font of its own."""

import base64
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from bus_smp import __version__
from bus_smp.errors import BusSmpError
from bus_smp.figures.style import DPI
from bus_smp.report.blocks import Document, Heading, Link, Section, one_line, parts
from bus_smp.system.files import replacing, write_text


def write_page(document: Document, path: Path) -> None:
    """Write ``page_html`` to ``path``; equal input gives equal bytes."""
    write_text(path, page_html(document))


def page_html(document: Document) -> str:
    """The document as HTML. Every text is escaped; figures are part of the page, as data URIs.

    A policy in the page's head forbids what is not in it: scripts, and anything from elsewhere.
    """
    environment = Environment(
        loader=PackageLoader("bus_smp", "report"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["line"] = one_line
    environment.tests["heading"] = lambda row: isinstance(row, Heading)
    environment.tests["section"] = lambda block: isinstance(block, Section)
    environment.tests["link"] = lambda part: isinstance(part, Link)
    return environment.get_template("page.html.j2").render(
        document=document, version=__version__, parts=parts, kind=lambda block: type(block).__name__,
        data_uri=_data_uri, width=_width,
    )  # fmt: skip


def _width(path: Path) -> int:
    """Width of a PNG in CSS pixels: a third wider than on paper, for a screen is read from further away."""
    return round(int.from_bytes(path.read_bytes()[16:20], "big") / DPI * 96 * 4 / 3)


def _data_uri(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")


def write_pdf(document: Document, path: Path) -> None:
    """Write the same page, laid out for print, as PDF.

    Raises:
        BusSmpError: if WeasyPrint, or the Pango library that it draws text with, is not installed.
    """
    try:
        from weasyprint import HTML
        from weasyprint.urls import URLFetcher
    except ImportError:
        raise BusSmpError(
            "--pdf needs WeasyPrint, which is not installed",
            hint="pip install 'bus_smp[pdf]', or print report.html from a browser",
        ) from None
    except OSError as error:  # its system library is missing
        raise BusSmpError(
            f"--pdf: WeasyPrint cannot start ({error})",
            hint="install Pango (Debian: apt install libpangoft2-1.0-0), or print report.html from a browser",
        ) from None
    identifier = b"bus_smp"  # all else that names a PDF's maker is packed; report replaces what has it
    own = URLFetcher(allowed_protocols=["data"])  # the page's own figures, and nothing from elsewhere
    with replacing(path) as temporary:
        HTML(string=page_html(document), url_fetcher=own).write_pdf(temporary, pdf_identifier=identifier)
