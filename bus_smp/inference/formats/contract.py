"""What every exported file promises: pixels in, logits out, a description inside, and one clear error otherwise.

ONNX and OpenVINO files take any batch, height and width, and describe themselves: JSON under the name ``bus_smp``
(ONNX metadata_props, OpenVINO rt_info).
"""

import contextlib
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from bus_smp.classes import CLASSES, LABELS
from bus_smp.errors import BusSmpError, CheckpointError, ConfigError
from bus_smp.inference.predictor import Network, Outputs
from bus_smp.measures.shape import SHAPES
from bus_smp.model.hybrid import normalise
from bus_smp.system.files import open_regular

KEY = "bus_smp"
INPUT, OUTPUT = "images", "logits"

_AGAIN = "write it again: bus-smp export"


class FromPixels(nn.Module):
    """A network with the normalisation of its input, so that users of the exported file cannot forget it or get it wrong.

    Args:
        network: takes float (N, 3, H, W), normalised.
        about: header of the checkpoint: ``mean`` and ``std`` of each channel, in 0..1, and ``grey``.
    """

    def __init__(self, network: nn.Module, about: Mapping[str, Any]) -> None:
        super().__init__()
        self.network = network
        self.mean, self.std, self.grey = tuple(about["mean"]), tuple(about["std"]), bool(about.get("grey"))

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Return what the network returns, logits float32 (N, classes, H, W) first, of uint8 (N, H, W, 3), RGB."""
        return self.network(normalise(images, self.mean, self.std, self.grey))


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


def as_json(about: Mapping[str, Any]) -> str:
    """Return a description as the text that goes into a file."""
    return json.dumps(about, sort_keys=True, allow_nan=False)


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Hide the warnings of exporters, which concern their authors; errors are still raised."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
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
            f"{path}: cannot be read; it is damaged or something else ({reason(error)})", hint=_AGAIN
        ) from None


def refuse_elsewhere(path: Path) -> None:
    """Refuse a file that refers to other files: our exports never do, and older ONNX Runtimes would read any file.

    ONNX (Protobuf) gives the place of external weights after the key "location". The byte before the key is its length,
    8, or 0 if the length is encoded in several bytes; text never has such a byte. OpenVINO detects the format by
    content, and would read ONNX from an .xml file.
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
            raise CheckpointError(f"{path}: reads its weights from another file", hint=_AGAIN)


def checked(path: Path, network: Network) -> Network:
    """Return the network with one clear error where it cannot be run, or returns something else than logits of each pixel."""

    def run(images: np.ndarray) -> Outputs:
        try:
            outputs = network(images)
        except Exception as error:  # a type for each library
            raise CheckpointError(f"{path}: cannot be run ({reason(error)})", hint=_AGAIN) from None
        size = images.shape[1:3] if images.dtype == np.uint8 else images.shape[2:]
        # no exported file has the features
        shapes = {"logits": (len(CLASSES), *size), "image": (len(LABELS),), "shape": (len(SHAPES),)}
        for name, shape in shapes.items():
            found, expected = getattr(outputs, name), (len(images), *shape)
            if found is not None and (found.dtype != np.float32 or found.shape != expected):
                raise CheckpointError(
                    f"{path}: returns {found.dtype} {found.shape}, not float32 {expected}", hint=_AGAIN
                )
        return outputs

    return run


def reason(error: Exception) -> str:
    """Return an error's text on one line, shortened."""
    return " ".join(str(error).split())[:160] or type(error).__name__
