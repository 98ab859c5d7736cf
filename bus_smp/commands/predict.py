"""``bus-smp predict``."""

from pathlib import Path

import click

from bus_smp.commands.options import backend_option, device_option, out_option, precision_option, run_option


@click.command("predict")
@click.argument("inputs", nargs=-1, required=True, type=click.Path(path_type=Path))
@run_option
@out_option
@click.option(
    "--to",
    "folder",
    type=click.Path(path_type=Path),
    default="predictions",
    show_default=True,
    help="Folder to write to.",
)
@device_option
@backend_option
@precision_option
@click.option("--json", "as_json", is_flag=True, help="Print the rows as JSON, and nothing else.")
def command(
    inputs: tuple[Path, ...],
    run: str | None,
    out: Path,
    folder: Path,
    device: str,
    backend: str,
    precision: str,
    as_json: bool,
) -> None:
    """Segment images: colour masks, overlays, one CSV row per image.

    INPUTS are image files and folders (searched with their sub-folders). Red is malignant, green is
    benign. Writes <name>_mask.png and <name>_overlay.png at each image's own size, and
    predictions.csv. A file that cannot be read gets a row that says why, and the exit code is 1.

    Research software, not for clinical use.
    """
    import json
    import sys

    from bus_smp.inference.backends import check_backend, open_predictor
    from bus_smp.inference.predict_files import check_targets, find_images, predict_files
    from bus_smp.inference.predictor import describe_computing
    from bus_smp.runs.find import find_run
    from bus_smp.system.console import show_progress

    check_backend(backend, device, precision)
    images = find_images(inputs, skip=folder)
    check_targets(images, folder)
    trained = find_run(run, out)
    predictor, header = open_predictor(
        trained.folder,
        backend=backend,
        device=device,
        precision=precision,
        say=lambda text: click.echo(text, err=True),
    )
    how = describe_computing(predictor.computed_in)
    click.echo(
        f"Run: {trained.folder}, weights of epoch {header['epoch']}, {how}; {len(images)} images", err=True
    )
    with show_progress(len(images), "predict") as progress:
        threshold = (header.get("calibration") or {}).get("threshold")
        table = predict_files(predictor, images, folder, threshold=threshold, progress=progress.update)
    unread = table[table["error"] != ""]
    if as_json:
        click.echo(json.dumps(json.loads(table.to_json(orient="records")), indent=2, ensure_ascii=False))
    else:
        counts = table.loc[table["error"] == "", "predicted_label"].value_counts()
        found = ", ".join(f"{count} {label}" for label, count in counts.items()) or "none"
        click.echo(f"{len(table) - len(unread)} images predicted ({found}; {how}); written to {folder}")
    for error in unread["error"]:
        click.echo(f"Not predicted: {error}", err=True)
    if len(unread):
        sys.exit(1)
