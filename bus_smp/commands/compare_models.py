"""``bus-smp compare-models``."""

from pathlib import Path

import click

from bus_smp.commands.options import device_option, manifests_option, out_option


@click.command("compare-models")
@click.option(
    "--encoder", default="resnet50", show_default=True, help="Encoder of every network, as smp calls it."
)
@click.option(
    "--models",
    metavar="A,B,...",
    help="Some of hybrid, hybrid-heads, hybrid-scse, hybrid-aspp, unet, unetplusplus, manet, deeplabv3plus.  "
    "[default: all]",
)
@click.option(
    "--size",
    type=click.IntRange(min=1),
    default=256,
    show_default=True,
    help="Side of the images, in pixels.",
)
@click.option(
    "--batch", type=click.IntRange(min=1), default=1, show_default=True, help="Images of one forward pass."
)
@click.option(
    "--backends",
    metavar="A,B,...",
    help="torch, onnx, openvino, or one with its precision such as openvino-int8.  [default: all but int8]",
)
@click.option(
    "--repeats", type=click.IntRange(min=1), default=5, show_default=True, help="Readings of each number."
)
@click.option("--train", is_flag=True, help="Also time a training step of each.")
@click.option(
    "--quality",
    metavar="NAME",
    help="Also train each on this manifest, for the same steps, and score its val split: takes as long as so many "
    "trainings.",
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="A setting of these trainings, as for bus-smp train, e.g. train.epochs=10. Repeatable.",
)
@manifests_option
@device_option
@click.option("--json", "as_json", is_flag=True, help="Print the table as JSON, and nothing else.")
@out_option
def command(
    encoder: str,
    models: str | None,
    size: int,
    batch: int,
    backends: str | None,
    repeats: int,
    train: bool,
    quality: str | None,
    overrides: tuple[str, ...],
    manifests: Path,
    device: str,
    as_json: bool,
    out: Path,
) -> None:
    """Compare the hybrid model with other networks: size, work, time, memory.

    The others are U-Net, U-Net++, MAnet and DeepLabV3+ of segmentation_models_pytorch, with the same encoder and
    random weights; without --quality nothing is downloaded. All are timed in turn. A network that cannot take the encoder or the size
    says so in its row. Writes outputs/compare-models/models.csv, .json and .png.
    """
    import json

    from bus_smp.config import load_settings
    from bus_smp.data.manifest import manifest_path, read_manifest
    from bus_smp.figures.models import write_models
    from bus_smp.model.encoders import load_encoder
    from bus_smp.model_comparison.backends import choose_backends
    from bus_smp.model_comparison.compare import (
        Comparison,
        compare,
        describe_machine,
        summary,
        write_comparison,
    )
    from bus_smp.model_comparison.networks import check_encoder, choose_networks
    from bus_smp.model_comparison.quality import add_quality, check_overrides
    from bus_smp.system.console import note
    from bus_smp.system.engine import make_engine
    from bus_smp.training.preflight import check_files, check_trainable

    engine = make_engine(device)
    check_encoder(encoder)
    networks = choose_networks(models)
    settings = manifest = None
    if overrides and not quality:
        raise click.UsageError("--set changes the trainings of --quality, which is missing.")
    if quality:
        # everything that may be wrong is found before the first minute of work
        own = (f"model.encoder_name={encoder}", f"data.size={size}", f"runtime.device={device}")
        check_overrides(overrides)
        settings = load_settings(None, [*overrides, *own])
        manifest = read_manifest(manifest_path(quality, manifests))
        check_trainable(manifest)
        check_files(settings, manifest)
        load_encoder(encoder, settings.model.encoder_weights)
    plan = Comparison(
        engine, encoder, size, batch, choose_backends(backends, engine), repeats, train, networks
    )
    table, missing = compare(plan, say=note)
    for backend, why in missing.items():
        note(f"Not measured: {backend}: {why}")
    if settings and manifest:
        table = add_quality(table, settings, manifest, note)
    about = {**describe_machine(engine), "repeats": repeats, "not_measured": missing}
    folder = out / "compare-models"
    document = write_comparison(table, about, folder)
    write_models(table, folder / "models.png")
    click.echo(json.dumps(document, indent=2, allow_nan=False) if as_json else summary(table))
    note(f"Written: {folder}")
