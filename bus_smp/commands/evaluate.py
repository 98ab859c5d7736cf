"""``bus-smp evaluate``."""

from pathlib import Path

import click

from bus_smp.commands.options import Root, check_root, scored_option, scoring_options
from bus_smp.evaluation.scoring import Scorer


@click.command("evaluate")
@scored_option
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
    backend: str,
    precision: str,
    legacy: bool,
    as_json: bool,
    split: str,
) -> None:
    """Score a run on its own test split.

    The images come from the same hospital and scanner as the training images; how the model does
    elsewhere is what crosseval tells. Whole images at native size; beside the model stand the
    trivial baselines. Writes outputs/<run>/eval-<data set>-<split>/.

    Of an experiment every run is scored, unless it was already. The test folds of a cross-validation
    become one table of out-of-fold predictions, eval-<data set>-oof/; several seeds, mean and sd.
    """
    from bus_smp.runs.experiment import find_scored

    scored = find_scored(run, out)
    root = check_root(root, scored.manifest().datasets)
    scorer = Scorer(device, backend, precision, legacy, as_json)
    for summary in scorer.score_own(scored, split, root):
        scorer.show(summary)
    scorer.finish()
