"""``bus-smp compare``."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bus_smp.commands.options import out_option

if TYPE_CHECKING:
    import pandas as pd

_SPLITS = ("all", "test", "oof", "val")


@click.command("compare")
@click.argument("run_a")
@click.argument("run_b")
@click.option("--target", required=True, help="Data set that both were scored on, e.g. busi.")
@click.option(
    "--split",
    type=click.Choice(_SPLITS),
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

    from bus_smp.errors import EvaluationError
    from bus_smp.runs.find import find_folder
    from bus_smp.statistics.compare import compare, format_comparison

    folders = [find_folder(run, out) for run in (run_a, run_b)]
    split = split or _shared_split(folders, target)
    tables, summaries = zip(*(_evaluation(folder, target, split) for folder in folders), strict=True)
    again = " and ".join(_scoring(folder, target, split) for folder in folders)
    if summaries[0].get("rows_sha256") != summaries[1].get("rows_sha256"):
        raise EvaluationError(
            f"the runs were scored on other manifests of {target}",
            hint=f"score both on the same one: {again}",
        )
    try:
        comparison = compare(*tables)
    except EvaluationError as error:
        raise EvaluationError(error.what, hint=f"score both on the same manifest: {again}") from None
    known = all(summary["patient_known"] for summary in summaries)
    if as_json:
        about = {"a": folders[0].name, "b": folders[1].name, "target": target, "split": split}
        click.echo(json.dumps({**about, "patient_known": known, **comparison}, indent=2, allow_nan=False))
        return
    click.echo(f"{target}, {split}\n")
    click.echo(format_comparison(comparison, [folder.name for folder in folders]))
    if not known:
        click.echo("Warning: the data set publishes no patient ids: intervals and p may be too small")


def _shared_split(folders: list[Path], target: str) -> str:
    found = [
        [split for split in _SPLITS if (folder / f"eval-{target}-{split}").is_dir()] for folder in folders
    ]
    return next((split for split in found[0] if split in found[1]), (*found[0], *found[1], _SPLITS[0])[0])


def _scoring(folder: Path, target: str, split: str) -> str:
    if split == "all":
        return f"bus-smp crosseval --run {folder.name} --target {target}"
    return f"bus-smp evaluate --run {folder.name}" + (" --split val" if split == "val" else "")


def _evaluation(folder: Path, target: str, split: str) -> tuple["pd.DataFrame", dict[str, Any]]:
    from bus_smp.errors import EvaluationError
    from bus_smp.runs.evaluations import read_summary
    from bus_smp.runs.find import BEST
    from bus_smp.statistics.summary import read_per_image
    from bus_smp.system.files import file_sha256

    scored = folder / f"eval-{target}-{split}"
    try:
        summary = read_summary(scored)
        if "members" in summary:
            raise EvaluationError(
                f"{scored}: is a mean over runs",
                hint=f"compare one of them: {', '.join(summary['runs'])}",
            )
        weights = (summary.get("checkpoint") or {}).get("sha256")
        if weights and (folder / BEST).is_file() and file_sha256(folder / BEST) != weights:
            raise EvaluationError(f"{scored} is of other weights than {folder} holds now")
        return read_per_image(scored / "per_image.csv"), summary
    except EvaluationError as error:
        hint = error.hint if "mean over runs" in error.what else _scoring(folder, target, split)
        raise EvaluationError(error.what, hint=hint) from None
