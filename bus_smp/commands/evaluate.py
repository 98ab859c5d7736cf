"""``bus-smp evaluate``."""

from pathlib import Path

import click

from bus_smp.commands.options import Root, check_root, runs_option, scoring_options
from bus_smp.commands.printing import next_command, print_summaries


@click.command("evaluate")
@runs_option
@scoring_options
@click.option(
    "--split",
    type=click.Choice(["test", "val"]),
    default="test",
    show_default=True,
    help="Split to score. The best epoch was chosen on val, so its numbers are optimistic.",
)
def command(
    runs: tuple[str, ...],
    out: Path,
    root: Root,
    device: str,
    backend: str,
    precision: str,
    again: bool,
    full: bool,
    legacy: bool,
    as_json: bool,
    views: tuple[str, ...],
    ensemble: bool,
    split: str,
) -> None:
    """Score a run on its own test split.

    The images come from the same hospital and scanner as the training images. crosseval shows how
    the model does elsewhere. Whole images are scored at native size; so are the trivial baselines.
    Prints the headline numbers; outputs/<run>/eval-<data set>-<split>/ gets all of them, with figures.

    For an experiment, every run is scored. The test folds of a cross-validation become one table of
    out-of-fold predictions, eval-<data set>-oof/; several seeds, mean and sd. Several runs, the
    runs of an experiment with --ensemble, and --views are scored as one network; they have a
    folder of their own, e.g. outputs/<run>+<run>+mirror/.
    """
    from bus_smp.evaluation.scoring import Scorer
    from bus_smp.runs.find import find_scored
    from bus_smp.system.console import note

    trained = find_scored(runs, out, views, ensemble)
    manifest = trained.manifest()
    manifest = manifest.at(check_root(root, manifest.datasets))
    scorer = Scorer(backend, device, precision, legacy, again, note, bar=True)
    summaries = scorer.score_own(trained, manifest, split)
    print_summaries(summaries, legacy=legacy, as_json=as_json, full=full)
    note(f"Next: {next_command(trained.folder, manifest, out)}")
