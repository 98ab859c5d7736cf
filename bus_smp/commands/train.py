"""``bus-smp train``."""

from pathlib import Path

import click

from bus_smp.commands.options import Root, check_root, out_option, root_option

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
@click.option("--run", "name", help="Name of the run folder.  [default: the data sets' names]")
@out_option
@root_option
def command(config: Path | None, overrides: tuple[str, ...], name: str | None, out: Path, root: Root) -> None:
    """Train the hybrid model on one or more manifests; run again to continue.

    \b
    Writes outputs/<run>/:
      best.safetensors    weights of the epoch with the best validation lesion Dice
      last.ckpt           the state after the last epoch, to continue from
      metrics.csv         one row per epoch; also loss_curves.png, dice_curve.png, TensorBoard events
      config.yaml, manifest.csv, environment.json

    A run that was stopped or killed goes on with the same command, and ends with the same weights.
    """
    from bus_smp.config import load_settings

    if config is None and DEFAULT_CONFIG.is_file():
        config = DEFAULT_CONFIG
    settings = load_settings(config, overrides)

    from bus_smp.data.manifest import combine, manifest_path, read_manifest
    from bus_smp.errors import ConfigError

    paths = [manifest_path(entry, Path(settings.data.manifests)) for entry in settings.data.train]
    root = check_root(root, [path.stem for path in paths])
    manifest = combine([read_manifest(path, root) for path in paths])
    name = name or "+".join(path.stem for path in paths)
    if name in (".", "..") or "/" in name or "\\" in name:
        raise ConfigError(
            f"--run {name}: a name, not a path", hint="use --out FOLDER for another parent folder"
        )
    click.echo(
        f"Settings: {config or 'built-in defaults'}. Data: {', '.join(map(str, paths))}. Run: {out / name}",
        err=True,
    )

    import sys

    from bus_smp.training.loop import train

    try:
        outcome = train(
            settings,
            manifest,
            out / name,
            say=lambda text: click.echo(text, err=True),
            bar=sys.stderr.isatty(),
        )
    except KeyboardInterrupt:
        click.echo("\nStopped. The same command continues after the last finished epoch.", err=True)
        sys.exit(130)
    early = f" (stopped early: no better epoch in {settings.train.patience})" if outcome.stopped_early else ""
    click.echo(
        f"{out / name}: {outcome.epochs} of {settings.train.epochs} epochs{early}; "
        f"best validation lesion Dice {outcome.best_score:.3f} in epoch {outcome.best_epoch}"
    )
    click.echo(
        f"Next: bus-smp evaluate --run {name}   or   bus-smp crosseval --run {name} --target busi", err=True
    )
