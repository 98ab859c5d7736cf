"""``bus-smp serve``."""

from pathlib import Path

import click

from bus_smp.commands.options import (
    Root,
    backend_option,
    device_option,
    out_option,
    precision_option,
    root_option,
    views_option,
)


@click.command("serve")
@click.argument("inputs", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--run", "runs", multiple=True,
    help="Name or folder of the run; two --run are compared, their names hidden.  [default: the newest that is finished]",
)  # fmt: skip
@views_option
@out_option
@click.option(
    "--mode",
    type=click.Choice(["blind", "concurrent", "none"]),
    default="blind",
    show_default=True,
    help="blind: the model's answer is shown after the reader's own is stored. none: never.",
)
@click.option("--reader", default="reader", show_default=True, help="Who reads, as the records name them.")
@click.option(
    "--to", "folder", type=click.Path(path_type=Path), default="feedback", show_default=True,
    help="Folder of the answers.",
)  # fmt: skip
@click.option(
    "--review", type=click.Path(path_type=Path), help="Manifest whose masks are shown instead of a model's."
)
@root_option
@click.option(
    "--shuffle", type=click.IntRange(min=0), metavar="SEED", help="Order of the images by this seed."
)
@click.option(
    "--port", type=click.IntRange(0, 65535), default=0, help="Port of the page.  [default: a free one]"
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address of this computer to listen on.")
@click.option("--allow-network", is_flag=True, help="Let other computers open the page, without encryption.")
@click.option("--no-browser", is_flag=True, help="Only print the link.")
@device_option
@backend_option
@precision_option
def command(
    inputs: tuple[Path, ...],
    runs: tuple[str, ...],
    views: tuple[str, ...],
    out: Path,
    mode: str,
    reader: str,
    folder: Path,
    review: Path | None,
    root: Root,
    shuffle: int | None,
    port: int,
    host: str,
    allow_network: bool,
    no_browser: bool,
    device: str,
    backend: str,
    precision: str,
) -> None:
    """Open a page in the browser on which a radiologist reads, corrects and answers.

    INPUTS are image files and folders; more can be dropped on the page. It prints a link that works on
    this computer only, and ends with Ctrl-C. Answers go to FOLDER/records.jsonl, corrected outlines to
    FOLDER/corrections.csv, which make-manifest --csv takes. bus-smp feedback FOLDER tabulates them.

    Research software, not for clinical use.
    """
    import contextlib
    import ipaddress
    import random
    import re
    import secrets
    import socket

    from bus_smp.data.manifest import read_manifest
    from bus_smp.errors import BusSmpError, ConfigError
    from bus_smp.system.console import note
    from bus_smp.text import NOT_CLINICAL, counted

    try:
        from bus_smp.serve.app import make_app, run_app
    except ImportError as error:
        raise ConfigError(
            f"the page needs packages that are not installed ({error.name})",
            hint="pip install 'bus_smp[serve]'",
        ) from None
    from bus_smp.serve.answers import answer_by_run, review_manifest
    from bus_smp.serve.reading import Reading
    from bus_smp.serve.records import open_journal
    from bus_smp.serve.worklist import Worklist, find_cases

    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}", reader):
        raise ConfigError(f"--reader {reader}: use up to 40 letters, digits, . _ -")
    local = host in ("127.0.0.1", "localhost")
    everywhere = host == ""
    if not local and not allow_network:
        raise ConfigError(
            f"--host {host}: other computers could open the page, and images would travel without encryption",
            hint=f"if that is what you want: --host {host} --allow-network",
        )
    with contextlib.suppress(ValueError):
        everywhere = ipaddress.ip_address(host).is_unspecified
    if everywhere:
        raise ConfigError(
            f"--host {host}: stands for every network of this computer",
            hint="name the one address under which the others reach it",
        )
    if len(runs) > 2:
        raise ConfigError("at most two runs are compared", hint="--run A --run B")
    if review and (inputs or runs):
        raise ConfigError(
            "--review shows the images and masks of a manifest", hint="leave out files and --run"
        )
    if review:
        cases, source = review_manifest(review.stem, read_manifest(review, root))
        sources = [source]
    else:
        cases, sources = find_cases(inputs, say=note), []
        if mode != "none":
            from bus_smp.inference.backends import check_backend, open_ensemble
            from bus_smp.runs.find import find_ensemble

            check_backend(backend, device, precision)
            for run in runs or (None,):
                ensemble = find_ensemble([run] if run else [], out, views)
                predictor, header = open_ensemble(
                    ensemble, backend=backend, device=device, precision=precision, say=note
                )
                sources.append(answer_by_run(ensemble, predictor, header))
    if shuffle is not None:
        random.Random(shuffle).shuffle(cases)
    token = secrets.token_urlsafe(24)
    with open_journal(folder) as journal:
        if journal.cut:
            note(f"{folder}: the last record was not whole and was removed; its answer counts as not given")
        try:
            listening = socket.create_server((host, port))
        except OSError as error:
            raise BusSmpError(
                f"{host}:{port} cannot be listened on ({error.strerror})", hint="choose another --port"
            ) from None
        reading = Reading(Worklist(cases), journal, sources, mode=mode, reader=reader, seed=shuffle or 0)
        link = f"http://{host}:{listening.getsockname()[1]}/#{token}"
        names = " and ".join(source.name for source in sources) or "no model"
        note(f"{counted(len(cases), 'image')}, {names}, mode {mode}, reader {reader}; answers go to {folder}")
        if not local:
            note(
                "Others in this network can open the page with this link, and read what travels: it is not encrypted."
            )
        click.echo(f"Open {link}")
        note(f"Ctrl-C ends it. {NOT_CLINICAL}.")
        if not no_browser:
            _open_browser(link)
        try:
            run_app(
                make_app(reading, token, [host, "localhost", "127.0.0.1"] if local else [host]), listening
            )
        finally:
            reading.close()


def _open_browser(link: str) -> None:
    """Open the link through a file that only this user can read: the list of processes shows a browser's arguments."""
    import html
    import tempfile
    import threading
    import webbrowser

    with tempfile.NamedTemporaryFile("w", suffix=".html", delete=False, encoding="utf-8") as file:
        file.write(f'<meta http-equiv="refresh" content="0; url={html.escape(link)}">')
    page = Path(file.name)
    threading.Thread(target=webbrowser.open, args=(page.as_uri(),), daemon=True).start()
    # by then the browser has read it
    timer = threading.Timer(20, page.unlink, kwargs={"missing_ok": True})
    timer.daemon = True
    timer.start()
