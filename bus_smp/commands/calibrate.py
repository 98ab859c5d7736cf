"""``bus-smp calibrate``."""

from __future__ import annotations

from pathlib import Path

import click

from bus_smp.commands.options import Root, check_root, device_option, out_option, root_option, run_option


@click.command("calibrate")
@run_option
@out_option
@root_option
@device_option
def command(run: str | None, out: Path, root: Root, device: str) -> None:
    """Fit temperature and thresholds of a finished run again.

    Training does this at its end. A run of an older version has no operating point: this fits it, on
    the validation images of the run. The weights stay as they are, but the file changes: evaluations and
    exports are then made again.
    """
    from bus_smp.errors import TrainingError
    from bus_smp.evaluation.calibration import calibrate_weights
    from bus_smp.runs.describe import describe_calibration
    from bus_smp.runs.find import find_run
    from bus_smp.system.engine import make_engine
    from bus_smp.text import folded, printable

    trained = find_run(run, out)
    if not trained.is_finished():
        raise TrainingError(
            f"{trained.folder} is {trained.describe_unfinished()}",
            hint="its own bus-smp train command, typed again, trains it to its end and calibrates it",
        )
    manifest = trained.manifest()
    manifest = trained.manifest(check_root(root, manifest.datasets), images=True)
    with trained.locked():
        engine = make_engine(device, "auto", trained.header()["precision"])
        calibration = calibrate_weights(trained.best_path, engine, manifest)
    for line in describe_calibration(calibration):
        click.echo("\n".join(folded(line[0].upper() + line[1:])))
    click.echo(printable(f"Written: {trained.best_path}"))
