"""``bus-smp crosseval``."""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bus_smp.commands.options import Root, check_root, scoring_options
from bus_smp.evaluation.scoring import Scorer

if TYPE_CHECKING:
    from bus_smp.data.manifest import Manifest
    from bus_smp.evaluation.matrix import Cell
    from bus_smp.evaluation.scoring import Scored


@click.command("crosseval")
@click.option(
    "--target",
    "targets",
    multiple=True,
    help="Manifest to score on, by name or path; repeatable. all: every manifest the run was not trained on.",
)
@click.option(
    "--run",
    "runs",
    multiple=True,
    help="Name or folder of the run, or of an experiment (train --folds, --seeds); repeatable with --matrix.  "
    "[default: the newest run; with --matrix all]",
)
@click.option(
    "--matrix",
    is_flag=True,
    help="Score every run on every target (default: all manifests) and write the table of train set against test set.",
)
@scoring_options
@click.option(
    "--manifests",
    type=click.Path(path_type=Path),
    default="data_manifests",
    show_default=True,
    help="Folder of manifests.",
)
def command(
    targets: tuple[str, ...],
    runs: tuple[str, ...],
    matrix: bool,
    out: Path,
    root: Root,
    device: str,
    backend: str,
    precision: str,
    legacy: bool,
    as_json: bool,
    manifests: Path,
) -> None:
    """Score a run on data sets it never saw.

    All images of the target that its manifest does not exclude are scored, whole and at native
    size; beside the model stand the trivial baselines. A target that shares a data set, a patient or
    a picture with the training data is refused, and near-duplicates (--root NAME=FOLDER where the
    training images have moved). Writes outputs/<run>/eval-<data set>-all/; of an experiment, mean and sd
    over its runs.

    --matrix writes outputs/matrix/matrix.csv, .json and .png: what a run was trained on is marked
    in-domain and shown on the run's own test split, what is refused stays empty and says why.
    """
    scorer = Scorer(device, backend, precision, legacy, as_json)
    if matrix:
        _matrix(scorer, runs, targets, out, manifests, root)
        return
    if not targets:
        raise click.UsageError("Missing option '--target' (or --matrix).")
    if len(runs) > 1:
        raise click.UsageError("--run is repeatable only with --matrix.")
    from bus_smp.data.manifest import manifest_path, read_manifest
    from bus_smp.evaluation.external import check_external
    from bus_smp.runs.experiment import find_scored

    scored = find_scored(runs[0] if runs else None, out)
    training = scored.manifest(_named(root))
    paths = []
    for target in targets:
        paths += (
            _external(training, manifests, root) if target == "all" else [manifest_path(target, manifests)]
        )
    paths = list(dict.fromkeys(paths))
    root = check_root(root, [path.stem for path in paths], training.datasets)
    loaded = [read_manifest(path, root) for path in paths]
    for manifest in loaded:  # all checks before the first minute of work
        check_external(training, manifest)
    for manifest in loaded:
        scorer.show(scorer.score_target(scored, manifest))
    scorer.finish()


def _named(root: Root) -> Root:
    """``root`` for the training data: a folder without a name is the target's."""
    return root if isinstance(root, dict) else None


def _external(training: "Manifest", folder: Path, root: Root) -> list[Path]:
    """The manifests of ``folder`` that ``all`` means: those the run may be tested on; says why not the others."""
    from bus_smp.data.manifest import list_manifests, read_manifest
    from bus_smp.errors import BusSmpError, EvaluationError
    from bus_smp.evaluation.external import check_external

    paths = []
    for path in list_manifests(folder):
        try:
            check_external(training, read_manifest(path, root, images=False))
            paths.append(path)
        except BusSmpError as error:
            click.echo(f"Not scored: {path}: {error.what.splitlines()[0]}", err=True)
    if not paths:
        raise EvaluationError(
            f"{folder} holds no manifest that this run can be tested on",
            hint="make one: bus-smp make-manifest --dataset NAME --root FOLDER",
        )
    return paths


def _matrix(
    scorer: Scorer, runs: Sequence[str], targets: Sequence[str], out: Path, manifests: Path, root: Root
) -> None:
    from bus_smp.data.manifest import list_manifests, manifest_path
    from bus_smp.errors import EvaluationError
    from bus_smp.evaluation.matrix import format_matrix, write_matrix_folder
    from bus_smp.runs.experiment import find_scored, list_scored
    from bus_smp.runs.run import Run

    rows = [find_scored(run, out) for run in runs]
    if not rows:
        rows, unfinished = list_scored(out)
        for why in unfinished:
            click.echo(f"Left out: {why}", err=True)
    named = [target for target in targets if target != "all"]
    paths = [manifest_path(target, manifests) for target in named]
    if len(named) < len(targets) or not targets:
        paths += list_manifests(manifests)
    paths = list(dict.fromkeys(paths))
    if not rows or not paths:
        raise EvaluationError(
            f"{out} holds no trained run" if not rows else f"{manifests} holds no manifest",
            hint="train one first: bus-smp train" if not rows else "make one: bus-smp make-manifest",
        )
    folder = out / f"matrix{scorer.network}"
    if Run(folder).exists():
        raise EvaluationError(
            f"{folder} is a run; the matrix would be written into it", hint="rename that run"
        )
    trained_on = [name for scored in rows for name in scored.manifest().datasets]
    root = check_root(root, [path.stem for path in paths], trained_on)
    if isinstance(root, Path):
        root = {paths[0].stem: root}
    cells = [cell for scored in rows for cell in _cells_of(scorer, scored, paths, root)]
    document = write_matrix_folder(cells, folder)
    click.echo(json.dumps(document, indent=2, allow_nan=False) if scorer.as_json else format_matrix(cells))
    click.echo(f"Written: {folder}", err=True)


def _cells_of(scorer: Scorer, scored: "Scored", paths: Sequence[Path], root: Root) -> Iterator["Cell"]:
    """One row of the matrix; what stands in the way of a cell empties that cell alone."""
    from bus_smp.data.manifest import read_manifest
    from bus_smp.errors import CheckpointError, DataError, EvaluationError, TrainingError
    from bus_smp.evaluation.external import check_external
    from bus_smp.evaluation.matrix import EXTERNAL, IN_DOMAIN, REFUSED, Cell

    training = scored.manifest(root)
    own = set(training.datasets)
    for path in paths:
        kind, summary, reason = REFUSED, None, ""
        try:
            target = read_manifest(path, root)
            if len(target.datasets) == 1 and own >= set(target.datasets):
                (summary,) = scorer.score_own(scored, "test", root, target.datasets, again=False)
                kind = IN_DOMAIN
            else:
                check_external(training, target)
                summary = scorer.score_target(scored, target, again=False)
                kind = EXTERNAL
        except (CheckpointError, DataError, EvaluationError, TrainingError) as error:
            # the table is passed on: files are named without the folders of this machine
            reason = re.sub(r"(?<!\S)/(?:[^/\n:,;]+/)+", "", " ".join(error.what.split()))
            click.echo(f"{scored.folder.name} on {path.stem}: {reason}", err=True)
        yield Cell(scored.folder.name, "+".join(training.datasets), path.stem, kind, summary, reason)
