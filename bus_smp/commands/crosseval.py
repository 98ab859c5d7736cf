"""``bus-smp crosseval``."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bus_smp.commands.options import Root, check_root, manifests_option, runs_option, scoring_options
from bus_smp.commands.printing import print_summaries
from bus_smp.commands.quoting import command_line, run_name

if TYPE_CHECKING:
    from bus_smp.evaluation.scoring import Scorer
    from bus_smp.runs.ensemble import Ensemble
    from bus_smp.runs.experiment import Experiment
    from bus_smp.runs.run import Run


@click.command("crosseval")
@click.option(
    "--target",
    "targets",
    multiple=True,
    help="Manifest to score on, by name or path; repeatable. all: every manifest the run was not trained on.",
)
@runs_option
@click.option(
    "--matrix",
    is_flag=True,
    help="Score every run (default: all) on every target (default: all manifests), each --run by itself, and write the "
    "table of train set against test set.",
)
@scoring_options
@manifests_option
def command(
    targets: tuple[str, ...],
    runs: tuple[str, ...],
    matrix: bool,
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
    manifests: Path,
) -> None:
    """Score a run on data sets it never saw.

    All images of the target that its manifest does not exclude are scored, whole and at native
    size; so are the trivial baselines. A target that shares a data set, a patient, a picture or a
    near-duplicate with the training data is refused (--root NAME=FOLDER where the training images
    have moved). Prints the headline numbers; outputs/<run>/eval-<data set>-all/ gets all of them, with
    figures. Of an experiment, mean and sd over its runs. Several runs, the runs of an experiment
    with --ensemble, and --views are scored as one network, in a folder of their own, e.g.
    outputs/<run>+<run>+mirror/; what any of the runs was trained on is refused.

    --matrix writes outputs/matrix/matrix.csv, .json and .png: what a run was trained on is marked
    in-domain and shown on the run's own test split, what is refused stays empty and says why.
    """
    if not matrix and not targets:
        raise click.UsageError("Missing option '--target' (or --matrix).")
    if matrix and (views or ensemble):
        raise click.UsageError("--matrix scores single runs and experiments: without --views and --ensemble.")

    from bus_smp.evaluation.scoring import Scorer
    from bus_smp.runs.find import find_scored
    from bus_smp.system.console import note

    scorer = Scorer(backend, device, precision, legacy, again, note, bar=True)
    if matrix:
        _score_matrix(scorer, runs, targets, out, manifests, root, as_json)
    else:
        trained = find_scored(runs, out, views, ensemble)
        summaries = _score_targets(scorer, trained, targets, manifests, root)
        print_summaries(summaries, legacy=legacy, as_json=as_json, full=full)
        note(f"Next: {command_line('report', run_name(trained.folder, out), out=out)}")


def _score_targets(
    scorer: "Scorer",
    trained: "Run | Experiment | Ensemble",
    targets: Sequence[str],
    manifests: Path,
    root: Root,
) -> Iterator[dict[str, Any]]:
    from bus_smp.data.manifest import manifest_path, read_manifest
    from bus_smp.evaluation.external import check_external, read_external
    from bus_smp.system.console import note, with_progress

    # a folder without a name is the target's
    training = trained.manifests(root if isinstance(root, dict) else None)
    paths = [manifest_path(target, manifests) for target in targets if target != "all"]
    checked = read_external(training, manifests, root, note, with_progress) if "all" in targets else {}
    paths = list(dict.fromkeys([*paths, *checked]))
    trained_on = [name for manifest in training for name in manifest.datasets]
    root = check_root(root, [path.stem for path in paths], trained_on)
    read = {path: read_manifest(path, root) for path in paths if path not in checked}
    # all checks before the first minute of work
    for path, (manifest, _) in checked.items():
        manifest.require_images(path)
    for path, manifest in read.items():
        checked[path] = manifest, check_external(training, manifest, manifests, with_progress)
    for path in paths:
        manifest, externality = checked[path]
        yield scorer.score_target(trained, manifest, externality)


def _score_matrix(
    scorer: "Scorer",
    runs: Sequence[str],
    targets: Sequence[str],
    out: Path,
    manifests: Path,
    root: Root,
    as_json: bool,
) -> None:
    from bus_smp.data.manifest import list_manifests, manifest_path
    from bus_smp.errors import EvaluationError
    from bus_smp.evaluation.matrix import format_matrix, score_matrix, write_matrix_folder
    from bus_smp.runs.find import find_trained, list_trained
    from bus_smp.runs.layout import MATRIX
    from bus_smp.runs.run import Run
    from bus_smp.system.console import note

    trained: Sequence[Run | Experiment | Ensemble] = [find_trained(run, out) for run in runs]
    if not trained:
        trained, unfinished = list_trained(out)
        for reason in unfinished:
            note(f"Left out: {reason}")
    named = [target for target in targets if target != "all"]
    paths = [manifest_path(target, manifests) for target in named]
    if len(named) < len(targets) or not targets:
        paths += list_manifests(manifests)
    paths = list(dict.fromkeys(paths))
    if not trained or not paths:
        raise EvaluationError(
            f"{out} holds no trained run" if not trained else f"{manifests} holds no manifest",
            hint="train one first: bus-smp train" if not trained else "make one: bus-smp make-manifest",
        )
    folder = out / f"{MATRIX}{scorer.network}"
    if Run(folder).exists():
        raise EvaluationError(
            f"{folder} is a run; the matrix would be written into it", hint="rename that run"
        )
    rows = [(one, one.manifests()) for one in trained]
    trained_on = [name for _, training in rows for manifest in training for name in manifest.datasets]
    root = check_root(root, [path.stem for path in paths], trained_on)
    if isinstance(root, Path):
        root = {paths[0].stem: root}
    cells = score_matrix(scorer, rows, paths, root, manifests)
    document = write_matrix_folder(cells, folder)
    click.echo(json.dumps(document, indent=2, allow_nan=False) if as_json else format_matrix(cells))
    note(f"Written: {folder}")
    note(f"Next: {command_line('report', *(run_name(one.folder, out) for one in trained), out=out)}")
