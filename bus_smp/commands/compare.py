"""``bus-smp compare``."""

from pathlib import Path

import click

from bus_smp.commands.options import out_option


@click.command("compare")
@click.argument("run_a")
@click.argument("run_b")
@click.option("--target", required=True, help="Data set that both were scored on, e.g. busi.")
@click.option(
    "--split",
    type=click.Choice(["all", "test", "oof", "val"]),
    help="Which evaluation of it.  [default: the first that both have, in this order]",
)
@out_option
@click.option("--json", "as_json", is_flag=True, help="Print the comparison as JSON, and nothing else.")
def command(run_a: str, run_b: str, target: str, split: str | None, out: Path, as_json: bool) -> None:
    """Compare two runs image by image.

    Both must have been scored on the same images (crosseval, evaluate); only their tables are read. Each
    difference comes with its interval and with p, from swapping the runs in whole patients.
    """
    import json

    from bus_smp.evaluation.compare_runs import compare_runs
    from bus_smp.runs.find import find_folder
    from bus_smp.statistics.compare import format_comparison

    folders = [find_folder(run, out) for run in (run_a, run_b)]
    names = [folder.name for folder in folders]
    comparison = compare_runs(folders, target, split)
    if as_json:
        about = {"a": names[0], "b": names[1], "target": target, "split": comparison.split}
        document = {**about, "patient_known": comparison.patient_known, **comparison.found}
        click.echo(json.dumps(document, indent=2, allow_nan=False))
        return
    click.echo(f"{target}, {comparison.split}\n")
    click.echo(format_comparison(comparison.found, names))
    if not comparison.patient_known:
        click.echo("Warning: the data set publishes no patient ids: intervals and p may be too small")
