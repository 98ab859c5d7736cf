"""Options that several commands share, each defined once."""

from collections.abc import Callable, Sequence
from pathlib import Path

import click

from bus_smp.errors import ConfigError
from bus_smp.text import did_you_mean

Root = Path | dict[str, Path] | None


def _parse_root(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> Root:
    if not values:
        return None
    if len(values) == 1 and "=" not in values[0]:
        return Path(values[0])
    pairs = [value.partition("=") for value in values]
    if not all(name and equals and folder for name, equals, folder in pairs):
        raise click.BadParameter(
            "for several data sets write NAME=FOLDER for each, e.g. --root busi=/data/BUSI"
        )
    return {name: Path(folder) for name, _, folder in pairs}


def parse_seeds(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, ...]:
    """``42,43,44`` as numbers; () if the option is not given."""
    if value is None:
        return ()
    words = [word.strip() for word in value.split(",")]
    if not all(word.isdecimal() and int(word) < 2**32 for word in words):
        raise click.BadParameter("write whole numbers from 0 with commas between them, e.g. 42,43,44")
    seeds = tuple(int(word) for word in words)
    if len(set(seeds)) < len(seeds):
        raise click.BadParameter("the same seed twice would be the same run twice")
    return seeds


def check_root(root: Root, datasets: list[str], also: Sequence[str] = ()) -> Root:
    """Return ``root`` if it gives exactly one folder to each data set it names.

    Args:
        also: further data sets that may be named; a folder without a name is not theirs.

    Raises:
        ConfigError: if one folder is given for several data sets, or a data set is named that is not used.
    """
    known = [*datasets, *also]
    unknown = [name for name in root if name not in known] if isinstance(root, dict) else []
    if unknown:
        raise ConfigError(
            f"--root {unknown[0]}=...: no such data set here",
            hint=did_you_mean(unknown[0], known) or f"there are {', '.join(known)}",
        )
    if isinstance(root, Path) and len(datasets) > 1:
        example = " ".join(f"--root {name}=FOLDER" for name in datasets)
        raise ConfigError(
            f"--root {root}: one folder for {', '.join(datasets)}", hint=f"name each: {example}"
        )
    return root


def _parse_views(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[str, ...]:
    from bus_smp.runs.ensemble import check_views

    try:
        return () if value is None else check_views([word.strip() for word in value.split(",")])
    except ConfigError as error:
        raise click.BadParameter(f"{error.what}; {error.hint}") from None


run_option = click.option("--run", help="Name or folder of the run.  [default: the newest that is finished]")
runs_option = click.option(
    "--run",
    "runs",
    multiple=True,
    help="Name or folder of the run, or of an experiment (train --folds, --seeds); several: all as one ensemble.  "
    "[default: the newest that is finished]",
)
ensemble_option = click.option(
    "--ensemble",
    is_flag=True,
    help="The runs of an experiment as one ensemble: the mean of their probabilities.",
)
views_option = click.option(
    "--views",
    callback=_parse_views,
    metavar="mirror",
    help="mirror: each image is seen mirrored, too, and the mean of both counts; takes twice the time.",
)
out_option = click.option(
    "--out",
    type=click.Path(path_type=Path),
    default="outputs",
    show_default=True,
    help="Parent of run folders.",
)
manifests_option = click.option(
    "--manifests",
    type=click.Path(path_type=Path),
    default="data_manifests",
    show_default=True,
    help="Folder of manifests.",
)
root_option = click.option(
    "--root",
    multiple=True,
    callback=_parse_root,
    metavar="[NAME=]FOLDER",
    help="Where the images are, if they have moved since the manifest was made.",
)
device_option = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
precision_option = click.option(
    "--precision",
    type=click.Choice(["auto", "fp32", "bf16", "fp16", "int8"]),
    default="auto",
    show_default=True,
    help="auto: the training's, where the backend has it. int8: the quantised network (onnx, openvino).",
)
backend_option = click.option(
    "--backend",
    type=click.Choice(["torch", "onnx", "openvino"]),
    default="torch",
    show_default=True,
    help="What computes the network; onnx and openvino take the run's export, or make it.",
)


def scoring_options(function: Callable) -> Callable:
    """The options of every command that scores a run, except ``--run``."""
    legacy = click.option(
        "--legacy-metrics",
        "legacy",
        is_flag=True,
        help="Also print the numbers of the notebook this replaces, which count absent classes as Dice 1.",
    )
    as_json = click.option(
        "--json", "as_json", is_flag=True, help="Print the summary as JSON, and nothing else."
    )
    full = click.option("--full", is_flag=True, help="Print the whole table, not only the headline numbers.")
    again = click.option(
        "--again", is_flag=True, help="Score again what is there already from the same weights and images."
    )
    for option in (
        ensemble_option,
        views_option,
        as_json,
        legacy,
        full,
        again,
        precision_option,
        backend_option,
        device_option,
        root_option,
        out_option,
    ):
        function = option(function)
    return function
