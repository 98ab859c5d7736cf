"""``bus-smp info``: answers at once, so it imports neither torch nor numpy nor pandas."""

import json
from pathlib import Path
from typing import Any

import click


@click.command("info")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print everything known as JSON.")
def command(path: Path, as_json: bool) -> None:
    """Describe a checkpoint, run folder, manifest or DICOM file at once.

    PATH is a .safetensors file, a run folder or the name of one in outputs/, a manifest's .csv file, or a DICOM file.
    """
    from bus_smp.errors import BusSmpError
    from bus_smp.runs.describe import describe
    from bus_smp.text import folded, printable

    if not path.suffix and not path.exists():
        from bus_smp.runs.find import find_folder

        path = find_folder(str(path), Path("outputs"))
    kind, about = describe(path)
    if as_json:
        click.echo(json.dumps({"kind": kind, "path": str(path), **about}, indent=2))
        return
    lines = {
        "experiment": _members_lines,
        "ensemble": _members_lines,
        "manifest": _manifest_lines,
        "DICOM": _dicom_lines,
    }.get(kind, _checkpoint_lines)
    try:
        first, *others = lines(path, about)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise BusSmpError(f"{path}: its header cannot be shown ({error!r})") from None
    for line in (first, *(part for other in others for part in folded(other))):
        click.echo(printable(line))


def _members_lines(path: Path, about: dict[str, Any]) -> list[str]:
    """Of an experiment, or of an ensemble, which has views."""
    from bus_smp.text import counted

    kind = "ensemble" if "views" in about else "experiment"
    lines = [f"{path}: {kind} of {counted(len(about['members']), 'run')}"]
    if about.get("views"):
        lines.append(f"  views      plain, {', '.join(about['views'])}")
    for name, run in about["members"].items():
        if run is None:
            lines.append(f"  {name}: not trained yet")
            continue
        dice = (run["score"] or {}).get("val_dice_lesion")
        state = "finished" if run["calibration"] else "not finished"
        known = "" if dice is None else f", validation lesion Dice {dice:.3f}"
        lines.append(f"  {name}: {state}, best epoch {run['epoch']}{known}")
    return lines


def _checkpoint_lines(path: Path, about: dict[str, Any]) -> list[str]:
    from bus_smp.runs.describe import network_input, network_parts

    model = about["model"]
    score = about.get("score", {})
    versions = about.get("versions", {})
    return [
        f"{path}: bus-smp checkpoint",
        f"  model      {model.get('encoder_name')} U-Net, {network_parts(model)}",
        f"  classes    {', '.join(entry['name'] for entry in about['classes'])}",
        f"  input      {network_input(about)} px, mean {about['mean']}, std {about['std']}",
        f"  trained on {', '.join(about['datasets'])} (manifest {about['manifest_sha256'][:12]})",
        *_encoder_lines(about.get("encoder_origin")),
        *_ancestor_lines(about.get("ancestors", [])),
        f"  epoch      {about['epoch']} of {about['settings']['train']['epochs']}, seed {about['settings']['train']['seed']}",
        f"  validation {', '.join(f'{key[4:]} {value:.3f}' for key, value in score.items() if value is not None)}",
        *_calibration_lines(about.get("calibration")),
        f"  made with  bus_smp {versions.get('bus_smp')}, torch {versions.get('torch')}, commit {str(about.get('git_commit'))[:12]}",
        *_export_lines(path),
        "  Research software, not for clinical use.",
    ]


def _encoder_lines(origin: str | None) -> list[str]:
    return [f"  encoder    started from {origin}"] if origin else []


def _ancestor_lines(ancestors: list[dict[str, Any]]) -> list[str]:
    return [
        f"  started from {one['run']}, epoch {one['epoch']}, trained on {', '.join(one['datasets'])} "
        f"(weights {one['weights_sha256'][:12]})"
        for one in ancestors
    ]


def _export_lines(path: Path) -> list[str]:
    """One line for each export of a run folder."""
    from bus_smp.runs.describe import describe_exports

    lines = []
    for name, record in describe_exports(path).items() if path.is_dir() else ():
        try:
            if isinstance(record, Exception):
                raise record
            agreement = f"{record['parity']['argmax_agreement']:.2%} of pixels as the weights"
            stale = "" if record["current"] else "; out of date: made from other weights"
            lines.append(f"  export     {name} ({record['precision']}), {agreement}{stale}")
        except (OSError, ValueError, KeyError, TypeError) as error:
            lines.append(f"  export     {name}.json cannot be read ({type(error).__name__})")
    return lines


def _calibration_lines(calibration: dict[str, Any] | None) -> list[str]:
    from bus_smp.runs.describe import describe_calibration

    if not calibration:
        return ["  calibrated no: bus-smp train, typed again, does it"]
    first, *others = describe_calibration(calibration)
    return [
        f"  calibrated on validation: {first}",
        *(f"  {other}" for other in others),
    ]


def _manifest_lines(path: Path, about: dict[str, Any]) -> list[str]:
    from bus_smp.data.exclusions import describe_code, exclusion_code
    from bus_smp.text import counted

    unit = "patient" if about["patients_known"] else "group"
    lines = [
        f"{path}: manifest, {counted(about['images'], 'image')}, {about['used']:,} used, {counted(about['groups'], unit)}"
    ]
    for split, labels in about["splits"].items():
        counts = ", ".join(f"{count} {label}" for label, count in sorted(labels.items()))
        lines.append(f"  {split:<6} {sum(labels.values()):>6}  {counts}")
    reasons: dict[str, int] = {}
    for cell, count in about["excluded"].items():
        code = describe_code(exclusion_code(cell))
        reasons[code] = reasons.get(code, 0) + count
    most_first = sorted(reasons.items(), key=lambda one: (-one[1], one[0]))
    return lines + [f"  excluded {count:>4}  {reason}" for reason, count in most_first]


def _dicom_lines(path: Path, about: dict[str, Any]) -> list[str]:
    from bus_smp.text import counted

    size = f"{about['width']}x{about['height']} pixels"
    decoder = f", unpacked by {about['decoder']}" if about["decoder"] else ""
    lines = [
        f"{path}: DICOM, modality {about['modality']}, {counted(about['frames'], 'frame')} of {size}",
        f"  pixels     {about['photometric']}, {about['syntax']}{decoder}",
        *(f"  {line}" for line in about["regions"]),
    ]
    for number, pane in enumerate(about["panes"], 1):
        left, top, right, bottom = pane["box"]
        known = pane["pixel_mm"]
        size = (
            f"a pixel is {known[0]:.4g} x {known[1]:.4g} mm ({pane['source']})"
            if known
            else f"no mm: {pane['source']}"
        )
        lines.append(f"  picture {number}  x {left}-{right - 1}, y {top}-{bottom - 1}; {size}")
    return lines + [f"  note       {note}" for note in about["notes"]]
