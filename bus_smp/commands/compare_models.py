"""``bus-smp compare-models``."""

from pathlib import Path

import click

from bus_smp.commands.options import device_option, out_option


@click.command("compare-models")
@click.option(
    "--encoder", default="resnet50", show_default=True, help="Encoder of every network, as smp calls it."
)
@click.option(
    "--models",
    metavar="A,B,...",
    help="Some of hybrid, hybrid-heads, unet, unetplusplus, manet, deeplabv3plus.  [default: all]",
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
    device: str,
    as_json: bool,
    out: Path,
) -> None:
    """Compare the hybrid model with other networks: size, work, time, memory.

    The others are U-Net, U-Net++, MAnet and DeepLabV3+ of segmentation_models_pytorch, with the same encoder and
    random weights; nothing is downloaded. All are timed in turn. A network that cannot take the encoder or the size
    says so in its row. Writes outputs/compare-models/models.csv, .json and .png.
    """
    import json

    from bus_smp.figures.models import write_models
    from bus_smp.model_comparison.backends import choose_backends
    from bus_smp.model_comparison.compare import (
        Comparison,
        compare,
        describe_machine,
        summary,
        write_comparison,
    )
    from bus_smp.model_comparison.networks import check_encoder, choose_networks
    from bus_smp.system.engine import make_engine

    engine = make_engine(device)
    check_encoder(encoder)
    networks = choose_networks(models)
    plan = Comparison(
        engine, encoder, size, batch, choose_backends(backends, engine), repeats, train, networks
    )
    table, missing = compare(plan, say=lambda text: click.echo(text, err=True))
    for backend, why in missing.items():
        click.echo(f"Not measured: {backend}: {why}", err=True)
    about = {**describe_machine(engine), "repeats": repeats, "not_measured": missing}
    folder = out / "compare-models"
    document = write_comparison(table, about, folder)
    write_models(table, folder / "models.png")
    click.echo(json.dumps(document, indent=2, allow_nan=False) if as_json else summary(table))
    click.echo(f"Written: {folder}", err=True)
