"""``bus-smp benchmark``."""

from pathlib import Path

import click

from bus_smp.commands.options import out_option


@click.command("benchmark")
@click.option(
    "--parts",
    metavar="A,B,...",
    help="Some of limits, loader, step, inference, startup.  [default: all]",
)
@click.option("--run", help="Name or folder of a run: its settings, weights and training images are taken.")
@click.option(
    "--manifest",
    type=click.Path(path_type=Path),
    help="Manifest whose training images are taken.  [default: synthetic images]",
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change a setting of the training that is timed, e.g. train.batch_size=4. Repeatable.",
)
@click.option(
    "--backends",
    metavar="A,B,...",
    help="For inference: torch, onnx, openvino, or one with its precision such as onnx-int8.  [default: all]",
)
@click.option("--profile", is_flag=True, help="Also say where the time of one training step goes.")
@click.option(
    "--quick",
    is_flag=True,
    help="Batches of 2 and 2 readings: a look, not a result.",
)
@click.option(
    "--repeats", type=click.IntRange(min=1), default=5, show_default=True, help="Readings of each number."
)
@click.option("--device", help="auto, cpu, cuda or cuda:N.  [default: auto, or the run's]")
@click.option("--json", "as_json", is_flag=True, help="Print the table as JSON, and nothing else.")
@out_option
def command(
    parts: str | None,
    run: str | None,
    manifest: Path | None,
    overrides: tuple[str, ...],
    backends: str | None,
    profile: bool,
    quick: bool,
    repeats: int,
    device: str | None,
    as_json: bool,
    out: Path,
) -> None:
    """Say how fast this machine trains and predicts, and how much faster it could.

    Beside every number stands the limit that was measured in the same run: products of matrices, copies in memory,
    a bare interpreter. Nothing is downloaded, and no data set is needed. Let the machine do nothing else meanwhile:
    the smallest and the largest reading are shown, and far apart they mean that it did.
    Writes outputs/benchmark/benchmark.json, .csv and .md.
    """
    from bus_smp.benchmark import PARTS
    from bus_smp.benchmark.plan import check_parts, make_plan

    names = check_parts(parts, PARTS) if parts is not None else list(PARTS)

    import importlib
    import json

    from bus_smp.benchmark.about import describe
    from bus_smp.benchmark.profile import measure_profile
    from bus_smp.benchmark.table import markdown, write_table
    from bus_smp.config import load_settings
    from bus_smp.runs.find import find_run

    config = checkpoint = None
    images = "synthetic"
    if run is not None:
        trained = find_run(run, out)
        config, checkpoint = trained.settings_path, trained.best_path
        images = f"training images of the run {trained.name}"
    if manifest is not None:
        images = f"training images of {manifest.stem}"
    elif run is not None:
        manifest = trained.manifest_path
    if device is not None:
        overrides = (*overrides, f"runtime.device={device}")
    if quick:
        overrides = ("train.batch_size=2", *overrides)
        repeats = min(repeats, 2)
    settings = load_settings(config, overrides)

    rows = []
    with make_plan(
        settings, manifest_path=manifest, checkpoint=checkpoint, repeats=repeats, backends=backends
    ) as plan:
        for name in names:
            click.echo(f"Measuring: {name}", err=True)
            rows += importlib.import_module(f"bus_smp.benchmark.{name}").measure(plan)
        if profile:
            click.echo("Measuring: profile", err=True)
            rows += measure_profile(plan)
        about = describe(plan, images, overrides)
    document = write_table(rows, about, out / "benchmark")
    click.echo(json.dumps(document, indent=2, allow_nan=False) if as_json else markdown(rows, about))
    click.echo(f"Written: {out / 'benchmark'}", err=True)
