"""What a file or folder is, from headers and small files, so that ``bus-smp info`` answers at once."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bus_smp.data.manifest_counts import count_manifest
from bus_smp.errors import CheckpointError
from bus_smp.model.checkpoint import read_header
from bus_smp.runs.ensemble import is_ensemble, read_ensemble
from bus_smp.runs.experiment import is_experiment, read_experiment
from bus_smp.runs.layout import BEST
from bus_smp.runs.run import Run
from bus_smp.system.files import file_sha256

# Ends of what a temperature may be. Beyond these the network is not miscalibrated but useless (or the validation split
# too easy to tell).
LEAST_TEMPERATURE, MOST_TEMPERATURE = 0.05, 20.0


def calibration_warnings(calibration: Mapping[str, Any]) -> list[str]:
    """What is wrong with the calibration of a run: a sentence each.

    Args:
        calibration: of a checkpoint's header; empty, or without the numbers of this version, gives no warning.
    """
    warnings = []
    for whose, fitted in (("", calibration), (" of the image head", calibration.get("image") or {})):
        temperature = fitted.get("temperature")
        if temperature in (LEAST_TEMPERATURE, MOST_TEMPERATURE):
            warnings.append(
                f"the temperature{whose} is at its bound ({temperature:g}): the probabilities could not be calibrated"
            )
    before, after = calibration.get("brier_before"), calibration.get("brier_after")
    if before is not None and after is not None and after > before:
        warnings.append(
            "the calibration made the malignant score worse on the validation images (Brier score "
            f"{before:.3f} before, {after:.3f} after)"
        )
    return warnings


def describe_calibration(calibration: Mapping[str, Any]) -> list[str]:
    """What was fitted on the validation split, and what is wrong with it; a line each."""
    threshold = calibration["threshold"]
    called = calibration["reason"] if threshold is None else f"malignant from a score of {threshold:.3f} on"
    lines = [f"temperature {calibration['temperature']:.3f}, {called}"]
    # one of an older version has none
    if point := calibration.get("operating_point"):
        lines.append(describe_operating_point(point))
    if head := calibration.get("image"):
        lines.append(f"image head: temperature {head['temperature']:.3f}")
    return lines + [f"Warning: {warning}" for warning in calibration_warnings(calibration)]


def describe_operating_point(point: Mapping[str, Any]) -> str:
    """What an operating point keeps, and what it changes on the validation split; or why there is none."""
    if point.get("least_probability") is None:
        return f"no operating point: {point.get('reason')}"
    gate = point.get("most_normal")
    closed = "" if gate is None else f", and none where the image head says normal with more than {gate:.3f}"
    return (
        f"operating point: a lesion is kept from a probability of {point['least_probability']:.3f} and "
        f"{point['least_area']:.2%} of the image on{closed}; on validation {point['found']} of {point['lesions']} lesions are "
        f"found (plain mask {point['found_plain']}), false alarms on {point['false_alarms']} of "
        f"{point['normal_images']} normal images (plain mask {point['false_alarms_plain']})"
    )


def network_parts(model: Mapping[str, Any]) -> str:
    """What a network has besides encoder and decoder, in words, from the ``model`` of a header; older ones lack entries."""
    parts = ["heads at full, 1/2, 1/4 and 1/8 size" if model.get("deep_supervision") else "one head"]
    parts += [str(model[key]) for key in ("attention", "bottleneck") if model.get(key)]
    parts += [f"{norm} norm in the decoder"] if (norm := model.get("decoder_norm")) else []
    parts += [words for words in ("image head", "shape head") if model.get(words.replace(" ", "_"))]
    return ", ".join(parts)


def network_input(data: Mapping[str, Any]) -> str:
    """How an image is brought to the network, from ``size``, ``geometry`` and ``grey`` of a header or of the settings."""
    colours = "grey (mean of RGB)" if data.get("grey") else "RGB"
    fitted = "letterboxed" if data.get("geometry") == "letterbox" else "stretched"
    return f"{colours} {fitted} to {data['size']} x {data['size']}"


def describe(path: Path) -> tuple[str, dict[str, Any]]:
    """What ``path`` is (``checkpoint``, ``run``, ``experiment``, ``ensemble``, ``manifest`` or ``DICOM``), and all that its header says.

    Raises:
        BusSmpError: if it is none of these, missing or damaged.
    """
    if path.is_dir():
        if is_experiment(path):
            return "experiment", {"members": _describe_members(read_experiment(path).runs())}
        if is_ensemble(path):
            ensemble = read_ensemble(path)
            return "ensemble", {"views": list(ensemble.views), "members": _describe_members(ensemble.runs)}
        run = Run(path)
        if not run.has_weights():
            raise CheckpointError(f"{path} holds no {BEST}", hint="name a run folder, e.g. outputs/bus-uclm")
        return "run", run.header()
    if path.suffix.lower() == ".csv":
        return "manifest", count_manifest(path)
    if path.suffix.lower() != ".safetensors":
        # it loads numpy, which the others do without
        from bus_smp.data.dicom import describe_dicom, is_dicom

        if is_dicom(path):
            return "DICOM", describe_dicom(path)
    return "checkpoint", read_header(path)


def _describe_members(runs: Iterable[Run]) -> dict[str, Any]:
    """Each run's epoch and validation scores of its weights; None where it is not trained."""
    found: dict[str, Any] = {}
    for run in runs:
        try:
            header = run.header()
            found[run.name] = {key: header.get(key) for key in ("epoch", "score", "calibration")}
        except CheckpointError:
            found[run.name] = None
    return found


def describe_exports(folder: Path) -> dict[str, dict[str, Any] | Exception]:
    """The record of each export of a run folder by its file's stem, or why it cannot be read.

    A record is JSON as ``export_run`` returns it, with ``current``: whether it was made from the run's weights of now.
    """
    run = Run(folder)
    found: dict[str, dict[str, Any] | Exception] = {}
    records = sorted(run.exports_path.glob("*.json"))
    weights = file_sha256(run.best_path) if records else ""
    for path in records:
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            found[path.stem] = record | {"current": record["checkpoint_sha256"] == weights}
        except (OSError, ValueError, KeyError, TypeError) as error:
            found[path.stem] = error
    return found
