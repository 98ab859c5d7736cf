"""The command line: finds the command, runs it, and turns errors into a message and an exit code."""

import contextlib
import errno
import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from bus_smp import __version__
from bus_smp.errors import BusSmpError
from bus_smp.system import ranks, streams
from bus_smp.system import signals as stopping
from bus_smp.system.threads import spin_briefly
from bus_smp.text import printable

# Command and the one line of help shown for it, in the order of the work. Listing them here keeps `bus-smp --help`
# free of every import but click; a test holds the lines to the docstrings of the commands.
GROUPS = {
    "Six commands that everyone needs": {
        "make-manifest": "Turn data sets as downloaded into audited, patient-level CSV manifests.",
        "train": "Train the hybrid model on one or more manifests; run again to continue.",
        "evaluate": "Score a run on its own test split.",
        "crosseval": "Score a run on data sets it never saw.",
        "report": "Write everything that was found about one or several runs as one page.",
        "predict": "Segment images: colour masks, overlays, one CSV row per image.",
    },
    "More commands": {
        "compare": "Compare two runs image by image, or two experiments run by run.",
        "export": "Write a run's network as a file that runs without bus_smp.",
        "calibrate": "Fit temperature and thresholds of a finished run again.",
        "info": "Describe a checkpoint, run folder, manifest or DICOM file at once.",
        "fetch-weights": "Download an encoder's ImageNet weights as a file, for a computer without internet.",
        "serve": "Open a page in the browser on which a radiologist reads, corrects and answers.",
        "feedback": "Tabulate what readers answered on the page: agreement, changed calls, time.",
        "clean": "Show caches and leftovers with their sizes, and remove them.",
        "demo": "Do the whole job on synthetic data.",
        "compare-models": "Compare the hybrid model with other networks: size, work, time, memory.",
    },
}
COMMANDS = {name: line for group in GROUPS.values() for name, line in group.items()}

# What follows "Stopped." when a user stops a command.
_AFTER_STOP = {
    "train": " The same command continues after the last finished epoch.",
    "serve": " All stored answers are on the disk.",
}


class _Door(click.Group):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # names without code: enough for click's "Did you mean", and nothing is imported
        self.commands = {name: click.Command(name, short_help=line) for name, line in COMMANDS.items()}

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        return importlib.import_module(f"bus_smp.commands.{cmd_name.replace('-', '_')}").command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, group in GROUPS.items():
            with formatter.section(title):
                # one column of names for both groups
                formatter.write_dl(
                    [(name.ljust(max(map(len, COMMANDS))), line) for name, line in group.items()]
                )


@click.group(cls=_Door, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, "--version", prog_name="bus-smp")
def door() -> None:
    """Breast-ultrasound segmentation that can be trusted.

    Makes manifests without leaks, trains a hybrid ResNet-50, and measures honestly how it does on
    data sets it never saw. Research software, not for clinical use.
    """


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Only the first of several processes prints; the others print their own errors, after this block."""
    with (
        Path(os.devnull).open("w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield


def main(arguments: list[str] | None = None) -> None:
    """Run ``bus-smp``. Exit codes: 0 done, 1 the user's input or data, 2 usage, 130 Ctrl-C, 143 SIGTERM."""
    typed = sys.argv[1:] if arguments is None else arguments
    words = "Stopped." + _AFTER_STOP.get(typed[0] if typed else "", "")
    # only as the program itself, not as a function of another one
    if arguments is None:
        spin_briefly()
        streams.prepare()
        stopping.listen(words if ranks.is_first() else "")
    try:
        try:
            with contextlib.nullcontext() if ranks.is_first() else _silence(), ranks.together():
                door.main(args=arguments, prog_name="bus-smp", standalone_mode=False)
            # here an error of writing can still be shown
            sys.stdout.flush()
            stopping.finish()
        except BaseException as error:
            # a library that is interrupted may raise another error
            if stopping.received_signal():
                raise KeyboardInterrupt from error
            raise
    except (click.exceptions.Abort, KeyboardInterrupt):
        stopping.stop(words)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except BusSmpError as error:
        who = "" if ranks.is_first() else f" of process {ranks.rank()}"
        if not ranks.is_shown_by_first(error):
            click.echo(f"Error{who}: {error}", err=True)
        sys.exit(1)
    except RuntimeError as error:
        if not ranks.is_lost(error):
            raise
        click.echo(
            f"Error of process {ranks.rank()}: another one has died; its own message says why", err=True
        )
        sys.exit(1)
    except OSError as error:
        # only a name that the user typed can be too long
        if error.errno == errno.ENAMETOOLONG and error.filename:
            click.echo(f"Error: {printable(str(error.filename))}: the name is too long", err=True)
            sys.exit(1)
        if not isinstance(error, BrokenPipeError):
            raise
        # the reader (head, less) has gone; keep the interpreter from failing at its final flush
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
