"""How runs were made, so that others can make them again: commands, hardware, course of the training."""

import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath, PureWindowsPath
from typing import Any

import yaml

from bus_smp.config import Settings, differing_keys
from bus_smp.report.blocks import Block, Commands, Figure, Paragraph, Section, is_png, png_name
from bus_smp.report.records import Evaluation, Run

_SPLIT_DEFAULT = [0.7, 0.15, 0.15]
_CURVES = {
    "loss_curves": (
        "Training loss of every head and learning rate by epoch",
        "The total is the weighted mean of the heads; the dotted line is the epoch whose weights were kept.",
    ),
    "dice_curve": (
        "Validation Dice of lesion, benign and malignant by epoch",
        "The epoch with the highest lesion Dice was kept. It was chosen on these images, so its Dice is "
        "optimistic and not a result.",
    ),
}  # fmt: skip


def how_made(runs: Sequence[Run]) -> Section:
    """The commands, from the recorded settings, and what they ran on."""
    lines = list(dict.fromkeys(line for run in runs for line in manifest_commands(run)))
    for run in runs:
        lines += [train_command(run), *evaluation_commands(run)]
    blocks: list[Block] = [
        Paragraph(
            "Made again from the recorded settings; what is not set is the default. Data sets lie below "
            "./data."
        ),
        Commands(lines),
        *(Paragraph(text) for text in dict.fromkeys(hardware(run) for run in runs)),
    ]
    return Section("How it was made", blocks)


def train_command(run: Run) -> str:
    """``bus-smp train`` with every setting that changes a result and differs from the default."""
    options = ["--run", run.name]
    apart = set()
    if run.members:
        folds = {member.get("fold") for member in run.members} - {None}
        seeds = list(dict.fromkeys(str(member.get("seed")) for member in run.members))
        if folds:
            options += ["--folds", str(len(folds))]
        if len(seeds) > 1 or not folds:
            options += ["--seeds", ",".join(seeds)]
        apart = {"data.fold", "train.seed"}
    if run.settings is None:
        return _shell("bus-smp", "train", *options) + "   # its other settings are not known"
    for key, _, value in differing_keys(Settings(), run.settings):
        if key not in apart:
            options += ["--set", f"{key}={_yaml(key, value)}"]
    return _shell("bus-smp", "train", *options)


def evaluation_commands(run: Run) -> list[str]:
    """The commands that make the run's evaluations."""
    own = [evaluation for evaluation in run.evaluations if not evaluation.summary["external"]]
    lines = [evaluation_command(run.name, evaluation.summary) for evaluation in own]
    lines += [
        evaluation_command(run.name, evaluation.summary)
        for evaluation in run.evaluations
        if evaluation.summary["external"]
    ]
    return list(dict.fromkeys(lines))


def evaluation_command(run: str, summary: Mapping[str, Any]) -> str:
    """The command that makes one evaluation folder."""
    legacy = ["--legacy-metrics"] if "legacy" in summary else []
    computed = summary.get("computed_in") or {}
    backend, options = computed.get("backend", "torch"), legacy
    if backend != "torch":
        options = [*legacy, "--backend", str(backend), "--precision", str(computed.get("precision", "auto"))]
    if summary["external"]:
        return _shell("bus-smp", "crosseval", "--run", run, "--target", str(summary["dataset"]), *options)
    val = ["--split", "val"] if str(summary["split"]).endswith("val") else []
    return _shell("bus-smp", "evaluate", "--run", run, *val, *options)


