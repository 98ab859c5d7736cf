"""Exporting a run: the file is written, compared with the weights on real images, and only then given its name."""

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from bus_smp.data.examples import read_example
from bus_smp.data.geometry import Geometry
from bus_smp.data.images import read_image
from bus_smp.data.manifest import Manifest
from bus_smp.errors import CheckpointError, ConfigError, EvaluationError
from bus_smp.inference.folding import MainHead, fold_batch_norms
from bus_smp.inference.formats.contract import FromPixels
from bus_smp.inference.formats.onnx import load_onnx, write_int8, write_onnx
from bus_smp.inference.formats.openvino import load_openvino, write_openvino
from bus_smp.inference.formats.pth import load_pth, write_pth
from bus_smp.inference.parity import LEAST_AGREEMENT, MOST_DICE_DIFFERENCE, compare_networks, passes
from bus_smp.inference.predict_files import find_images, is_mask, list_pictures
from bus_smp.inference.predictor import Network, Outputs, outputs_of, temperature_of
from bus_smp.model.checkpoint import load_model
from bus_smp.model.hybrid import HybridResNet50
from bus_smp.runs.run import Run
from bus_smp.system.files import explained, file_sha256, write_text

SUFFIXES = {"onnx": ".onnx", "openvino": ".xml", "pth": ".pth"}
QUANTISED = ("onnx", "openvino")
CALIBRATION_IMAGES = 128
_CHECK_IMAGES = 200
_BATCH = 8


def export_path(run: Path, kind: str, int8: bool = False) -> Path:
    """Return the path of a run folder's export; its record is next to it, with ``.json`` after the name."""
    return Run(run).exports_path / f"model{'-int8' if int8 else ''}{SUFFIXES[kind]}"


def record_path(path: Path) -> Path:
    """Return the path of an export's record: its checkpoint, the hashes of its files, and the comparison."""
    return path.with_name(path.name + ".json")


