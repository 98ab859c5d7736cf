"""Which library computes a prediction: PyTorch from the weights, or ONNX Runtime and OpenVINO from a run's export."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bus_smp.errors import ConfigError
from bus_smp.inference.export import describe_parity, export_run, find_export
from bus_smp.inference.predictor import Predictor, load_predictor, temperature_of
from bus_smp.inference.read_formats import load_onnx, load_openvino
from bus_smp.model.checkpoint import read_header
from bus_smp.runs.run import Run
from bus_smp.system.engine import make_engine
from bus_smp.system.files import file_sha256

PRECISIONS = {
    "torch": ("fp32", "bf16", "fp16"),
    "onnx": ("fp32", "int8"),
    "openvino": ("fp32", "bf16", "int8"),
}


class ExportedPredictor(Predictor):
    """A ``Predictor`` whose logits come from an exported file; computed on the CPU.

    Args:
        network: from uint8 (N, S, S, 3) to logits float32 (N, 3, S, S).
        backend: a key of ``PRECISIONS``, and ``precision`` one of its values.
    """

    def __init__(
        self,
        network: Callable[[np.ndarray], np.ndarray],
        backend: str,
        precision: str,
        *,
        size: int,
        batch_size: int = 8,
        temperature: float = 1.0,
    ) -> None:
        self.network = network
        self.backend, self.precision = backend, precision
        self.size, self.batch_size, self.temperature = size, batch_size, temperature

    @property
    def computed_in(self) -> dict[str, str]:
        return {"backend": self.backend, "device": "cpu", "precision": self.precision}

    def _logits(self, pixels: np.ndarray) -> Tensor:
        return torch.from_numpy(self.network(pixels))


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
    """What ``auto`` means for an exported file: that of the training, if backend and CPU compute in it, else fp32."""
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
    root: Path | Mapping[str, Path] | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> tuple[Predictor, dict[str, Any]]:
    """The predictor of a run folder's best weights, and their header with the file's ``sha256``.

    For another backend than torch the run's export is taken; where there is none of these very weights, it is
    exported first.

    Args:
        root: where the run's images are, if they have moved; needed for an export alone.
        say: told of an export.

    Raises:
        ConfigError: if the backend cannot do what is asked, or its package is missing.
        CheckpointError: if weights or export are missing or damaged.
        EvaluationError, DataError: as ``export_run``.
    """
    check_backend(backend, device, precision)
    best = Run(run).best_path
    header = read_header(best)
    if backend == "torch":
        return load_predictor(best, make_engine(device, precision, header["precision"]), batch_size)
    precision = choose_precision(backend, precision, header["precision"])
    header |= {"sha256": file_sha256(best)}
    int8 = precision == "int8"
    path = find_export(run, backend, int8, header["sha256"])
    if path is None:
        say(f"{Path(run).name} has no {backend}{' int8' if int8 else ''} export of these weights: exporting")
        path, record = export_run(run, backend, int8=int8, root=root, say=say)
        say(describe_parity(record["parity"]))
    network = load_onnx(path) if backend == "onnx" else load_openvino(path, precision)
    predictor = ExportedPredictor(
        network,
        backend,
        precision,
        size=header["size"],
        batch_size=batch_size,
        temperature=temperature_of(header),
    )
    return predictor, header
