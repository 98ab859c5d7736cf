"""OpenVINO files: made from an ONNX file, and read by OpenVINO's C++ core only.

OpenVINO's Python converter would report its use to its makers.
"""

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bus_smp.errors import ConfigError
from bus_smp.inference.formats.contract import KEY, as_json, checked, needed, readable, refuse_elsewhere
from bus_smp.inference.predictor import Network, Outputs
from bus_smp.system.files import replacing


def write_openvino(source: Path, path: Path, about: Mapping[str, Any] | None = None) -> None:
    """Write an ONNX file of this module as OpenVINO's ``path`` (.xml) with the weights next to it (.bin), in float32.

    Raises:
        ConfigError: if openvino is not installed.
    """
    with needed("OpenVINO"):
        import openvino

    path = Path(path)
    model = openvino.Core().read_model(str(source))
    if about is not None:
        model.set_rt_info(as_json(about), [KEY])
    # OpenVINO chooses the name of the .bin. The weights are moved first, so that there is never an .xml without them.
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / path.name
        openvino.save_model(model, str(made), compress_to_fp16=False)
        for part in (path.with_suffix(".bin"), path):
            with replacing(part) as temporary:
                shutil.copyfile(made.with_suffix(part.suffix), temporary)


def load_openvino(path: Path, precision: str = "fp32") -> Network:
    """The network in an OpenVINO (.xml) or ONNX file, on OpenVINO's CPU: from its input's array to logits, float32.

    Args:
        precision: ``fp32``, ``bf16``, or ``int8`` for a quantised file (what is not quantised is then in fp32).

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
    with readable(path):
        refuse_elsewhere(path)
        compiled = core.compile_model(core.read_model(str(path)), "CPU", settings)
    request = compiled.create_infer_request()

    def run(images: np.ndarray) -> Outputs:
        found = request.infer({0: images})
        # copied: the request writes its next answer to the same memory
        return Outputs(**{output.get_any_name(): found[output].copy() for output in compiled.outputs})

    return checked(path, run)
