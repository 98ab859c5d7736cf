"""``bus-smp clean``."""

import sys
from pathlib import Path

import click

from bus_smp.commands.options import manifests_option, out_option


@click.command("clean")
@out_option
@manifests_option
@click.option(
    "--cache",
    type=click.Path(path_type=Path),
    help="Folder of the resized images, as runtime.cache.  [default: .cache in --out]",
)
@click.option("--yes", is_flag=True, help="Remove without asking.")
def command(out: Path, manifests: Path, cache: Path | None, yes: bool) -> None:
    """Show caches and leftovers with their sizes, and remove them.

    They are made again when they are needed. Weights, manifests and results are never touched.
    """
    from bus_smp.runs.clean import list_removable, remove

    found = list_removable(out, manifests, cache or out / ".cache")
    for one in found:
        click.echo(f"{one.size / 1e6:>10.1f} MB  {one.folder}: {one.kind} ({len(one.paths)})")
    if not found:
        click.echo("Nothing to remove.")
        return
    click.echo(f"{sum(one.size for one in found) / 1e6:>10.1f} MB  in all")
    if not yes and not sys.stdin.isatty():
        click.echo("Nothing is removed yet. Next: bus-smp clean --yes, with the same options", err=True)
        return
    if yes or click.confirm("Remove them?", err=True):
        for one in found:
            remove(one)
        click.echo("Removed.", err=True)
