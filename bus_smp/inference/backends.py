"""Which library computes a prediction: PyTorch from the weights, or ONNX Runtime and OpenVINO from a run's export."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from bus_smp.errors import ConfigError
from bus_smp.inference.export import describe_parity, export_run, find_export
from bus_smp.inference.formats.onnx import load_onnx
from bus_smp.inference.formats.openvino import load_openvino
from bus_smp.inference.predictor import Predictor, load_predictor, predictor_of
from bus_smp.model.checkpoint import read_header
from bus_smp.runs.find import find_run
from bus_smp.runs.layout import BEST
from bus_smp.system.engine import make_engine
from bus_smp.system.files import file_sha256

PRECISIONS = {
    "torch": ("fp32", "bf16", "fp16"),
    "onnx": ("fp32", "int8"),
    "openvino": ("fp32", "bf16", "int8"),
}


def load(
    run: str | Path | None = None,
    *,
    out: str | Path = "outputs",
    backend: str = "torch",
    device: str = "auto",
    precision: str = "auto",
) -> Predictor:
    """Return the network of a trained run: ``load("outputs/bus-uclm").predict("scan.png")``.

    Args:
        run: name of the run in ``out``, its folder, or a ``.safetensors`` file of its weights; None: the newest run.
        backend: "torch"; "onnx" or "openvino" run the run's export, which is made first if there is none.
        device: "auto", "cpu", "cuda" or "cuda:1".
        precision: "auto" (that of the training), "fp32", "bf16", "fp16" or "int8", if the backend has it.

    Raises:
        CheckpointError: if there is no such run, or its weights are damaged.
        ConfigError: if the backend cannot do what is asked, or its package is missing.
    """
    if backend not in PRECISIONS:
        raise ConfigError(f"backend={backend} is unknown", hint=f"use one of: {', '.join(PRECISIONS)}")
    weights = find_run(None if run is None else str(run), Path(out)).best_path
    return open_predictor(weights, backend=backend, device=device, precision=precision)[0]


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
) -> tuple[Predictor, dict[str, Any]]:
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
