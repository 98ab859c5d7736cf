"""``bus-smp fetch-weights``."""

from pathlib import Path

import click


@click.command("fetch-weights")
@click.option(
    "--encoder", default="resnet50", show_default=True, metavar="NAME", help="As in model.encoder_name."
)
@click.option(
    "--to",
    "path",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A .safetensors file to write.  [default: NAME-imagenet.safetensors]",
)
def command(encoder: str, path: Path | None) -> None:
    """Download an encoder's ImageNet weights as a file, for a computer without internet.

    Copy the file there and train with --set model.encoder_weights=FILE. It is the file that train itself would
    download, without what the encoder does not need; HF_ENDPOINT names a mirror of the hub.
    """
    from bus_smp.commands.quoting import command_line, setting
    from bus_smp.config import Settings

    path = path or Path(f"{encoder.replace('/', '-')}-imagenet.safetensors")
    if path.suffix != ".safetensors":
        raise click.UsageError(f"--to {path}: the file's name must end in .safetensors")

    from bus_smp.model.encoders import check_encoder
    from bus_smp.model.pretrained import fetch_weights

    check_encoder(encoder)
    source, digest = fetch_weights(encoder, path)
    click.echo(f"{path}: {path.stat().st_size / 1e6:.0f} MB, sha256 {digest}")
    click.echo(f"from {source}", err=True)
    chosen = [] if encoder == Settings().model.encoder_name else [setting("model.encoder_name", encoder)]
    words = [
        part for one in (*chosen, setting("model.encoder_weights", str(path))) for part in ("--set", one)
    ]
    click.echo(f"Next: {command_line('train', *words)}", err=True)
