"""From images to class probabilities: at each image's own size, and on the network's grid."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bus_smp.data.images import resize_image, restore_probabilities
from bus_smp.engine import Engine
from bus_smp.errors import EvaluationError
from bus_smp.files import file_sha256
from bus_smp.model.checkpoint import load_model
from bus_smp.model.hybrid import HybridResNet50, normalise


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


class Predictor:
    """A network with the geometry and statistics it was trained with.

    Training's validation and every later evaluation predict through this one class, so a number
    means the same in both. Auxiliary heads are not computed.
    """

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

    def at_temperature(self, temperature: float) -> "Predictor":
        """The same network with another temperature; weights are shared."""
        return Predictor(
            self.model, self.engine, size=self.size, mean=self.mean, std=self.std,
            batch_size=self.batch_size, temperature=temperature,
        )  # fmt: skip

    def predictions(self, images: Iterable[np.ndarray]) -> Iterator[Prediction]:
        """Yield a ``Prediction`` for each uint8 RGB (H, W, 3), in order.

        Raises:
            EvaluationError: if the network returns NaN or infinity.
        """
        remaining = iter(images)
        while batch := list(islice(remaining, self.batch_size)):
            logits = self.grid_logits(batch)
            raw = torch.softmax(logits, dim=1).numpy()
            scaled = raw if self.temperature == 1 else torch.softmax(logits / self.temperature, dim=1).numpy()
            for image, grid, raw_grid in zip(batch, scaled, raw, strict=True):
                yield Prediction(restore_probabilities(raw_grid, image.shape[:2]), grid, raw_grid)

    @torch.inference_mode()
    def grid_logits(self, images: Sequence[np.ndarray]) -> torch.Tensor:
        """The network's logits for one batch of images, float32 (N, 3, S, S) on the CPU; errors as ``predictions``."""
        self.model.eval()
        stacked = torch.from_numpy(np.stack([resize_image(image, self.size) for image in images]))
        inputs = normalise(stacked.to(self.engine.device), self.mean, self.std)
        with self.engine.autocast():
            logits = self.model.predict_logits(inputs)
        logits = logits.float().cpu().contiguous()
        if not torch.isfinite(
            logits.sum()
        ):  # NaN and infinity survive a sum, ten times faster than asking each
            raise EvaluationError(
                "the network returned NaN or infinite values",
                hint="the weights are damaged or training diverged; try another run or --precision fp32",
            )
        return logits


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
        temperature=(header.get("calibration") or {}).get("temperature") or 1.0,
    )
    return predictor, header | {"sha256": file_sha256(path)}
