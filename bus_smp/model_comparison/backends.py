"""One network on each installed backend, as work that can be timed."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from bus_smp.errors import ConfigError
from bus_smp.inference.formats.onnx import load_onnx, write_int8, write_onnx
from bus_smp.inference.formats.openvino import load_openvino
from bus_smp.inference.predictor import Network
from bus_smp.model_comparison.timing import Work
from bus_smp.system.engine import Engine

# Library and precision. torch runs on every device, the others only on CPUs.
BACKENDS = (
    "torch-fp32", "torch-bf16", "torch-fp16", "onnx-fp32", "onnx-int8", "openvino-fp32", "openvino-bf16", "openvino-int8",
)  # fmt: skip
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Unavailable(Exception):
    """A backend cannot run here; the message is a short reason."""


class Exports:
    """The files of one network, each written when a backend first needs it.

    Args:
        module: in evaluation mode, on the CPU, from float32 (N, 3, H, W) to logits.
        size: side of the images.
        folder: where to write.
        calibration: returns float32 arrays (N, 3, size, size) for quantising.
        fixed: export for this size only.
    """

    def __init__(
        self,
        module: nn.Module,
        size: int,
        folder: Path,
        calibration: Callable[[], Sequence[np.ndarray]],
        fixed: bool = False,
    ) -> None:
        self.module, self.size, self.folder, self.fixed = module, size, Path(folder), fixed
        self.calibration = calibration

    def onnx(self) -> Path:
        """The ONNX file."""
        path = self.folder / "network.onnx"
        if not path.exists():
            write_onnx(self.module, path, self.size, fixed=self.fixed)
        return path

    def int8(self) -> Path:
        """The quantised ONNX file."""
        path = self.folder / "network-int8.onnx"
        if not path.exists():
            write_int8(self.onnx(), path, self.calibration())
        return path


def open_backend(
    backend: str, torch_network: nn.Module, exports: Exports, engine: Engine, batch: int
) -> Work:
    """Return work that runs one batch of random images through the network.

    Args:
        backend: one of ``BACKENDS``.
        torch_network: in evaluation mode on the engine's device, for the torch backends.

    Raises:
        Unavailable: if the backend is not installed, or does not run on this device.
    """
    library, precision = backend.split("-")
    images = np.random.default_rng(0).standard_normal((batch, 3, exports.size, exports.size), np.float32)
    if library == "torch":
        return _torch(torch_network, images, engine, DTYPES[precision])
    if engine.device.type != "cpu":
        raise Unavailable("runs only on CPUs")
    try:
        network = _load(library, precision, exports)
    except ConfigError as error:
        raise Unavailable(error.what) from None
    return lambda: network(images)


def _torch(network: nn.Module, images: np.ndarray, engine: Engine, dtype: torch.dtype) -> Work:
    if dtype not in (torch.float32, engine.dtype):
        raise Unavailable("this device does not gain from it")
    engine = Engine(engine.device, dtype)
    inputs = torch.from_numpy(images).to(engine.device, memory_format=torch.channels_last)

    @torch.inference_mode()
    def run() -> None:
        with engine.autocast():
            network(inputs)

    return run


def _load(library: str, precision: str, exports: Exports) -> Network:
    path = exports.int8() if precision == "int8" else exports.onnx()
    return load_onnx(path) if library == "onnx" else load_openvino(path, precision)


@torch.no_grad()
def count_gflop(network: nn.Module, size: int, device: torch.device) -> float:
    """GFLOP (2 x multiplications / 10^9) of one image, in convolutions and matrix products only."""
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 3, size, size, device=device))
    return counter.get_total_flops() / 1e9


def choose_backends(text: str | None, engine: Engine) -> tuple[str, ...]:
    """``torch,openvino-int8`` as names of ``BACKENDS``; a library without a precision means all of its but int8.

    None means every library. For torch these are fp32 and the fastest precision of the engine's device.

    Raises:
        ConfigError: if a name is unknown or none runs on this device.
    """
    plain = [
        name
        for name in BACKENDS
        if not name.endswith("int8")
        and (not name.startswith("torch") or name in ("torch-fp32", f"torch-{engine.precision}"))
        and (name.startswith("torch") or engine.device.type == "cpu")
    ]
    if text is None:
        return tuple(plain)
    libraries = ("torch", "onnx", "openvino")
    chosen: list[str] = []
    for word in (word.strip() for word in text.split(",") if word.strip()):
        if word not in (*BACKENDS, *libraries):
            raise ConfigError(
                f"--backends {text}: there is no {word}",
                hint=f"there are {', '.join((*libraries, *BACKENDS))}",
            )
        chosen += [word] if word in BACKENDS else [name for name in plain if name.startswith(f"{word}-")]
    if not chosen:
        raise ConfigError(f"--backends {text}: names no backend that runs on {engine.device.type}")
    return tuple(dict.fromkeys(chosen))
