"""The door: finds the command, lets it speak to the user, turns errors into an exit code."""

import contextlib
import importlib
import os
import sys
from typing import Any

import click

from bus_smp import __version__
from bus_smp.errors import BusSmpError

# Command and the one line of help shown for it. Listing them here keeps `bus-smp --help` free of
# every import but click; a test holds the lines to the docstrings of the commands.
COMMANDS = {
    "make-manifest": "Turn data sets as downloaded into audited, patient-level CSV manifests.",
    "train": "Train the hybrid model on one or more manifests; run again to continue.",
    "crosseval": "Score a run on data sets it never saw.",
    "evaluate": "Score a run on its own test split.",
    "compare": "Compare two runs image by image.",
    "report": "Write all that was found about one or several runs as one page.",
    "predict": "Segment images: colour masks, overlays, one CSV row per image.",
    "info": "Say what a checkpoint, run folder or manifest is, at once.",
    "demo": "Do the whole job on synthetic data.",
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
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))  # in the order of the work


@click.group(cls=_Door, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, "--version", prog_name="bus-smp")
def door() -> None:
    """Breast-ultrasound segmentation that can be trusted.

    Makes manifests without leaks, trains a hybrid ResNet-50, and measures honestly how it does on
    data sets it never saw. Research software, not for clinical use.
    """


def main(arguments: list[str] | None = None) -> None:
    """Run ``bus-smp``. Exit codes: 0 done, 1 the user's input or data, 2 usage, 130 interrupted."""
    try:
        door.main(args=arguments, prog_name="bus-smp", standalone_mode=False)
    except click.exceptions.Abort:
        click.echo("Stopped.", err=True)
        sys.exit(130)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        click.echo("Stopped.", err=True)
        sys.exit(130)
    except BusSmpError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)
    except BrokenPipeError:
        # the reader (head, less) has gone; keep the interpreter from failing at its final flush
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
