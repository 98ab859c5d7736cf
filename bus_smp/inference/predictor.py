"""From images to class probabilities: at each image's own size, and on the network's grid."""

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bus_smp.data.images import resize_image, restore_probabilities
from bus_smp.errors import EvaluationError
from bus_smp.inference.folding import MainHead, fold_batch_norms
from bus_smp.inference.fusing import fuse_convolutions
from bus_smp.model.checkpoint import load_model
from bus_smp.model.hybrid import HybridResNet50, normalise
from bus_smp.system.engine import Engine
from bus_smp.system.files import file_sha256


@dataclass(frozen=True)
class Prediction:
    """What a network says about one image.

    Attributes:
        native: float32 (3, H, W) at the image's own size, before temperature: masks come from it, so that
            calibration never moves an outline.
        grid: float32 (3, S, S) on the network's grid, after temperature: scores and calibration come from it.
        raw_grid: the same before temperature.

    All are probabilities that sum to 1 over the classes (background, benign, malignant).
    """

    native: np.ndarray
    grid: np.ndarray
    raw_grid: np.ndarray

    @classmethod
    def of(cls, grid: np.ndarray, raw_grid: np.ndarray, shape: tuple[int, int]) -> "Prediction":
        """The prediction of an image of ``shape`` (H, W) from what ``grid_probabilities`` says of it."""
        return cls(restore_probabilities(raw_grid, shape), grid, raw_grid)


class Predictor:
    """A network with the geometry and statistics it was trained with.

    Training's validation and every later evaluation predict through this one class, so a number
    means the same in both. Auxiliary heads are not computed, batch norms are folded into the convolutions
    (``fold_batch_norms``), and on a CPU what follows these is computed with them (``fuse_convolutions``): anew
    whenever the weights have changed, as between two validations of a training.
    """

    backend = "torch"

    def __init__(
        self,
        model: HybridResNet50,
        engine: Engine,
        *,
        size: int,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        batch_size: int = 8,
        temperature: float = 1.0,
    ) -> None:
        self.model = model
        self.engine = engine
        self.size = size
        self.mean = mean
        self.std = std
        self.batch_size = batch_size
        self.temperature = temperature
        self._folded: nn.Module | None = None
        self._folded_from: list[int] = []

    @property
    def computed_in(self) -> dict[str, str]:
        """``backend``, ``device`` and ``precision``: what a number may depend on besides the weights."""
        return {
            "backend": self.backend,
            "device": self.engine.device.type,
            "precision": self.engine.precision,
        }

    def at_temperature(self, temperature: float) -> "Predictor":
        """The same network with another temperature; weights are shared."""
        other = copy.copy(self)
        other.temperature = temperature
        return other

    def predictions(self, images: Iterable[np.ndarray]) -> Iterator[Prediction]:
        """Yield a ``Prediction`` for each uint8 RGB (H, W, 3), in order.

        Raises:
            EvaluationError: if the network returns NaN or infinity.
        """
        remaining = iter(images)
        while batch := list(islice(remaining, self.batch_size)):
            grids, raw_grids = self.grid_probabilities(batch)
            for image, grid, raw_grid in zip(batch, grids, raw_grids, strict=True):
                yield Prediction.of(grid, raw_grid, image.shape[:2])

    def grid_probabilities(self, images: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Probabilities of one batch on the network's grid, float32 (N, 3, S, S): after temperature, and before it.

        Images and errors as ``predictions``.
        """
        logits = self.grid_logits(images)
        raw = torch.softmax(logits, dim=1).numpy()
        return (
            raw if self.temperature == 1 else torch.softmax(logits / self.temperature, dim=1).numpy()
        ), raw

    def grid_logits(self, images: Sequence[np.ndarray]) -> Tensor:
        """The network's logits for one batch of images, float32 (N, 3, S, S) on the CPU; errors as ``predictions``."""
        logits = self._logits(np.stack([resize_image(image, self.size) for image in images]))
        if not torch.isfinite(
            logits.sum()
        ):  # NaN and infinity survive a sum, ten times faster than asking each
            raise EvaluationError(
                "the network returned NaN or infinite values",
                hint="the weights are damaged or training diverged; try another run or --precision fp32",
            )
        return logits

    @torch.inference_mode()
    def _logits(self, pixels: np.ndarray) -> Tensor:
        """Logits float32 (N, 3, S, S) on the CPU of uint8 (N, S, S, 3)."""
        network = self._prediction_network()
        inputs = normalise(torch.from_numpy(pixels).to(self.engine.device), self.mean, self.std)
        with self.engine.autocast():
            logits = network(inputs)
        return logits.float().cpu().contiguous()

    def _prediction_network(self) -> nn.Module:
        # Every change that torch knows of counts a tensor's version up, except the fused optimisers'; but a training
        # step's forward pass counts up batch norm's own counters. A fold costs a tenth of one batch.
        versions = [tensor._version for tensor in self.model.state_dict().values()]
        if self._folded is None or self.model.training or versions != self._folded_from:
            self.model.eval()
            folded = fold_batch_norms(MainHead(self.model))
            self._folded = fuse_convolutions(folded, self.engine.device, self.engine.dtype)
            self._folded_from = versions
        return self._folded


def load_predictor(path: Path, engine: Engine, batch_size: int = 8) -> tuple[Predictor, dict[str, Any]]:
    """Read ``best.safetensors``; return the predictor and the checkpoint's header with the file's ``sha256``.

    Raises:
        CheckpointError: if the file is missing, damaged, or of another model.
    """
    model, header = load_model(path, device=str(engine.device))
    model = model.to(memory_format=torch.channels_last)
    predictor = Predictor(
        model,
        engine,
        size=header["size"],
        mean=tuple(header["mean"]),
        std=tuple(header["std"]),
        batch_size=batch_size,
        temperature=temperature_of(header),
    )
    return predictor, header | {"sha256": file_sha256(path)}


def temperature_of(header: dict[str, Any]) -> float:
    """The temperature a checkpoint was calibrated to; 1 where it was not."""
    return (header.get("calibration") or {}).get("temperature") or 1.0


def describe_computing(computed_in: Mapping[str, str]) -> str:
    """``Predictor.computed_in`` in words; a quantised network is called one wherever its results are."""
    words = f"{computed_in.get('backend', 'torch')} {computed_in['precision']} on {computed_in['device']}"
    return f"{words}, a quantised network" if computed_in["precision"] == "int8" else words
