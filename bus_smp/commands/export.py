"""``bus-smp export``."""

from pathlib import Path

import click

from bus_smp.commands.options import Root, check_root, out_option, root_option, run_option


@click.command("export")
@click.option(
    "--format",
    "kind",
    type=click.Choice(["onnx", "openvino", "pth"]),
    required=True,
    help="onnx: for ONNX Runtime; openvino: fastest on a CPU; pth: a plain state dict.",
)
@run_option
@out_option
@click.option("--int8", is_flag=True, help="Quantise to 8-bit integers (onnx, openvino): faster, less exact.")
@click.option(
    "--check",
    type=click.Path(path_type=Path),
    help="Folder of images to compare on.  [default: the run's own validation images]",
)
@root_option
@click.option("--json", "as_json", is_flag=True, help="Print the record as JSON, and nothing else.")
def command(
    kind: str, run: str | None, out: Path, int8: bool, check: Path | None, root: Root, as_json: bool
) -> None:
    """Write a run's network as a file that runs without bus_smp.

    Writes outputs/<run>/export/model.onnx, .xml with .bin (OpenVINO) or .pth: the full-size head, for any number and size of images, with the checkpoint's header inside. The file is then run on real
    images next to the weights; if fewer than 99.95 % of the pixels agree, or lesion Dice moves by more than 0.001,
    nothing is kept. The comparison is written next to the file as JSON.

    --int8 takes its ranges from training images; the loss of accuracy is measured and shown, not limited.

    Research software, not for clinical use.
    """
    import json

    from bus_smp.errors import ConfigError
    from bus_smp.inference.export import describe_parity, export_run
    from bus_smp.runs.find import find_run
    from bus_smp.runs.layout import BEST

    trained = find_run(run, out)
    if trained.best_path.name != BEST:
        raise ConfigError(
            f"{trained.best_path}: an export is written into a run folder and compared with its images",
            hint=f"--run FOLDER with the file as {BEST}",
        )
    if root is not None:
        root = check_root(root, trained.manifest(_named(root)).datasets)
    click.echo(f"Run: {trained.folder}", err=True)
    path, record = export_run(
        trained.folder, kind, int8=int8, check=check, root=root, say=lambda text: click.echo(text, err=True)
    )
    if as_json:
        click.echo(json.dumps({"path": str(path), **record}, indent=2))
        return
    label = "int8 (quantised: another network than the weights)" if int8 else "fp32"
    click.echo(f"{path}: {kind}, {label}")
    click.echo(describe_parity(record["parity"]))


def _named(root: Root) -> Root:
    """Only named folders: one without a name can be used only once the data sets are known."""
    return root if isinstance(root, dict) else None
