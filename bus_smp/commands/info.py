"""``bus-smp info``: answers at once, so it imports neither torch nor numpy nor pandas."""

import json
from pathlib import Path
from typing import Any

import click


@click.command("info")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print everything known as JSON.")
def command(path: Path, as_json: bool) -> None:
    """Say what a checkpoint, run folder or manifest is, at once.

    PATH is a .safetensors file, a run folder, or a manifest's .csv file.
    """
    from bus_smp.errors import BusSmpError
    from bus_smp.text import printable

    kind, about = describe(path)
    if as_json:
        click.echo(json.dumps({"kind": kind, "path": str(path), **about}, indent=2, ensure_ascii=False))
        return
    lines = {"experiment": _experiment_lines, "manifest": _manifest_lines}.get(kind, _checkpoint_lines)
    try:
        told = list(lines(path, about))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise BusSmpError(f"{path}: what its header says cannot be told ({error!r})") from None
    for line in told:
        click.echo(printable(line))


def describe(path: Path) -> tuple[str, dict[str, Any]]:
    """What ``path`` is (``checkpoint``, ``run``, ``experiment`` or ``manifest``), and everything its header says.

    Raises:
        BusSmpError: if it is none of these, missing or damaged.
    """
    from bus_smp.errors import CheckpointError
    from bus_smp.model.checkpoint import read_header
    from bus_smp.runs.find import BEST, EXPERIMENT

    if path.is_dir():
        if (path / EXPERIMENT).is_file():
            return "experiment", _read_experiment(path)
        if not (path / BEST).is_file():
            raise CheckpointError(f"{path} holds no {BEST}", hint="name a run folder, e.g. outputs/bus-uclm")
        return "run", read_header(path / BEST)
    if path.suffix.lower() == ".csv":
        return "manifest", _read_manifest(path)
    return "checkpoint", read_header(path)


def _read_experiment(path: Path) -> dict[str, Any]:
    """The members of an experiment, each with the epoch and validation scores of its weights; None where untrained."""
    from bus_smp.errors import CheckpointError, TrainingError
    from bus_smp.model.checkpoint import read_header
    from bus_smp.runs.find import BEST, EXPERIMENT

    try:
        members = json.loads((path / EXPERIMENT).read_text(encoding="utf-8"))["members"]
        names = [member["run"] for member in members]
        if any(Path(name).name != name for name in names):
            raise ValueError("members must be names of run folders")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrainingError(f"{path / EXPERIMENT}: cannot be read as an experiment ({error})") from None
    found = {}
    for name in names:
        try:
            header = read_header(path.parent / name / BEST)
            found[name] = {key: header.get(key) for key in ("epoch", "score", "calibration")}
        except CheckpointError:
            found[name] = None
    return {"members": found}


def _experiment_lines(path: Path, about: dict[str, Any]) -> list[str]:
    lines = [f"{path}: experiment of {len(about['members'])} runs"]
    for name, run in about["members"].items():
        if run is None:
            lines.append(f"  {name}: not trained yet")
            continue
        dice = (run["score"] or {}).get("val_dice_lesion")
        state = "finished" if run["calibration"] else "not finished"
        known = "" if dice is None else f", validation lesion Dice {dice:.3f}"
        lines.append(f"  {name}: {state}, best epoch {run['epoch']}{known}")
    return lines


