"""Networks read back from exported files: each as a function from its input's array to logits."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bus_smp.classes import CLASSES
from bus_smp.errors import BusSmpError, CheckpointError, ConfigError
from bus_smp.inference.write_formats import needed, quietly
from bus_smp.model.hybrid import HybridResNet50, compare_weights
from bus_smp.model.tensor_files import load_tensors
from bus_smp.system.files import open_regular

Network = Callable[[np.ndarray], np.ndarray]

_AGAIN = "write it again: bus-smp export"


def load_onnx(path: Path, threads: int | None = None) -> Network:
    """The network in an ONNX file, on ONNX Runtime's CPU: from its input's array to logits, float32.

    Args:
        threads: None lets ONNX Runtime take every core.

    Raises:
        ConfigError: if onnxruntime is not installed.
        CheckpointError: if the file is missing or damaged.
    """
    with needed("ONNX Runtime"):
        import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors are raised too
    if threads is not None:
        options.intra_op_num_threads = threads
    with _readable(path):
        _refuse_elsewhere(path)
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        (given,) = session.get_inputs()
    return _checked(path, lambda images: session.run(None, {given.name: images})[0])


def load_openvino(path: Path, precision: str = "fp32", threads: int | None = None) -> Network:
    """The network in an OpenVINO (.xml) or ONNX file, on OpenVINO's CPU: from its input's array to logits, float32.

    Args:
        precision: ``fp32``, ``bf16``, or ``int8`` for a quantised file (what is not quantised is then in fp32).
        threads: None lets OpenVINO take every core.

    Raises:
        ConfigError: if openvino is not installed, or the CPU has no bf16.
        CheckpointError: if the file is missing or damaged.
    """
    with needed("OpenVINO"):
        import openvino

    core = openvino.Core()
    if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise ConfigError("this CPU has no bf16", hint="use --precision fp32 or int8")
    settings = {
        "INFERENCE_PRECISION_HINT": {"bf16": "bf16"}.get(precision, "f32"),
        "PERFORMANCE_HINT": "LATENCY",
    }
    if threads is not None:
        settings["INFERENCE_NUM_THREADS"] = threads
    with _readable(path):
        _refuse_elsewhere(path)
        compiled = core.compile_model(core.read_model(str(path)), "CPU", settings)
    request = compiled.create_infer_request()
    # copied: the request writes its next answer to the same memory
    return _checked(path, lambda images: request.infer({0: images})[compiled.output(0)].copy())


def _refuse_elsewhere(path: Path) -> None:
    """Refuse a file that makes its library read others: our exports name none, and older ONNX Runtimes read any.

    In ONNX (Protobuf) weights elsewhere stand under the name "location", which its length goes before: 8, or 0 at the
    end of an 8 written long. No text has such a byte. OpenVINO goes by content, and would read ONNX in an .xml.
    """
    with open_regular(path) as file:
        if Path(path).suffix == ".xml":
            if file.read(5) != b"<?xml":
                raise CheckpointError(f"{path}: is no OpenVINO file", hint=_AGAIN)
            return
        data = file.read()
    place = -1
    while (place := data.find(b"location", place + 1)) >= 0:
        if data[place - 1] in (0, 8):
            raise CheckpointError(f"{path}: takes its weights from another file", hint=_AGAIN)


def load_torch_export(path: Path) -> Network:
    """The network in a torch.export file, on the CPU: from its input's array to logits, float32.

    Raises:
        CheckpointError: if the file is missing or damaged.
    """
    with _readable(path), quietly():
        module = torch.export.load(path).module()

    @torch.inference_mode()
    def network(images: np.ndarray) -> np.ndarray:
        return module(torch.from_numpy(images)).numpy()

    return network


def load_pth(path: Path) -> tuple[HybridResNet50, dict[str, Any]]:
    """The model in a file of ``write_pth``, in evaluation mode, and its ``about``. Nothing in the file is executed.

    Raises:
        CheckpointError: if the file is missing, damaged or something else.
    """
    with _readable(path):
        content = load_tensors(path)
        about, state = content["about"], content["state_dict"]
        model = HybridResNet50(**about["model"])
    if problems := compare_weights(model.state_dict(), state):
        raise CheckpointError(f"{path}: the weights do not fit the model it describes: {problems}")
    model.load_state_dict(state)
    return model.eval(), about


def _checked(path: Path, network: Network) -> Network:
    """The network with one clear error where it cannot be run, or returns something else than logits of each pixel."""

    def run(images: np.ndarray) -> np.ndarray:
        try:
            logits = network(images)
        except Exception as error:  # a type for each library
            raise CheckpointError(f"{path}: cannot be run ({_reason(error)})", hint=_AGAIN) from None
        size = images.shape[1:3] if images.dtype == np.uint8 else images.shape[2:]
        expected = (len(images), len(CLASSES), *size)
        if logits.dtype != np.float32 or logits.shape != expected:
            raise CheckpointError(
                f"{path}: returns {logits.dtype} {logits.shape}, not float32 {expected}", hint=_AGAIN
            )
        return logits

    return run


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """One clear error in place of the many that readers raise on a missing or damaged file."""
    if not Path(path).is_file():
        raise CheckpointError(f"{path}: no such file", hint=_AGAIN)
    try:
        yield
    except ImportError as error:
        raise ConfigError(
            f"{path}: reading it needs {error.name}", hint='pip install "bus_smp[export]"'
        ) from None
    except BusSmpError:
        raise
    except Exception as error:  # a type for each library
        raise CheckpointError(
            f"{path}: cannot be read; it is damaged or something else ({_reason(error)})", hint=_AGAIN
        ) from None
