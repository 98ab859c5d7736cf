"""Networks as files that run without this package: ONNX, OpenVINO, torch.export and a plain state dict.

ONNX, OpenVINO and torch.export files take any batch, height and width, and describe themselves: JSON under the name
``bus_smp`` (ONNX metadata_props, OpenVINO rt_info, torch.export's extra files). The OpenVINO file is made from the
ONNX one, and read by its C++ core alone: its Python converter would report its use to its makers.
``exported.py`` reads them.
"""

import contextlib
import io
import json
import logging
import shutil
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bus_smp.errors import ConfigError
from bus_smp.model.hybrid import HybridResNet50, normalise
from bus_smp.system.files import replacing

KEY = "bus_smp"
INPUT, OUTPUT = "images", "logits"
_EXTRA_FILE = f"{KEY}.json"


class FromPixels(nn.Module):
    """A network with its normalisation in front: nobody who runs the file can forget or confuse it.

    Args:
        network: takes float (N, 3, H, W), normalised.
        mean, std: of each channel, in 0..1.
    """

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        self.mean, self.std = tuple(mean), tuple(std)

    def forward(self, images: Tensor) -> Tensor:
        """Return the network's logits, float32 (N, classes, H, W), of uint8 (N, H, W, 3), RGB."""
        return self.network(normalise(images, self.mean, self.std))


@contextlib.contextmanager
def needed(purpose: str) -> Iterator[None]:
    """Turn a missing package of the ``export`` extra into an error that says how to install it.

    Raises:
        ConfigError: in place of the ImportError.
    """
    try:
        yield
    except ImportError as error:
        raise ConfigError(
            f"{purpose} needs a package that is not installed ({error.name or error})",
            hint='install it with: pip install "bus_smp[export]"',
        ) from None


def write_onnx(
    module: nn.Module, path: Path, size: int, about: Mapping[str, Any] | None = None, *, fixed: bool = False
) -> None:
    """Write any network as ONNX, input ``images`` and output ``logits``, all or nothing; below 2 GB.

    Args:
        module: in evaluation mode, on the CPU; takes float32 (N, 3, H, W), or uint8 (N, H, W, 3) if it is
            a ``FromPixels``.
        size: height and width of the example it is traced with.
        about: JSON values; travel with the file.
        fixed: height and width are ``size`` for good: for networks that cannot take any.

    Raises:
        ConfigError: if onnx or onnxscript is not installed.
    """
    with needed("writing ONNX"):
        import onnx  # noqa: F401  torch's exporter imports both, and says less if one is absent
        import onnxscript  # noqa: F401

    program = _traced(module, size, fixed)
    with quietly():
        model = torch.onnx.export(
            program, dynamo=True, input_names=[INPUT], output_names=[OUTPUT], verbose=False
        ).model_proto
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
        entry.key, entry.value = KEY, _as_json(about)


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
    head = [node.name for node in graph.node if OUTPUT in node.output]
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


def write_openvino(source: Path, path: Path, about: Mapping[str, Any] | None = None) -> None:
    """Write an ONNX file of this module as OpenVINO's ``path`` (.xml) with the weights beside it (.bin), in float32.

    Raises:
        ConfigError: if openvino is not installed.
    """
    with needed("OpenVINO"):
        import openvino

    path = Path(path)
    model = openvino.Core().read_model(str(source))
    if about is not None:
        model.set_rt_info(_as_json(about), [KEY])
    # OpenVINO writes two files with names of its own; the weights are moved first, so that no .xml stands without them
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / path.name
        openvino.save_model(model, str(made), compress_to_fp16=False)
        for part in (path.with_suffix(".bin"), path):
            with replacing(part) as temporary:
                shutil.copyfile(made.with_suffix(part.suffix), temporary)


def write_torch_export(
    module: nn.Module, path: Path, size: int, about: Mapping[str, Any] | None = None
) -> None:
    """Write any network as a torch.export program (.pt2), all or nothing; arguments as of ``write_onnx``.

    Height and width are free from 33 px on: below, PyTorch's tracer would have to follow another way.
    """
    buffer = io.BytesIO()
    with quietly():
        program = _traced(module, size, fixed=False)
        torch.export.save(program, buffer, extra_files={_EXTRA_FILE: _as_json(about or {})})
    with replacing(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def write_pth(model: HybridResNet50, path: Path, about: Mapping[str, Any]) -> None:
    """Write a hybrid model without its auxiliary heads as a plain dict, all or nothing.

    ``torch.load(path, weights_only=True)`` gives ``{"about": ..., "state_dict": ...}``: ``state_dict`` fits
    ``HybridResNet50(**about["model"])``, which takes normalised images and returns one tensor.

    Args:
        about: JSON values with ``model``, the constructor's arguments.
    """
    about = json.loads(_as_json(about))
    about["model"] |= {"deep_supervision": False, "encoder_weights": None}
    heads = tuple(f"heads.{number}." for number in range(1, len(model.heads)))
    state = {
        name: value.detach().cpu().contiguous()
        for name, value in model.state_dict().items()
        if not name.startswith(heads or "\0")
    }
    buffer = io.BytesIO()
    torch.save({"about": about, "state_dict": state}, buffer)
    with replacing(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def _traced(module: nn.Module, size: int, fixed: bool) -> torch.export.ExportedProgram:
    """The network as a graph in which batch, height and width are free (``fixed``: batch alone)."""
    pixels = isinstance(module, FromPixels)
    # two images: torch takes a one for a constant
    shape = (2, size, size, 3) if pixels else (2, 3, size, size)
    example = torch.zeros(shape, dtype=torch.uint8 if pixels else torch.float32)
    axes = (0,) if fixed else ((0, 1, 2) if pixels else (0, 2, 3))
    free = dict.fromkeys(axes, torch.export.Dim.DYNAMIC)
    with quietly(), torch.no_grad():
        program = torch.export.export(module, (example,), dynamic_shapes=(free,))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # files and lines of this machine
    return program


def _as_json(about: Mapping[str, Any]) -> str:
    return json.dumps(about, sort_keys=True, allow_nan=False)


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Exporters warn of what concerns their authors; errors are still raised."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
