"""``bus-smp evaluate``."""

from pathlib import Path

import click

from bus_smp.commands.options import Root, check_root, scoring_options
from bus_smp.commands.scoring import Scorer


@click.command("evaluate")
@scoring_options
@click.option(
    "--split",
    type=click.Choice(["test", "val"]),
    default="test",
    show_default=True,
    help="val is what the best epoch was chosen by: its numbers are optimistic.",
)
def command(
    run: str | None,
    out: Path,
    root: Root,
    device: str,
    precision: str,
    legacy: bool,
    as_json: bool,
    split: str,
) -> None:
    """Score a run on its own test split.

    The images come from the same hospital and scanner as the training images; how the model does
    elsewhere is what crosseval tells. Whole images at native size; beside the model stand the
    trivial baselines. Writes outputs/<run>/eval-<data set>-<split>/.
    """
    from bus_smp.data.manifest import read_manifest
    from bus_smp.errors import EvaluationError
    from bus_smp.training.journal import find_run

    journal = find_run(run, out)
    own = journal.manifest()
    manifest = read_manifest(journal.folder / "manifest.csv", check_root(root, own.datasets))
    rows = manifest.used(split)
    if rows.empty:
        raise EvaluationError(
            f"the {split} split of {journal.folder} is empty",
            hint="make the manifest with a test split and train again",
        )
    scorer = Scorer(journal, device, precision, legacy, as_json)
    for dataset in sorted(rows["dataset"].unique()):
        part = rows[rows["dataset"] == dataset].reset_index(drop=True)
        scorer.score(manifest, part, dataset, split, external=False)
    scorer.finish()