def find_export(run: Path, kind: str, int8: bool, checkpoint_sha256: str) -> Path | None:
    """Return the finished export of exactly these weights; None if there is none, or it was made from others.

    Raises:
        CheckpointError: if its files are not those that were written: damaged, or replaced.
    """
    path = export_path(run, kind, int8)
    try:
        record = json.loads(record_path(path).read_text(encoding="utf-8"))
        if record["checkpoint_sha256"] != checkpoint_sha256:
            return None
        files = dict(record["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    for name in (part.name for part in _parts(path)):
        part = path.with_name(name)
        if not part.is_file() or file_sha256(part) != files.get(name):
            flag = " --int8" if int8 else ""
            raise CheckpointError(
                f"{part}: is damaged: not the file that bus-smp export wrote",
                hint=f"write it again: bus-smp export --run {Path(run).name} --format {kind}{flag}",
            )
    return path


def export_run(
    run: Path,
    kind: str,
    *,
    int8: bool = False,
    check: Path | None = None,
    root: Path | Mapping[str, Path] | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> tuple[Path, dict[str, Any]]:
    """Write the best weights of a run folder in another format, compare both on real images, keep it if they agree.

    Args:
        kind: a key of ``SUFFIXES``.
        int8: quantise, with ranges from training images of the run. An int8 file is another network: its loss of
            accuracy is measured and recorded, and no limit is set.
        check: a folder of images to compare on; None: the run's own validation images.
        root: where the run's images are, if they have moved.

    Returns:
        The file, and its record: ``parity`` as returned by ``compare_networks``, sha256 of checkpoint and files.

    Raises:
        ConfigError: if there is no such int8 format, or a package is missing.
        EvaluationError: if the two differ by more than ``passes`` allows, or there is no image to compare on.
        CheckpointError, DataError: if the weights or an image cannot be read.
    """
    if int8 and kind not in QUANTISED:
        raise ConfigError(f"{kind} has no int8", hint=f"use --format {' or '.join(QUANTISED)}")
    run = Path(run)
    path = export_path(run, kind, int8)
    best = Run(run).best_path
    model, header = load_model(best)
    checkpoint = file_sha256(best)
    manifest = None
    if int8 or check is None:
        manifest = Run(run).manifest(root, images=True)
    examples = _check_examples(manifest, check, say)
    about = _about(header, checkpoint, kind, int8)
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".making-") as making:
            made = Path(making) / path.name
            say(f"Writing {path}" + (f" (ranges from {CALIBRATION_IMAGES} training images)" if int8 else ""))
            _write(model, about, made, kind, manifest if int8 else None, _source(run, checkpoint))
            say("Comparing it with the weights, image by image")
            parity = compare_networks(
                _torch_network(model, header),
                _load(made, kind, int8),
                examples,
                Geometry.of(header),
                temperature_of(header),
            )
            parity |= {
                "on": "validation images of the run" if check is None else "images of a folder",
                "threads": torch.get_num_threads(),
            }
            if not parity["images"]:
                raise EvaluationError(
                    f"{check}: holds no scan, only masks", hint="name another folder: --check FOLDER"
                )
            if not parity["finite"] or (not int8 and not passes(parity)):
                raise EvaluationError(
                    f"{path.name} does not predict as the weights it was made from: {describe_parity(parity)}",
                    hint=f"nothing was kept; needed: agreement >= {LEAST_AGREEMENT:.2%}, Dice within {MOST_DICE_DIFFERENCE}",
                )
            record = {
                **about["export"],
                "checkpoint_sha256": checkpoint,
                "files": {part.name: file_sha256(part) for part in _parts(made)},
                "parity": parity,
            }
            # a record means that all files are there: it is removed first and written last
            record_path(path).unlink(missing_ok=True)
            for part in _parts(made):
                part.replace(path.with_name(part.name))
    write_text(record_path(path), json.dumps(record, indent=2, allow_nan=False) + "\n")
    return path, record


def describe_parity(parity: Mapping[str, Any]) -> str:
    """Return the comparison in one line; on images without truth it says nothing about accuracy."""

    def three(value: float | None) -> str:
        return "-" if value is None else f"{value:.4f}"

    agreement = "-" if parity["argmax_agreement"] is None else f"{parity['argmax_agreement']:.3%}"
    agreed = f"{agreement} of the pixels agree on {parity['images']} {parity['on']}"
    # records of older versions lack it
    if parity.get("lesion_overlap") is not None:
        return f"{agreed}; overlap of the marked lesions with those of the weights {three(parity['lesion_overlap'])} (no truth is known)"
    return (
        f"{agreed}; lesion Dice {three(parity['dice_lesion'])} (weights {three(parity['dice_lesion_reference'])}), "
        f"AUC malignant {three(parity['auc_malignant'])} (weights {three(parity['auc_malignant_reference'])})"
    )


def _about(header: Mapping[str, Any], checkpoint: str, kind: str, int8: bool) -> dict[str, Any]:
    packages = {"onnx": ["onnx", "onnxruntime"], "openvino": ["openvino"]}.get(kind, [])
    fed = (
        "images: float32 (N, 3, H, W), RGB (all three their mean, if grey) in 0..1 less mean, by std"
        if kind == "pth"
        else "images: uint8 (N, H, W, 3), RGB; averaged (grey) and normalised inside. Bring them to size x size (geometry) first."
    )
    return {
        **header,
        "sha256": checkpoint,
        "export": {
            "format": kind,
            "precision": "int8" if int8 else "fp32",
            "input": fed,
            "output": "logits: float32 (N, 3, H, W); softmax(logits / temperature) are the calibrated probabilities",
            "versions": {name: metadata.version(name) for name in ("torch", *packages)},
            "calibrated_on": f"{CALIBRATION_IMAGES} training images at most" if int8 else None,
        },
    }


def _source(run: Path, checkpoint: str) -> Path | None:
    """Return the run's ONNX file in fp32, from which the others are made; None if there is none yet."""
    try:
        return find_export(run, "onnx", False, checkpoint)
    except CheckpointError:
        return None


def _write(
    model: HybridResNet50,
    about: dict[str, Any],
    path: Path,
    kind: str,
    calibration: Manifest | None,
    plain: Path | None,
) -> None:
    """Write one format; ``plain``: an fp32 ONNX file of these weights, if there is one."""
    if kind == "pth":
        write_pth(model, path, about)
        return
    whole = MainHead(model)
    module = FromPixels(fold_batch_norms(whole), about).eval()
    if plain is None or (kind == "onnx" and calibration is None):
        plain = path.with_name("plain.onnx")
        write_onnx(module, plain, about["size"], about, names=whole.names)
    if calibration is not None:
        quantised = path.with_name("quantised.onnx")
        write_int8(plain, quantised, _calibration_batches(calibration, Geometry.of(about)), about)
        plain = quantised
    if kind == "openvino":
        write_openvino(plain, path, about)
    else:
        plain.replace(path)


def _load(path: Path, kind: str, int8: bool) -> Network:
    """Return the network of a file that was just written, read as its users will read it."""
    if kind == "onnx":
        return load_onnx(path)
    if kind == "openvino":
        return load_openvino(path, "int8" if int8 else "fp32")
    return _torch_network(*load_pth(path))


def _torch_network(model: HybridResNet50, about: Mapping[str, Any]) -> Network:
    """Return the weights as a network in fp32 on the CPU, with nothing folded."""
    whole = MainHead(model)
    module = FromPixels(whole, about).eval()

    @torch.inference_mode()
    def network(images: np.ndarray) -> Outputs:
        return outputs_of(module(torch.from_numpy(images)), whole.names)

    return network


def _parts(path: Path) -> list[Path]:
    return [path.with_suffix(".bin"), path] if path.suffix == ".xml" else [path]


def _spread(rows: pd.DataFrame, most: int) -> list[dict[str, Any]]:
    """At most ``most`` rows, evenly over all of them: the table is sorted, so over all patients."""
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(int))
    return rows.iloc[chosen].to_dict("records")


def _calibration_batches(manifest: Manifest, geometry: Geometry) -> Iterator[np.ndarray]:
    rows = _spread(manifest.used("train"), CALIBRATION_IMAGES)
    for start in range(0, len(rows), _BATCH):
        images = [read_example(manifest, row)[0] for row in rows[start : start + _BATCH]]
        yield np.stack([geometry.image(image) for image in images])


def _check_examples(
    manifest: Manifest | None, check: Path | None, say: Callable[[str], None]
) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    if check is not None:
        found = ((path, read_image(path)) for path, _ in list_pictures(find_images([check], say=say)))
        scans = ((pixels, None) for path, pixels in found if not is_mask(path, pixels))
        return islice(scans, _CHECK_IMAGES)
    assert manifest is not None
    rows = manifest.used("val")
    if rows.empty:
        raise EvaluationError(
            "the run has no validation images to compare on", hint="name a folder of images: --check FOLDER"
        )
    return (read_example(manifest, row) for row in _spread(rows, _CHECK_IMAGES))
