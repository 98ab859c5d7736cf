"""``bus-smp demo``: the commands that a user would type, on synthetic data."""

import shlex
from pathlib import Path

import click

# A network and a schedule small enough for two cores; the defaults are for real data and a GPU.
SETTINGS = (
    "model.encoder_name=resnet18",
    "model.encoder_weights=null",
    "data.size=96",
    "train.lr=1e-3",
    "train.epochs=16",
    "train.patience=0",
)


@click.command("demo")
@click.option(
    "--to",
    "folder",
    type=click.Path(path_type=Path),
    default="outputs/demo",
    show_default=True,
    help="Folder to work in.",
)
def command(folder: Path) -> None:
    """Do the whole job on synthetic data.

    Writes two synthetic data sets as their publishers' zips unpack, makes manifests, trains a small
    network, scores it on its own test split and on the data set it never saw, and writes the report. No network and no GPU
    are needed. The numbers say nothing about real ultrasound.
    """
    import shutil

    from bus_smp.commands.quoting import setting
    from bus_smp.data.synthetic import write_all

    data = folder / "data"
    if not data.exists():
        unfinished = folder / ".data"
        shutil.rmtree(unfinished, ignore_errors=True)
        write_all(unfinished)
        unfinished.rename(data)
        click.echo(f"Synthetic raw data sets: {data}\n", err=True)

    manifests, out = folder / "data_manifests", folder / "outputs"
    training = [
        setting("data.manifests", manifests.as_posix()),
        setting("runtime.cache", (folder / "cache").as_posix()),
        *SETTINGS,
    ]
    _run("make-manifest", "--root", str(data), "--out", str(manifests))
    _run(
        "train",
        "--out",
        str(out),
        "--run",
        "demo",
        *(part for setting in training for part in ("--set", setting)),
    )
    _run("evaluate", "--out", str(out), "--run", "demo")
    _run("crosseval", "--out", str(out), "--run", "demo", "--manifests", str(manifests), "--target", "busi")
    _run("report", "--out", str(out), "demo")
    click.echo(
        f"\nDone. Open {out / 'demo' / 'report.html'} and look at the figures next to it, then do the same with real data (README, Quick start)."
    )


def _run(*arguments: str) -> None:
    """Show a command as one would type it, then run it in this process (importing torch once)."""
    from bus_smp.cli import door

    click.echo(f"\n$ bus-smp {shlex.join(arguments)}\n", err=True)
    door.main(args=list(arguments), prog_name="bus-smp", standalone_mode=False)
