"""``bus-smp crosseval``."""

from pathlib import Path

import click

from bus_smp.commands.options import Root, check_root, scoring_options
from bus_smp.commands.scoring import Scorer


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
    from bus_smp.data.manifest import list_manifests, manifest_path, read_manifest
    from bus_smp.errors import EvaluationError
    from bus_smp.evaluation.crosseval import check_external
    from bus_smp.training.journal import find_run

    journal = find_run(run, out)
    training = journal.manifest()
    wanted = []
    for target in targets:
        if target == "all":
            present = [read_manifest(path, images=False) for path in list_manifests(manifests)]
            paths = zip(list_manifests(manifests), present, strict=True)
            wanted += [
                path for path, manifest in paths if not set(manifest.datasets) & set(training.datasets)
            ]
            if not wanted:
                raise EvaluationError(
                    f"{manifests} holds no manifest that {journal.folder.name} was not trained on",
                    hint="bus-smp make-manifest --dataset NAME --root FOLDER",
                )
        else:
            wanted.append(manifest_path(target, manifests))
    wanted = list(dict.fromkeys(wanted))
    root = check_root(root, [path.stem for path in wanted])
    loaded = [read_manifest(path, root) for path in wanted]
    for manifest in loaded:  # all checks before the first minute of work
        check_external(training, manifest)
    scorer = Scorer(journal, device, precision, legacy, as_json)
    for manifest in loaded:
        scorer.score(manifest, manifest.used(), "+".join(manifest.datasets), "all", external=True)
    scorer.finish()
