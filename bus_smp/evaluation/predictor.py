"""From images to class probabilities at each image's own size."""

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bus_smp.data.images import resize_image, restore_probabilities
from bus_smp.engine import Engine
from bus_smp.errors import EvaluationError
from bus_smp.model.checkpoint import load_model
from bus_smp.model.hybrid import HybridResNet50, normalise


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
    ) -> None:
        self.model = model
        self.engine = engine
        self.size = size
        self.mean = mean
        self.std = std
        self.batch_size = batch_size

    @torch.inference_mode()
    def probabilities(self, images: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Yield float32 (3, H, W), summing to 1 over the classes, for each uint8 RGB (H, W, 3), in order.

        Raises:
            EvaluationError: if the network returns NaN or infinity.
        """
        remaining = iter(images)
        while batch := list(islice(remaining, self.batch_size)):
            self.model.eval()
            stacked = torch.from_numpy(np.stack([resize_image(image, self.size) for image in batch]))
            inputs = normalise(stacked.to(self.engine.device), self.mean, self.std)
            with self.engine.autocast():
                logits = self.model.predict_logits(inputs)
            small = torch.softmax(logits.float(), dim=1).cpu().numpy()
            if not np.isfinite(small).all():
                raise EvaluationError(
                    "the network returned NaN or infinite probabilities",
                    hint="the weights are damaged or training diverged; try another run or --precision fp32",
                )
            for image, square in zip(batch, small, strict=True):
                yield restore_probabilities(square, image.shape[:2])


def load_predictor(path: Path, engine: Engine, batch_size: int = 8) -> tuple[Predictor, dict[str, Any]]:
    """Read ``best.safetensors``; return the predictor and the checkpoint's header.

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
    )
    return predictor, header
