"""``bus-smp compare``."""

from pathlib import Path

import click

from bus_smp.commands.options import out_option
from bus_smp.commands.quoting import command_line, run_name


@click.command("compare")
@click.argument("run_a")
@click.argument("run_b")
@click.option("--target", help="Data set that both were scored on, e.g. busi.  [default: all of them]")
@click.option(
    "--split",
    type=click.Choice(["all", "test", "oof", "val"]),
    help="Which evaluation of it.  [default: the first that both have, in this order]",
)
@out_option
@click.option("--json", "as_json", is_flag=True, help="Print the comparison as JSON, and nothing else.")
def command(run_a: str, run_b: str, target: str | None, split: str | None, out: Path, as_json: bool) -> None:
    """Compare two runs image by image, or two experiments run by run.

    What both were scored on is compared (crosseval, evaluate): only tables are read. If that is nothing, and both
    were trained on the same data, their own test split is scored first. Each difference comes with its
    interval and with p. Experiments (train --seeds, --folds) are compared by
    the runs that have the same seed and fold, and the interval includes the chance between them.

    Writes outputs/compare-<A>-<B>/: table.csv, table.tex, comparison.json.
    """
    import json

    from bus_smp.evaluation.compare_runs import Side, compare_runs, lacks_own, write_comparison_folder
    from bus_smp.runs.find import find_folder
    from bus_smp.runs.layout import comparison_folder
    from bus_smp.statistics.comparison_table import answer, format_comparison
    from bus_smp.text import counted, folded

    folders = [find_folder(run, out) for run in (run_a, run_b)]
    named = [run_name(folder, out) for folder in folders]
    names = [folder.name for folder in folders]
    if names[0] == names[1]:
        names = [str(folder) for folder in folders]
    sides = [
        Side(folder, command_line("--run", name, out=out).removeprefix("bus-smp "))
        for folder, name in zip(folders, named, strict=True)
    ]
    if lacks_own(sides, target, split):
        for name in named:
            _score(name, out)
    comparisons = compare_runs(sides, target, split)
    folder = comparison_folder(out, *(one.name for one in folders))
    write_comparison_folder(folder, names, comparisons)
    if as_json:
        documents = [{"a": names[0], "b": names[1], **of} for of in comparisons]
        click.echo(json.dumps(documents[0] if len(documents) == 1 else documents, indent=2, allow_nan=False))
    else:
        for of in comparisons:
            unit = counted(of["groups"], "patient" if of["patient_known"] else "group")
            pairs = f", {counted(of['pairs'], 'pair')} of runs" if of["pairs"] > 1 else ""
            about = f"{of['target']}, {of['split']}: {counted(of['images'], 'image')} of {unit}{pairs}"
            lines = [*folded(about), *folded(answer(of, "AB")), "", format_comparison(of, names)]
            if not of["patient_known"]:
                lines += folded(
                    "Warning: the data set publishes no patient ids: intervals and p may be too small"
                )
            click.echo("\n".join([*lines, ""]))
    click.echo(f"Written: {folder}", err=True)
    click.echo(f"Next: {command_line('report', *named, out=out)}", err=True)


def _score(name: str, out: Path) -> None:
    """``bus-smp evaluate``, without its output."""
    from bus_smp.evaluation.scoring import Scorer
    from bus_smp.runs.find import find_trained
    from bus_smp.system.console import note

    trained = find_trained(name, out)
    note(f"{name} is not scored yet: its own test split is scored first")
    for _ in Scorer(say=note, bar=True).score_own(trained, trained.manifest(), "test"):
        pass
