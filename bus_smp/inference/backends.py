"""Which library computes a prediction: PyTorch from the weights, or ONNX Runtime and OpenVINO from a run's export."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bus_smp.classes import CLASSES
from bus_smp.errors import ConfigError
from bus_smp.inference.ensemble import EnsemblePredictor, MirrorPredictor
from bus_smp.inference.export import describe_parity, export_run, find_export
from bus_smp.inference.formats.onnx import load_onnx
from bus_smp.inference.formats.openvino import load_openvino
from bus_smp.inference.predictor import (
    NetworkPredictor,
    Predictor,
    describe_computing,
    load_predictor,
    predictor_of,
)
from bus_smp.measures.decision import DecisionRules, join_rules
from bus_smp.model.checkpoint import read_header
from bus_smp.runs.ensemble import Ensemble, check_views, join_sha256
from bus_smp.runs.find import find_ensemble
from bus_smp.runs.layout import BEST
from bus_smp.system.engine import make_engine
from bus_smp.system.files import file_sha256

PRECISIONS = {
    "torch": ("fp32", "bf16", "fp16"),
    "onnx": ("fp32", "int8"),
    "openvino": ("fp32", "bf16", "int8"),
}


def load(
    run: str | Path | Sequence[str | Path] | None = None,
    *,
    views: str | Sequence[str] = (),
    out: str | Path = "outputs",
    backend: str = "torch",
    device: str = "auto",
    precision: str = "auto",
    operating_point: bool = False,
) -> Predictor:
    """Return the network of a trained run: ``load("outputs/bus-uclm").predict("scan.png")``.

    Args:
        run: name of the run in ``out``, its folder, or a ``.safetensors`` file of its weights; of an experiment: its runs
            as one ensemble; a list of these: all as one; None: the newest run.
        views: "mirror": each network sees each image mirrored, too, and the mean of both counts. The time doubles.
        backend: "torch"; "onnx" or "openvino" run the run's export, which is made first if there is none.
        device: "auto", "cpu", "cuda" or "cuda:1".
        precision: "auto" (that of the training), "fp32", "bf16", "fp16" or "int8", if the backend has it.
        operating_point: True: masks leave out the lesions that the operating point of the run drops; False: they show the
            most probable class of each pixel.

    Raises:
        CheckpointError: if there is no such run, or its weights are damaged.
        ConfigError: if the backend cannot do what is asked, its package is missing, or the networks cannot be combined.
    """
    if backend not in PRECISIONS:
        raise ConfigError(f"backend={backend} is unknown", hint=f"use one of: {', '.join(PRECISIONS)}")
    names = [] if run is None else [run] if isinstance(run, str | Path) else list(run)
    views = check_views([views] if isinstance(views, str) else views)
    ensemble = find_ensemble([str(name) for name in names], Path(out), views)
    return open_ensemble(
        ensemble, backend=backend, device=device, precision=precision, operating_point=operating_point
    )[0]


def check_backend(backend: str, device: str, precision: str) -> None:
    """Refuse what a backend cannot do, before anything is loaded.

    Raises:
        ConfigError: if it does not compute in this precision, or not on this device.
    """
    known = PRECISIONS[backend]
    if precision not in ("auto", *known):
        able = ", ".join(name for name, precisions in PRECISIONS.items() if precision in precisions)
        raise ConfigError(
            f"--backend {backend} does not compute in {precision}, only in {', '.join(known)}",
            hint=f"{precision} is there with --backend {able}",
        )
    if backend != "torch" and device not in ("auto", "cpu"):
        raise ConfigError(
            f"--backend {backend} computes on the CPU, not on {device}",
            hint="use --backend torch for a GPU",
        )


def choose_precision(backend: str, precision: str, trained_in: str) -> str:
    """Return what ``auto`` means for an exported file: the training's, if backend and CPU compute in it, else fp32."""
    if precision != "auto":
        return precision
    natural = make_engine("cpu", "auto", trained_in).precision
    return natural if natural in PRECISIONS[backend] else "fp32"


def open_predictor(
    run: Path,
    *,
    backend: str = "torch",
    device: str = "auto",
    precision: str = "auto",
    batch_size: int = 8,
    say: Callable[[str], None] = lambda text: None,
) -> tuple[NetworkPredictor, dict[str, Any]]:
    """Return the predictor of a run folder's best weights, or of a file of weights, and their header with the file's ``sha256``.

    For another backend than torch the run's export is taken. Where there is no export of exactly these weights, it is
    made first.

    Args:
        say: receives one line per event of an export.

    Raises:
        ConfigError: if the backend cannot do what is asked, or its package is missing.
        CheckpointError: if weights or export are missing or damaged.
        EvaluationError, DataError: as ``export_run``.
    """
    check_backend(backend, device, precision)
    best = Path(run) if Path(run).is_file() else Path(run) / BEST
    run = best.parent
    header = read_header(best)
    if backend == "torch":
        return load_predictor(best, make_engine(device, precision, header["precision"]), batch_size)
    if best.name != BEST:
        raise ConfigError(
            f"--backend {backend} takes the export of a run folder, and {best.name} is only a file of weights",
            hint="use --backend torch",
        )
    precision = choose_precision(backend, precision, header["precision"])
    header |= {"sha256": file_sha256(best)}
    int8 = precision == "int8"
    path = find_export(run, backend, int8, header["sha256"])
    if path is None:
        say(f"{Path(run).name} has no {backend}{' int8' if int8 else ''} export of these weights: exporting")
        path, record = export_run(run, backend, int8=int8, say=say)
        say(describe_parity(record["parity"]))
    network = load_onnx(path) if backend == "onnx" else load_openvino(path, precision)
    computed_in = {"backend": backend, "device": "cpu", "precision": precision}
    return predictor_of(network, computed_in, header, batch_size), header


