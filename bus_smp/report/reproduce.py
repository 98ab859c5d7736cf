"""The commands that make a run and its evaluations again, from what they recorded about themselves."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import PurePath, PureWindowsPath
from typing import Any

import yaml

from bus_smp.config import Settings, differing_keys
from bus_smp.report.records import RunRecord

_DEFAULT_SPLIT = [0.7, 0.15, 0.15]


def commands(runs: Sequence[RunRecord]) -> list[str]:
    """Every command that makes these runs and their evaluations, each once, in the order to type them."""
    lines = [line for run in runs for line in _make_manifests(run)]
    for run in runs:
        lines.append(_train(run))
        lines += [evaluation_command(run.name, one.summary) for one in (*run.own, *run.external)]
    return list(dict.fromkeys(lines))


def _train(run: RunRecord) -> str:
    """``bus-smp train`` with every setting that changes a result and differs from the default."""
    if run.combined:
        return f"# {run.name} combines runs; the page of each has the command that trains it"
    options = ["--run", run.name]
    varied = set()
    if run.members:
        folds = {member.fold for member in run.members} - {None}
        seeds = list(dict.fromkeys(str(member.seed) for member in run.members))
        if folds:
            options += ["--folds", str(len(folds))]
        if len(seeds) > 1 or not folds:
            options += ["--seeds", ",".join(seeds)]
        varied = {"data.fold", "train.seed"}
    if run.settings is None:
        return _shell("train", *options) + "   # its other settings are not known"
    for key, _, value in differing_keys(Settings(), run.settings):
        if key not in varied:
            options += ["--set", f"{key}={_yaml(value)}"]
    return _shell("train", *options)


def evaluation_command(run: str, summary: Mapping[str, Any]) -> str:
    """The command that makes one evaluation folder."""
    computed = summary.get("computed_in") or {}
    options = ["--run", run]
    if ensemble := summary.get("ensemble"):
        names = [ensemble["experiment"]] if ensemble["experiment"] else ensemble["runs"]
        options = [word for name in names for word in ("--run", name)]
        options += ["--ensemble"] if ensemble["experiment"] else []
        options += ["--views", ",".join(ensemble["views"])] if ensemble["views"] else []
    options += ["--legacy-metrics"] if "legacy" in summary else []
    if computed.get("backend", "torch") != "torch":
        options += ["--backend", str(computed["backend"])]
        options += ["--precision", str(computed.get("precision", "auto"))]
    if summary["external"]:
        return _shell("crosseval", *options[:2], "--target", str(summary["dataset"]), *options[2:])
    val = ["--split", "val"] if str(summary["split"]).endswith("val") else []
    return _shell("evaluate", *options[:2], *val, *options[2:])


def _make_manifests(run: RunRecord) -> list[str]:
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
        elif options.get("fractions", _DEFAULT_SPLIT) != _DEFAULT_SPLIT:
            words += ["--split", "/".join(f"{100 * fraction:g}" for fraction in options["fractions"])]
        if options.get("folds"):
            words += ["--folds", str(options["folds"])]
        if options.get("seed", 42) != 42:
            words += ["--seed", str(options["seed"])]
        if options.get("on_mismatch", "exclude") != "exclude":
            words += ["--on-mismatch", str(options["on_mismatch"])]
        for name in ("mask_values", "accept"):
            if options.get(name):
                words += [f"--{name.replace('_', '-')}", ",".join(options[name])]
        if options.get("invert_masks"):
            words.append("--invert-masks")
        if options.get("mask_orientation"):
            words += ["--mask-orientation", str(options["mask_orientation"])]
        if options.get("exclude"):
            words += ["--exclude", ",".join(options["exclude"])]
        if options.get("duplicates"):
            words += ["--duplicates", str(options["duplicates"])]
        lines.append(_shell("make-manifest", *words))
    return lines


def _shell(*words: str) -> str:
    return shlex.join(["bus-smp", *words])


def _yaml(value: Any) -> str:
    """A setting as ``--set`` takes it; of an absolute path only its last part, without the writer's folders."""
    if isinstance(value, str) and (PurePath(value).is_absolute() or PureWindowsPath(value).is_absolute()):
        return f"FOLDER/{PureWindowsPath(value).name}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(_yaml(one) for one in value) + "]"
    return (
        yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("\n").removesuffix("\n...")
    )
