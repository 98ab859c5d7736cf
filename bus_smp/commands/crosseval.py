"""``bus-smp crosseval``."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from bus_smp.commands.options import Root, check_root, scoring_options
from bus_smp.commands.scoring import Scorer

if TYPE_CHECKING:
    from bus_smp.data.manifest import Manifest


@click.command("crosseval")
@click.option(
    "--target",
    "targets",
    multiple=True,
    required=True,
    help="Manifest to score on, by name or path; repeatable. all: every manifest the run was not trained on.",
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
    run: str | None,
    out: Path,
    root: Root,
    device: str,
    precision: str,
    legacy: bool,
    as_json: bool,
    manifests: Path,
) -> None:
    """Score a run on data sets it never saw.

    All images of the target that its manifest does not exclude are scored, whole and at native
    size; beside the model stand the trivial baselines. A target that shares a data set, a patient or
    a picture with the training data is refused. Writes outputs/<run>/eval-<data set>-all/.
    """
    from bus_smp.data.manifest import manifest_path, read_manifest
    from bus_smp.evaluation.crosseval import check_external
    from bus_smp.training.journal import find_run

    journal = find_run(run, out)
    training = journal.manifest()
    paths = []
    for target in targets:
        paths += _external(training, manifests) if target == "all" else [manifest_path(target, manifests)]
    paths = list(dict.fromkeys(paths))
    root = check_root(root, [path.stem for path in paths])
    loaded = [read_manifest(path, root) for path in paths]
    for manifest in loaded:  # all checks before the first minute of work
        check_external(training, manifest)
    scorer = Scorer(journal, device, precision, legacy, as_json)
    for manifest in loaded:
        scorer.score(manifest, manifest.used(), "+".join(manifest.datasets), "all", external=True)
    scorer.finish()


def _external(training: "Manifest", folder: Path) -> list[Path]:
    """The manifests of ``folder`` that ``all`` means: those the run may be tested on; says why not the others."""
    from bus_smp.data.manifest import list_manifests, read_manifest
    from bus_smp.errors import BusSmpError, EvaluationError
    from bus_smp.evaluation.crosseval import check_external

    paths = []
    for path in list_manifests(folder):
        try:
            check_external(training, read_manifest(path, images=False))
            paths.append(path)
        except BusSmpError as error:
            click.echo(f"Not scored: {path}: {error.what.splitlines()[0]}", err=True)
    if not paths:
        raise EvaluationError(
            f"{folder} holds no manifest that this run can be tested on",
            hint="make one: bus-smp make-manifest --dataset NAME --root FOLDER",
        )
    return paths
