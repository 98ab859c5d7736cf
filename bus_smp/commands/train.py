"""``bus-smp train``."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from bus_smp.commands.options import Root, check_root, out_option, parse_seeds, root_option
from bus_smp.commands.quoting import command_line

if TYPE_CHECKING:
    from bus_smp.config import Settings
    from bus_smp.training.progress import Outcome

DEFAULT_CONFIG = Path("configs/default.yaml")


@click.command("train")
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    help=f"Settings in YAML.  [default: {DEFAULT_CONFIG} if it is there, else the same built-in ones]",
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change one setting, e.g. train.lr=3e-4. Repeatable.",
)
@click.option(
    "--data",
    "data",
    multiple=True,
    metavar="NAME",
    help="Manifest to train on, by name or path; repeatable. The same as --set data.train=[NAME,...].",
)
@click.option("--epochs", type=click.IntRange(min=1), metavar="N", help="The same as --set train.epochs=N.")
@click.option(
    "--start-from",
    metavar="RUN",
    help="Fine-tune, or train longer: start from the weights of a run; the same as --set model.init=RUN.",
)
@click.option("--run", "name", help="Name of the run folder.  [default: the data sets' names]")
@click.option(
    "--fold",
    type=click.IntRange(min=0),
    metavar="K",
    help="Train one fold: the manifest's fold K is the test split, the next one validates. The run is called NAME-foldK.",
)
@click.option(
    "--folds",
    type=click.IntRange(min=3),
    metavar="N",
    help="Cross-validate: train a run for each of the manifest's N folds (make-manifest --folds N numbers them).",
)
@click.option(
    "--seeds",
    callback=parse_seeds,
    metavar="A,B,...",
    help="Repeat with each of these seeds, e.g. 42,43,44; with --folds every seed with every fold.",
)
@click.option(
    "--show-settings",
    is_flag=True,
    help="Print all settings with their meaning and type, as YAML for --config, and train nothing.",
)
@out_option
@root_option
def command(
    config: Path | None,
    overrides: tuple[str, ...],
    data: tuple[str, ...],
    epochs: int | None,
    start_from: str | None,
    name: str | None,
    fold: int | None,
    folds: int | None,
    seeds: tuple[int, ...],
    show_settings: bool,
    out: Path,
    root: Root,
) -> None:
    """Train the hybrid model on one or more manifests; run again to continue.

    \b
    Writes outputs/<run>/:
      best.safetensors    weights of the epoch with the best validation lesion Dice
      last.ckpt           the state to continue from, until the run is finished
      metrics.csv         one row per epoch; also loss_curves.png, dice_curve.png, TensorBoard events
      config.yaml, manifest.csv, environment.json

    A run that was stopped or killed goes on with the same command, and ends with the same weights.

    --folds and --seeds train an experiment, one run after the other: outputs/<name>-seed42-fold0/ and so
    on, and outputs/<name>/experiment.json; evaluate and crosseval take the experiment as --run <name>.
    """
    from bus_smp.commands.quoting import setting
    from bus_smp.config import load_settings

    if config is None and DEFAULT_CONFIG.is_file():
        config = DEFAULT_CONFIG
    if fold is not None:
        overrides = (*overrides, f"data.fold={fold}")
    if data:
        overrides = (*overrides, setting("data.train", list(data)))
    if epochs is not None:
        overrides = (*overrides, f"train.epochs={epochs}")
    if start_from is not None:
        overrides = (*overrides, setting("model.init", start_from))
    settings = load_settings(config, overrides)
    if show_settings:
        click.echo(settings.describe(), nl=False)
        return
    click.echo(f"Settings: {config or 'built-in defaults'}", err=True)

    from bus_smp.data.manifest import combine, manifest_path, read_manifest
    from bus_smp.errors import ConfigError
    from bus_smp.runs.experiment import Experiment, begin_experiment, check_experiment, plan_experiment
    from bus_smp.system.console import note
    from bus_smp.training.cross_validation import count_folds, train_experiment

    if folds and settings.data.fold is not None:
        raise ConfigError("--folds trains every fold, --fold (data.fold) one", hint="leave one of them away")
    paths = [manifest_path(entry, Path(settings.data.manifests)) for entry in settings.data.train]
    root = check_root(root, [path.stem for path in paths])
    manifest = combine([read_manifest(path, root) for path in paths])
    if folds and count_folds(manifest) != folds:
        raise ConfigError(
            f"--folds {folds}: {', '.join(map(str, paths))} has {count_folds(manifest)} folds",
            hint=f"--folds {count_folds(manifest)}, or number them again: bus-smp make-manifest --folds {folds}",
        )
    name = name or "+".join(path.stem for path in paths)
    if name in (".", "..") or "/" in name or "\\" in name:
        raise ConfigError(
            f"--run {name}: a name, not a path", hint="use --out FOLDER for another parent folder"
        )
    members = plan_experiment(name, settings, range(folds or 0), seeds)
    # one fold with several seeds is a part of a later experiment with --folds
    whole = folds or (seeds and settings.data.fold is None)
    experiment = Experiment(out / name, members) if whole else None
    what = (
        f"Run: {out / members[0].run}"
        if len(members) == 1
        else f"Experiment of {len(members)} runs: {out / name}"
    )
    click.echo(f"Data: {', '.join(map(str, paths))}. {what}", err=True)
    if experiment:
        check_experiment(experiment)
    for member, outcome in train_experiment(
        settings,
        manifest,
        out,
        members,
        begin=lambda: begin_experiment(experiment) if experiment else None,
        say=note,
        bar=True,
    ):
        _print_outcome(out / member.run, outcome, settings)
    done = name if experiment else members[-1].run
    # without a test split there is only the one that chose the epoch
    has_test = folds or settings.data.fold is not None or len(manifest.used("test"))
    split = [] if has_test else ["--split", "val"]
    note(f"Next: {command_line('evaluate', '--run', done, *split, out=out)}")


def _print_outcome(folder: Path, outcome: "Outcome", settings: "Settings") -> None:
    plan = settings.train
    early = f" (stopped early: no better epoch in {plan.patience})" if outcome.stopped_early else ""
    click.echo(
        f"{folder}: {outcome.epochs} of {plan.epochs} epochs{early}; "
        f"best validation lesion Dice {outcome.best_score:.3f} in epoch {outcome.best_epoch}"
    )