def _read_manifest(path: Path) -> dict[str, Any]:
    import csv
    import io
    from collections import Counter

    from bus_smp.errors import ManifestError
    from bus_smp.system.files import open_regular

    try:
        with io.TextIOWrapper(open_regular(path), encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
        sidecar = path.with_suffix(".json")
        about = json.loads(sidecar.read_text(encoding="utf-8")) if sidecar.is_file() else {}
        if not rows:
            raise ValueError("it has no rows")
        used = [row for row in rows if row["excluded"] == ""]
        splits = {
            split: dict(Counter(row["label"] for row in used if row["split"] == split))
            for split in ("train", "val", "test")
        }
        return {
            "images": len(rows),
            "used": len(used),
            "groups": len({row["group_id"] for row in used}),
            "splits": splits,
            "excluded": dict(Counter(row["excluded"] for row in rows if row["excluded"])),
            "about": about,
        }
    except FileNotFoundError:
        raise ManifestError(f"{path}: no such file", hint="bus-smp make-manifest") from None
    except (KeyError, TypeError, ValueError, OSError, RecursionError, csv.Error) as error:
        raise ManifestError(
            f"{path}: is not a manifest of bus-smp ({error})", hint="bus-smp make-manifest"
        ) from None


def _checkpoint_lines(path: Path, about: dict[str, Any]) -> list[str]:
    model = about["model"]
    extras = [str(model[key]) for key in ("attention", "bottleneck") if model.get(key)]
    heads = "deep supervision" if model.get("deep_supervision") else "one head"
    score = about.get("score", {})
    versions = about.get("versions", {})
    return [
        f"{path}: bus-smp checkpoint",
        f"  model      {model.get('encoder_name')} U-Net, {', '.join([heads, *extras])}",
        f"  classes    {', '.join(entry['name'] for entry in about['classes'])}",
        f"  input      {about['size']} px, mean {about['mean']}, std {about['std']}",
        f"  trained on {', '.join(about['datasets'])} (manifest {about['manifest_sha256'][:12]})",
        f"  epoch      {about['epoch']} of {about['settings']['train']['epochs']}, seed {about['settings']['train']['seed']}",
        f"  validation {', '.join(f'{key[4:]} {value:.3f}' for key, value in score.items() if value is not None)}",
        _calibration_line(about.get("calibration")),
        f"  made with  bus_smp {versions.get('bus_smp')}, torch {versions.get('torch')}, commit {str(about.get('git_commit'))[:12]}",
        *_export_lines(path),
        "  Research software, not for clinical use.",
    ]


def _export_lines(path: Path) -> list[str]:
    """One line for each export of a run folder, from the record beside it."""
    from bus_smp.errors import BusSmpError
    from bus_smp.runs.find import BEST, EXPORTS
    from bus_smp.system.files import file_sha256

    lines = []
    records = sorted((path / EXPORTS).glob("*.json")) if path.is_dir() else []
    weights = file_sha256(path / BEST) if records else ""
    for record in records:
        try:
            about = json.loads(record.read_text(encoding="utf-8"))
            agreement = f"{about['parity']['argmax_agreement']:.2%} of pixels as the weights"
            stale = "" if about["checkpoint_sha256"] == weights else "; out of date: made from other weights"
            lines.append(f"  export     {record.stem} ({about['precision']}), {agreement}{stale}")
        except (BusSmpError, OSError, ValueError, KeyError, TypeError) as error:
            lines.append(f"  export     {record.name} cannot be read ({type(error).__name__})")
    return lines


def _calibration_line(calibration: dict[str, Any] | None) -> str:
    if not calibration:
        return "  calibrated no: bus-smp train, typed again, does it"
    threshold = calibration["threshold"]
    called = calibration["reason"] if threshold is None else f"malignant from a score of {threshold:.3f} on"
    return f"  calibrated on validation: temperature {calibration['temperature']:.3f}, {called}"


def _manifest_lines(path: Path, about: dict[str, Any]) -> list[str]:
    lines = [f"{path}: manifest, {about['images']} images, {about['used']} used, {about['groups']} groups"]
    for split, labels in about["splits"].items():
        counts = ", ".join(f"{count} {label}" for label, count in sorted(labels.items()))
        lines.append(f"  {split:<6} {sum(labels.values()):>6}  {counts}")
    lines += [f"  excluded {count:>4}  {reason}" for reason, count in sorted(about["excluded"].items())[:20]]
    return lines