def open_ensemble(
    ensemble: Ensemble,
    *,
    backend: str = "torch",
    device: str = "auto",
    precision: str = "auto",
    operating_point: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> tuple[Predictor, dict[str, Any]]:
    """Return the predictor of runs and views as one, and what their headers say together (``join_headers``).

    Arguments and errors are those of ``open_predictor``.

    Args:
        operating_point: whether masks leave out the lesions that the operating point of the run drops.

    Raises:
        ConfigError: also if the networks predict other numbers of classes, or there is no operating point.
    """
    if operating_point:
        _check_operating_point(ensemble)
    predictors: list[Predictor] = []
    headers: list[dict[str, Any]] = []
    for run in ensemble.runs:
        predictor, header = open_predictor(
            run.best_path, backend=backend, device=device, precision=precision, say=say
        )
        classes = [one["model"].get("num_classes", len(CLASSES)) for one in (header, *headers[:1])]
        if len(set(classes)) > 1:
            raise ConfigError(
                f"{run.name} has {classes[0]} classes and {ensemble.runs[0].name} {classes[1]}: their probabilities have no mean",
                hint="combine runs of the same classes",
            )
        headers.append(header)
        if operating_point:
            predictor = predictor.at_operating_point()
        # the only view that there is
        mirrored = "mirror" in ensemble.views
        predictors.append(
            EnsemblePredictor([predictor, MirrorPredictor(predictor)], "views") if mirrored else predictor
        )
    together = EnsemblePredictor(predictors) if len(predictors) > 1 else predictors[0]
    return together, join_headers(headers)


def join_headers(headers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The headers of several runs as one, for what scores and records them; a single one as it is.

    ``sha256`` is that of ``join_sha256``; ``datasets`` are all; ``epoch`` and ``score`` are None; ``calibration`` holds
    the means of the thresholds, which decide as ``Prediction.label`` does, or the reason why there are none;
    ``members`` are the headers.
    """
    first = headers[0]
    if len(headers) == 1:
        return first
    return {
        **{key: value for key, value in first.items() if all(one.get(key) == value for one in headers)},
        "epoch": None,
        "score": None,
        "sha256": join_sha256([one["sha256"] for one in headers]),
        "datasets": sorted({name for one in headers for name in one["datasets"]}),
        "calibration": _join_calibrations([one.get("calibration") or {} for one in headers]),
        "members": list(headers),
    }


def _join_calibrations(calibrations: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    threshold = join_rules([DecisionRules.of(one) for one in calibrations]).threshold
    if threshold is None:
        reasons = [one.get("reason") for one in calibrations if one.get("threshold") is None]
        return {"threshold": None, "reason": next(filter(None, reasons), "not every run is calibrated")}
    levels = [one.get("thresholds") or {} for one in calibrations]
    return {
        "threshold": threshold,
        "thresholds": {
            key: float(np.mean([one[key] for one in levels]))
            for key in levels[0]
            if all(one.get(key) is not None for one in levels)
        },
        "fitted_on": "val, each run on its own; the means",
        "reason": "",
    }


def describe_ensemble(ensemble: Ensemble, predictor: Predictor, header: Mapping[str, Any]) -> str:
    """What predicts, in words: the run, or the runs and views, and in what they are computed."""
    how = describe_computing(predictor.computed_in)
    first = ensemble.runs[0]
    source = first.folder if first.best_path.name == BEST else first.best_path
    seen = f", views: plain, {', '.join(ensemble.views)}" if ensemble.views else ""
    passes = len(ensemble.runs) * (1 + len(ensemble.views))
    cost = f"; {passes} passes for each image" if passes > 1 else ""
    if len(ensemble.runs) == 1:
        return f"Run: {source}{seen}, weights of epoch {header['epoch']}, {how}{cost}"
    return f"Ensemble of {', '.join(run.name for run in ensemble.runs)}{seen}, {how}{cost}"


def _check_operating_point(ensemble: Ensemble) -> None:
    if len(ensemble.runs) > 1:
        raise ConfigError(
            "several runs as one have no operating point: it is fitted for each network on its own",
            hint="name one run, or leave out --operating-point",
        )
    run = ensemble.runs[0]
    point = (run.header().get("calibration") or {}).get("operating_point")
    if point is None:
        raise ConfigError(
            f"{run.best_path}: was calibrated by an older version, or not at all: it has no operating point",
            hint=f"bus-smp calibrate --run {run.folder} fits it on the validation split of the run",
        )
    if point.get("least_probability") is None:
        raise ConfigError(
            f"{run.best_path}: has no operating point: {point.get('reason')}",
            hint="leave out --operating-point",
        )
