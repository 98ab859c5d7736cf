"""Networks read back from exported files: each as a function from its input's array to logits."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bus_smp.errors import BusSmpError, CheckpointError, ConfigError
from bus_smp.model.export import needed, quietly
from bus_smp.model.hybrid import HybridResNet50, compare_weights
from bus_smp.model.tensors import load_tensors

Network = Callable[[np.ndarray], np.ndarray]


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
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    with _readable(path):
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        (given,) = session.get_inputs()
    return lambda images: session.run(None, {given.name: images})[0]


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
        compiled = core.compile_model(core.read_model(str(path)), "CPU", settings)
    request = compiled.create_infer_request()
    # copied: the request writes its next answer to the same memory
    return lambda images: request.infer({0: images})[compiled.output(0)].copy()


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


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """One clear error in place of the many that readers raise on a missing or damaged file."""
    hint = "write it again: bus-smp export"
    if not Path(path).is_file():
        raise CheckpointError(f"{path}: no such file", hint=hint)
    try:
        yield
    except ImportError as error:
        raise ConfigError(
            f"{path}: reading it needs {error.name}", hint='pip install "bus_smp[export]"'
        ) from None
    except BusSmpError:
        raise
    except Exception as error:  # a type for each library
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise CheckpointError(
            f"{path}: cannot be read; it is damaged or something else ({reason})", hint=hint
        ) from None
