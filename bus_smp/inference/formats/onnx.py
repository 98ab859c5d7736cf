"""ONNX files: written by PyTorch's exporter, quantised by ONNX Runtime, and read by it."""

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from bus_smp.inference.formats.contract import (
    INPUT,
    KEY,
    OUTPUT,
    FromPixels,
    as_json,
    checked,
    needed,
    quietly,
    readable,
    refuse_elsewhere,
)
from bus_smp.inference.predictor import Network, Outputs
from bus_smp.system.files import replacing


def write_onnx(
    module: nn.Module,
    path: Path,
    size: int,
    about: Mapping[str, Any] | None = None,
    *,
    fixed: bool = False,
    names: Sequence[str] = (OUTPUT,),
) -> None:
    """Write any network as ONNX, input ``images`` and output ``logits``, all or nothing; below 2 GB.

    Args:
        module: in evaluation mode, on the CPU; takes float32 (N, 3, H, W), or uint8 (N, H, W, 3) if it is
            a ``FromPixels``.
        size: height and width of the example it is traced with.
        about: JSON values; travel with the file.
        names: of what it returns.
        fixed: export for height and width ``size`` only, for networks that cannot take other sizes.

    Raises:
        ConfigError: if onnx or onnxscript is not installed.
    """
    with needed("writing ONNX"):
        import onnx  # noqa: F401  torch's exporter imports both, and is less clear if one is absent
        import onnxscript  # noqa: F401

    program = _traced(module, size, fixed)
    with quietly():
        exported = torch.onnx.export(
            program, dynamo=True, input_names=[INPUT], output_names=list(names), verbose=False
        )
    assert exported is not None
    model = exported.model_proto
    # what the exporter notes on each node: files and lines of this machine
    for part in (
        model,
        model.graph,
        *model.graph.node,
        *model.graph.initializer,
        *model.graph.input,
        *model.graph.output,
    ):
        del part.metadata_props[:]
    del model.graph.value_info[:]
    for part in (model, model.graph, *model.graph.node):
        part.doc_string = ""
    _name_axes(model.graph, module)
    _describe_onnx(model, about)
    with replacing(path) as temporary:
        temporary.write_bytes(model.SerializeToString())


def _name_axes(graph: Any, module: nn.Module) -> None:
    """Call the free dimensions batch, height and width, where the exporter says s77."""
    axes = (0, 1, 2) if isinstance(module, FromPixels) else (0, 2, 3)
    words = dict(zip(axes, ("batch", "height", "width"), strict=True))
    shape = graph.input[0].type.tensor_type.shape.dim
    names = {shape[axis].dim_param: word for axis, word in words.items() if shape[axis].dim_param}
    for value in (*graph.input, *graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in names:
                dim.dim_param = names[dim.dim_param]


def _describe_onnx(model: Any, about: Mapping[str, Any] | None) -> None:
    if about is not None:
        entry = model.metadata_props.add()
        entry.key, entry.value = KEY, as_json(about)


def write_int8(
    source: Path, path: Path, batches: Iterable[np.ndarray], about: Mapping[str, Any] | None = None
) -> None:
    """Quantise an ONNX file to 8-bit integers (QDQ), all or nothing.

    Weights per channel and symmetric, activations by the least and greatest value on the calibration images (Nagel et
    al., 2021, https://arxiv.org/abs/2106.08295). The last convolution, which makes the logits, stays in float32.

    Args:
        source: from ``write_onnx``.
        batches: inputs of the network; what is seen here decides the ranges, so no image that is tested on may be.

    Raises:
        ConfigError: if onnx or onnxruntime is not installed.
    """
    with needed("int8"):
        import onnx
        from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter(batches)

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self.batches, None)
            return None if batch is None else {INPUT: batch}

    graph = onnx.load(source, load_external_data=False).graph
    outputs = {output.name for output in graph.output}
    # heads: the last convolution, and the linear layers of those for the whole image
    head = [node.name for node in graph.node if outputs & set(node.output) or node.op_type == "Gemm"]
    with tempfile.TemporaryDirectory() as folder, quietly():
        quantised = Path(folder) / "int8.onnx"
        quantize_static(
            source,
            quantised,
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=head,
        )
        model = onnx.load(quantised)
    del model.metadata_props[:]
    _describe_onnx(model, about)
    with replacing(path) as temporary:
        temporary.write_bytes(model.SerializeToString())


def _traced(module: nn.Module, size: int, fixed: bool) -> torch.export.ExportedProgram:
    """The network as a graph in which batch, height and width are free (``fixed``: only batch)."""
    pixels = isinstance(module, FromPixels)
    # two images: torch takes a one for a constant
    shape = (2, size, size, 3) if pixels else (2, 3, size, size)
    example = torch.zeros(shape, dtype=torch.uint8 if pixels else torch.float32)
    axes = (0,) if fixed else ((0, 1, 2) if pixels else (0, 2, 3))
    free = dict.fromkeys(axes, torch.export.Dim.DYNAMIC)
    with quietly(), torch.no_grad():
        program = torch.export.export(module, (example,), dynamic_shapes=(free,))
    for node in program.graph.nodes:
        # it names files and lines of this machine
        node.meta.pop("stack_trace", None)
    return program


def load_onnx(path: Path) -> Network:
    """The network in an ONNX file, on ONNX Runtime's CPU: from its input's array to logits, float32.

    Raises:
        ConfigError: if onnxruntime is not installed.
        CheckpointError: if the file is missing or damaged.
    """
    with needed("ONNX Runtime"):
        import onnxruntime

    options = onnxruntime.SessionOptions()
    # no log on stderr: errors are raised too
    options.log_severity_level = 4
    with readable(path):
        refuse_elsewhere(path)
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        (given,) = session.get_inputs()
        names = [output.name for output in session.get_outputs()]
    return checked(
        path,
        lambda images: Outputs(**dict(zip(names, session.run(None, {given.name: images}), strict=True))),
    )
