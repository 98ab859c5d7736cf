"""``bus-smp report``."""

from collections.abc import Iterable
from pathlib import Path

import click

from bus_smp.commands.options import out_option


@click.command("report")
@click.argument("names", nargs=-1, metavar="[RUN]...")
@out_option
@click.option(
    "--to",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="File to write.  [default: report.html in the run's folder; for several runs, in --out]",
)
@click.option(
    "--markdown",
    is_flag=True,
    help="Markdown for a repository instead: a page of headlines and <page>-full.md; figures go into images/, none of patients.",
)
@click.option(
    "--for",
    "reader",
    type=click.Choice(["clinic"]),
    help="Two pages for readers in a clinic: verdicts, counts and examples, instead of everything.",
)
@click.option("--pdf", is_flag=True, help="The same page as PDF instead (needs pip install 'bus_smp[pdf]').")
def command(
    names: tuple[str, ...], out: Path, to: Path | None, markdown: bool, reader: str | None, pdf: bool
) -> None:
    """Write everything that was found about one or several runs as one page.

    RUN is the name or folder of a run or an experiment; without one the newest that is finished is taken. Only files
    are read: the evaluations that evaluate and crosseval wrote, the settings, the manifest. The page
    holds its figures and needs no network: it can be sent to someone. It names what is missing.
    """
    if markdown and pdf:
        raise click.UsageError("--markdown and --pdf exclude each other")
    if markdown and reader:
        raise click.UsageError(
            "--markdown and --for exclude each other: the pages for a clinic show patients' images"
        )

    from bus_smp.report.page import Report, images_of, repository_pages, write_markdown, write_page, write_pdf
    from bus_smp.report.reading import find_comparison, find_matrix, read_run
    from bus_smp.runs.find import find_folder

    folders = list(dict.fromkeys(find_folder(name, out) for name in names or (None,)))
    if not names:
        click.echo(f"Run: {folders[0]}, the newest", err=True)
    runs = [read_run(folder) for folder in folders]
    run_names = [run.name for run in runs]
    matrix = comparison = None
    if len(runs) > 1:
        matrix = find_matrix(out, run_names)
        if matrix is None:
            options = " ".join(f"--run {name}" for name in run_names)
            click.echo(f"No matrix of these runs; made by: bus-smp crosseval --matrix {options}", err=True)
    if len(runs) == 2:
        comparison, why = find_comparison(out, run_names)
        if why:
            click.echo(f"{why}; made by: bus-smp compare {' '.join(run_names)}", err=True)
    ending = "md" if markdown else "pdf" if pdf else "html"
    name = "report" if reader is None else f"report-{reader}"
    path = to or (folders[0] if len(folders) == 1 else Path(out)) / f"{name}.{ending}"
    earlier = _refuse_other(path)
    for run in runs:
        for sentence in run.missing:
            click.echo(f"Missing: {run.name}: {sentence}", err=True)
    report = Report(runs, matrix, comparison)
    if markdown:
        pages = repository_pages(report, path)
        for page in pages:
            _refuse_other(page)
        if not earlier:
            _refuse_images(images_of(report, pages))
        write_markdown(report, pages)
    elif pdf:
        write_pdf(report, path, reader or "report")
    else:
        write_page(report, path, reader or "report")
    click.echo(path)


# What every page of bus_smp.report contains: HTML and Markdown near the beginning, PDF at the end.
_MARKS = (b'<meta name="generator" content="bus_smp ', b"Made by bus-smp report ", b"/ID [(bus_smp)")
_NEAR = 16_384  # bytes


def _refuse_other(path: Path) -> bool:
    """A report replaces only a report: ``--to last.ckpt`` would destroy a training.

    Returns:
        whether there is an earlier report.

    Raises:
        BusSmpError: if there is anything else.
    """
    import os

    from bus_smp.errors import BusSmpError
    from bus_smp.system.files import open_regular

    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            ends = file.read(_NEAR)
            file.seek(max(0, size - _NEAR))
            ends += b"\n" + file.read()
        other = "is not a report"
    except FileNotFoundError:
        return False
    except OSError as error:
        ends, size, other = b"", 1, f"cannot be replaced ({error.strerror})"
    if size and not any(mark in ends for mark in _MARKS):
        raise BusSmpError(f"{path}: {other}", hint="name another file with --to")
    return size > 0


def _refuse_images(images: Iterable[Path]) -> None:
    """Without an earlier page next to them, images of these names belong to the user.

    Raises:
        BusSmpError: naming the first one that exists.
    """
    import os

    from bus_smp.errors import BusSmpError

    for image in images:
        if os.path.lexists(image):
            raise BusSmpError(
                f"{image}: would be replaced, but no earlier report wrote it",
                hint="move it elsewhere, or name a file in another folder with --to",
            )