def manifest_commands(run: Run) -> list[str]:
    """``bus-smp make-manifest`` for each data set of the run and of its evaluations, where it is recorded."""
    recorded = dict(run.sidecars)
    for evaluation in run.evaluations:
        recorded |= {name: about for name, about in evaluation.sidecars if name not in recorded}
    lines = []
    for name, about in recorded.items():
        options = about.get("options")
        if not isinstance(options, Mapping) or about.get("created_by") != "bus-smp make-manifest":
            continue
        words = ["--dataset", name]
        if options.get("official") and "official" in str((about.get("splits") or {}).get("how")):
            words += ["--split", "official"]
        elif options.get("test_patients"):
            words += ["--test-patients", ",".join(options["test_patients"])]
        elif options.get("fractions", _SPLIT_DEFAULT) != _SPLIT_DEFAULT:
            words += ["--split", "/".join(f"{100 * fraction:g}" for fraction in options["fractions"])]
        if options.get("folds"):
            words += ["--folds", str(options["folds"])]
        if options.get("seed", 42) != 42:
            words += ["--seed", str(options["seed"])]
        if options.get("on_mismatch", "exclude") != "exclude":
            words += ["--on-mismatch", str(options["on_mismatch"])]
        if options.get("exclude"):
            words += ["--exclude", ",".join(options["exclude"])]
        if options.get("duplicates"):
            words += ["--duplicates", str(options["duplicates"])]
        lines.append(_shell("bus-smp", "make-manifest", *words))
    return lines


def _shell(*words: str) -> str:
    return " ".join(shlex.quote(word) for word in words)


def _yaml(key: str, value: Any) -> str:
    """A setting as ``--set`` takes it; of a path only the name, for the folder is the writer's own."""
    if isinstance(value, str) and (PurePath(value).is_absolute() or PureWindowsPath(value).is_absolute()):
        return f"FOLDER/{PureWindowsPath(value).name}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(_yaml(key, one) for one in value) + "]"
    return (
        yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("\n").removesuffix("\n...")
    )


def hardware(run: Run) -> str:
    """Where and with what a run was trained, in a sentence."""
    of = run.environment
    if of is None:
        return f"{run.name}: what it was trained on is not recorded."
    packages = of.get("packages") or {}
    names = ("torch", "segmentation-models-pytorch", "timm", "albumentations")
    versions = ", ".join(f"{name} {packages[name]}" for name in names if name in packages)
    cuda = f", CUDA {of['cuda']}" if of.get("cuda") else f", {of.get('threads')} threads, no GPU"
    return (
        f"{run.name}: trained on {of.get('device')}{cuda}, {of.get('system')}, precision "
        f"{of.get('precision')}; Python {of.get('python')}, {versions}; bus_smp {of.get('bus_smp')}, commit "
        f"{commit(of.get('git_commit'))}."
    )


def commit(value: object) -> str:
    """A commit's first twelve letters; what differs from it is said."""
    if not value:
        return "not recorded"
    text = str(value)
    return text[:12] + (" with changes" if text.endswith("+") else "")


def course(run: Run) -> Section | None:
    """Curves of the training and the epoch that was kept; None where nothing is left of it."""
    blocks: list[Block] = []
    if run.members:
        blocks.append(Paragraph(f"Of the first run, {run.folder.name}."))
    kept = best_epoch(run)
    if kept is not None:
        epochs = f" of {len(run.metrics)}" if run.metrics is not None else ""
        dice = f", lesion Dice {kept[1]:.3f} on the validation images" if not math.isnan(kept[1]) else ""
        blocks.append(
            Paragraph(
                f"Kept: epoch {kept[0]}{epochs}{dice}. That number chose the epoch: it is optimistic and not "
                "a result."
            )
        )
    for figure, (shows, how) in _CURVES.items():
        path = Path(run.folder) / f"{figure}.png"
        if is_png(path):
            blocks.append(
                Figure(path, png_name(run.name, figure), f"{shows}; {run.name}.", f"{shows}. {how}")
            )
    return Section("Course of the training", blocks) if len(blocks) > bool(run.members) else None


def best_epoch(run: Run) -> tuple[int, float] | None:
    """Epoch whose weights were kept and its validation lesion Dice, from the checkpoint; None if unknown."""
    if run.header is None or run.header.get("epoch") is None:
        return None
    dice = (run.header.get("score") or {}).get("val_dice_lesion")
    return int(run.header["epoch"]), math.nan if dice is None else float(dice)


def evaluated(run: Run, external: bool) -> list[Evaluation]:
    """The run's evaluations on its own data, or on external data."""
    return [evaluation for evaluation in run.evaluations if bool(evaluation.summary["external"]) == external]
