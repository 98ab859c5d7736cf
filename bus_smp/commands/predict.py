"""``bus-smp predict``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from bus_smp.commands.options import (
    backend_option,
    device_option,
    out_option,
    precision_option,
    runs_option,
    views_option,
)

if TYPE_CHECKING:
    import pandas as pd


@click.command("predict")
@click.argument("inputs", nargs=-1, required=True, type=click.Path(path_type=Path))
@runs_option
@views_option
@out_option
@click.option(
    "--to",
    "folder",
    type=click.Path(path_type=Path),
    help="Folder to write to.  [default: predictions; with --out FOLDER: FOLDER/predictions]",
)
@click.option("--include-masks", is_flag=True, help="Also predict pictures that look like masks, not scans.")
@click.option(
    "--uncertainty",
    is_flag=True,
    help="Also draw <name>_uncertainty.png: where networks or views differ; of one network, where it is unsure.",
)
@click.option(
    "--pixel-mm",
    type=click.FloatRange(min=0.001, max=10),
    help="Side of a pixel in mm, for all images that do not say it themselves (DICOM may): areas are also given in mm2.",
)
@click.option(
    "--dicom-out",
    "dicom_out",
    metavar="KINDS",
    default="",
    help="For DICOM files also seg (segmentation), sr (structured report) or seg,sr, to store in a PACS.",
)
@click.option(
    "--operating-point",
    is_flag=True,
    help="Masks keep only the lesions that the operating point keeps, fitted on the run's validation images.",
)
@device_option
@backend_option
@precision_option
@click.option("--json", "as_json", is_flag=True, help="Print the rows as JSON, and nothing else.")
def command(
    inputs: tuple[Path, ...],
    runs: tuple[str, ...],
    views: tuple[str, ...],
    out: Path,
    folder: Path | None,
    include_masks: bool,
    uncertainty: bool,
    pixel_mm: float | None,
    operating_point: bool,
    dicom_out: str,
    device: str,
    backend: str,
    precision: str,
    as_json: bool,
) -> None:
    """Segment images: colour masks, overlays, one CSV row per image.

    INPUTS are image files and folders (searched with their sub-folders), DICOM too: each frame of a
    clip and each pane is a picture; clip.dcm#12 is its frame 12 only. Red is malignant, green is
    benign. Writes <name>_predicted.png and <name>_overlay.png, and predictions.csv with the decision
    for each image, the rule behind it, and how sure it is. A file that cannot be read gets a row that says why, and
    the exit code is 1. Several runs, or an experiment, predict as one: the mean of their
    probabilities. Files that are left out (truth masks, ...) are counted by kind.

    Research software, not for clinical use.
    """
    import json
    import sys

    from bus_smp.errors import DataError
    from bus_smp.exchange.dicom import KINDS, Maker, check_extra, write_dicom
    from bus_smp.inference.backends import check_backend, describe_ensemble, open_ensemble
    from bus_smp.inference.predict_files import check_targets, find_images, list_pictures, predict_files
    from bus_smp.runs.find import find_ensemble
    from bus_smp.system.console import note, show_progress
    from bus_smp.text import counted, folded

    if folder is None:
        # what is asked for with --out leaves nothing outside of it
        given = click.get_current_context().get_parameter_source("out") is not ParameterSource.DEFAULT
        folder = out / "predictions" if given else Path("predictions")
    kinds = [kind.strip() for kind in dicom_out.lower().split(",") if kind.strip()]
    if unknown := set(kinds) - set(KINDS):
        raise click.BadParameter(f"{min(unknown)!r} is none of {', '.join(KINDS)}", param_hint="--dicom-out")
    if kinds:
        check_extra()
    check_backend(backend, device, precision)
    files = find_images(inputs, skip=folder, say=note)
    images = list_pictures(files, say=note)
    check_targets(images, folder)
    ensemble = find_ensemble(runs, out, views)
    predictor, header = open_ensemble(
        ensemble,
        backend=backend,
        device=device,
        precision=precision,
        operating_point=operating_point,
        say=note,
    )
    pictures = "" if len(images) == len(files) else f" with {len(images)} pictures"
    note(f"{describe_ensemble(ensemble, predictor, header)}; {counted(len(files), 'file')}{pictures}")
    with show_progress(len(images), "predict") as progress:
        table = predict_files(
            predictor, images, folder, include_masks=include_masks, uncertainty=uncertainty,
            pixel_mm=pixel_mm, say=note, progress=progress.update,
        )  # fmt: skip
    if table.empty:
        raise DataError("there is no scan among these files", hint="--include-masks predicts masks too")
    if kinds:
        rules = table.loc[table["error"] == "", "decision_rule"]
        name = " + ".join(run.name for run in ensemble.runs)
        way = ["operating point"] if operating_point else []
        weights = " ".join([*predictor.weights, *ensemble.views, *way])
        maker = Maker(name, weights, rules.iloc[0] if len(rules) else "")
        made = write_dicom(table, folder, kinds, maker, say=note)
        note(f"DICOM: {counted(len(made), 'file')} written to {folder}")
    unread = table[table["error"] != ""]
    predicted = table[table["error"] == ""]
    if as_json:
        click.echo(json.dumps(json.loads(table.to_json(orient="records")), indent=2))
    else:
        counts = predicted["decision"].value_counts()
        found = ", ".join(f"{count} {label}" for label, count in counts.items()) or "none"
        click.echo(f"{counted(len(predicted), 'image')} predicted: {found}; written to {folder}")
        for rule in predicted["decision_rule"].unique():
            click.echo("\n".join(folded(f"Decision: {rule}.")))
        if differing := _differing(predicted):
            words = (
                f"In {counted(differing, 'image')} most of the marked pixels have another class than the decision: "
                "the mask shows the most probable class of each pixel, the decision goes by the score."
            )
            click.echo("\n".join(folded(words)))
        if strange := int((predicted["ood_score"].replace("", 0) > 1).sum()):
            are = "image is" if strange == 1 else "images are"
            words = (
                f"{strange} {are} out of distribution (ood_score > 1): farther from the training images than 99 % of the "
                "validation images. Another scanner, or no breast ultrasound: check them."
            )
            click.echo("\n".join(folded(words)))
    for error in unread["error"]:
        note(f"Not predicted: {error}")
    if len(unread):
        sys.exit(1)


def _differing(predicted: pd.DataFrame) -> int:
    """The number of images for which the mask would give another decision."""
    benign, malignant = predicted["benign_area_px"], predicted["malignant_area_px"]
    shown = benign.gt(malignant).map({True: "benign", False: "malignant"})
    return int((shown.where(benign + malignant > 0, "normal") != predicted["decision"]).sum())
