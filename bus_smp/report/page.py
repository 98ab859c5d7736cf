"""The report as files: Markdown for a repository, one HTML page that needs nothing else, the same page as PDF.

Equal runs give equal bytes of Markdown and HTML.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment

from bus_smp import __version__
from bus_smp.classes import LABELS
from bus_smp.errors import BusSmpError
from bus_smp.figures.subgroups import SUBGROUP_WORDS, subgroup_name
from bus_smp.report import facts
from bus_smp.report.claim_checklist import STATES, claim_checklist
from bus_smp.report.data_card import data_cards
from bus_smp.report.html import page_html
from bus_smp.report.markdown import templates
from bus_smp.report.records import RunRecord
from bus_smp.report.reproduce import commands
from bus_smp.statistics.comparison_table import answer, comparison_rows
from bus_smp.statistics.metrics import HEADLINES
from bus_smp.system.files import replacing, write_text

_IDENTIFIER = b"bus_smp"


class Report:
    """What the pages about one or several runs are made from.

    Attributes:
        title: of the page.
        pictures: file name -> file of every figure that a page may show.
    """

    def __init__(
        self,
        runs: Sequence[RunRecord],
        matrix: Path | None = None,
        comparison: Mapping[str, Any] | None = None,
    ) -> None:
        """``matrix``: the heat map of training sets against test sets; ``comparison``: of the two runs; where there is one."""
        drawn = [one for run in runs for of in (*run.evaluations, None) for one in facts.pictures(run, of)]
        heat_map = facts.matrix_picture(matrix) if matrix else None
        self.title = f"Evaluation of {', '.join(run.name for run in runs)}"
        self.pictures = {one.name: one.path for one in (*drawn, *([heat_map] if heat_map else ()))}
        self._environment: Environment = templates(
            {
                "version": __version__, "runs": runs, "matrix": heat_map, "comparison": comparison or {"comparisons": []}, "headlines": HEADLINES,
                "calibrated": facts.CALIBRATED, "packages": facts.PACKAGES, "labels": list(LABELS), "subgroup_words": SUBGROUP_WORDS,
                "subgroup_name": subgroup_name, "claim_states": STATES, "commands": commands,
                "data_cards": data_cards, "examples": facts.examples(runs), "claim_checklist": lambda run: claim_checklist(run, self._environment),
                **{
                    of.__name__: of
                    for of in (
                        facts.verdict, facts.share_of, facts.called, answer, comparison_rows, facts.printed, facts.limits, facts.network, facts.initial_weights,
                        facts.commit, facts.settings_table, facts.pictures,
                    )
                },
            }
        )  # fmt: skip

    def markdown(self, template: str = "report", **more: Any) -> str:
        """The text of a page; its figures are looked for in ``images/``."""
        text = self._environment.get_template(f"{template}.md.j2").render({"for_repository": False, **more})
        # values have no line ends, so this cannot change one
        return re.sub(r"\n{3,}", "\n\n", text).strip("\n") + "\n"

    def html(self, template: str = "report") -> str:
        """The whole report as one HTML page; or another template, of few sections, without a table of contents."""
        return page_html(self.markdown(template), self.title, self.pictures, template)


def repository_pages(report: Report, path: Path) -> dict[Path, str]:
    """The pages that ``write_markdown`` writes: the headlines as ``path``, and everything as ``<path>-full``."""
    full = path.with_name(f"{path.stem}-full{path.suffix}")
    return {
        path: report.markdown("summary", full_name=full.name),
        full: report.markdown(for_repository=True),
    }


def images_of(report: Report, pages: Mapping[Path, str]) -> dict[Path, Path]:
    """Where the figures of these pages go, in ``images/`` next to them -> their files."""
    return {
        page.parent / "images" / name: file
        for name, file in report.pictures.items()
        for page, text in pages.items()
        if f"](images/{name})" in text
    }


def write_markdown(report: Report, pages: Mapping[Path, str]) -> None:
    """Write the pages and the figures that they show.

    Raises:
        BusSmpError: if the disk is full or the folder cannot be written to.
    """
    for image, file in images_of(report, pages).items():
        with replacing(image) as temporary:
            temporary.write_bytes(file.read_bytes())
    for page, text in pages.items():
        write_text(page, text)


def write_page(report: Report, path: Path, template: str = "report") -> None:
    """Write the whole report, or another template, as one HTML file."""
    write_text(path, report.html(template))


def write_pdf(report: Report, path: Path, template: str = "report") -> None:
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
    # its system library is missing
    except OSError as error:
        raise BusSmpError(
            f"--pdf: WeasyPrint cannot start ({error})",
            hint="install Pango (Debian: apt install libpangoft2-1.0-0), or print report.html from a browser",
        ) from None
    # only the page's own figures, nothing from elsewhere
    own = URLFetcher(allowed_protocols=["data"])
    with replacing(path) as temporary:
        HTML(string=report.html(template), url_fetcher=own).write_pdf(temporary, pdf_identifier=_IDENTIFIER)
