"""One step of training: from uint8 images and masks to changed weights."""

import contextlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bus_smp.classes import CLASSES
from bus_smp.config import Settings
from bus_smp.model.checkpoint import load_model
from bus_smp.model.hybrid import IMAGENET_MEAN, IMAGENET_STD, HybridResNet50, normalise
from bus_smp.model.losses import DeepSupervisionLoss
from bus_smp.system import ranks
from bus_smp.system.engine import Engine
from bus_smp.training.average import WeightAverage


class TrainingStep:
    """Network, loss and optimiser of a run, and the step that ties them together.

    Args:
        settings: of the run.
        engine: device and precision.
        encoder_weights: as for ``HybridResNet50``. The settings' own are ignored, because a continued run takes all
            weights from its state. Random weights depend on ``torch.manual_seed``.
        start: a checkpoint of the same network, whose weights are the start.

    Attributes:
        model: the network that is trained.
        average: moving average of its weights, or None.
    """

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        encoder_weights: str | None = None,
        start: Path | None = None,
    ) -> None:
        plan = settings.train
        self.engine = engine
        self.model_arguments = {"num_classes": len(CLASSES), **settings.model.model_dump(exclude={"init"})}
        model = HybridResNet50(**{**self.model_arguments, "encoder_weights": encoder_weights})
        if start is not None:
            model.load_state_dict(load_model(start)[0].state_dict())
        if plan.sync_batchnorm and ranks.count() > 1:
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        self.model = model.to(engine.device).to(memory_format=torch.channels_last)
        self.loss = DeepSupervisionLoss(len(CLASSES), **settings.loss.model_dump())
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=plan.lr, weight_decay=plan.weight_decay, fused=True
        )
        self.scaler = engine.make_scaler()
        self.average = WeightAverage(self.model, plan.ema) if plan.ema else None
        self._network: Any = _distribute(self.model, engine) if ranks.count() > 1 else self.model
        self._compute = torch.compile(self._losses) if plan.compile else self._losses

    @property
    def best_model(self) -> HybridResNet50:
        """The network that is validated and saved: the average, where there is one."""
        return self.model if self.average is None else self.average.model

    def __call__(self, images: Tensor, masks: Tensor, group: int = 1, last: bool = True) -> Tensor:
        """Add the gradient of one batch; after the last batch of its group, update the weights.

        Args:
            images: uint8 (N, S, S, 3), RGB.
            masks: uint8 (N, S, S), class indices.
            group: number of batches whose mean gradient makes one update.
            last: whether this batch is the group's last.

        Returns:
            The total loss and each head's, detached, float32 (1 + heads,).
        """
        device = self.engine.device
        inputs = normalise(images.to(device, non_blocking=True), IMAGENET_MEAN, IMAGENET_STD)
        targets = masks.to(device, non_blocking=True)
        # processes exchange gradients once for each update of the weights
        waiting = ranks.count() > 1 and not last
        with self._network.no_sync() if waiting else contextlib.nullcontext():
            loss, heads = self._compute(inputs, targets)
            self.scaler.scale(loss / group).backward()
        if last:
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.optimizer.zero_grad(set_to_none=True)
            if self.average is not None:
                self.average.update(self.model)
        return torch.stack([loss.detach(), *heads])

    def _losses(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, list[Tensor]]:
        with self.engine.autocast():
            outputs = self._network(inputs)
        return self.loss(outputs, targets)

    def share_buffers(self) -> None:
        """Give every process the first one's running statistics of batch norm, because each has seen other images."""
        if ranks.count() > 1:
            for model in (self.model, *([self.average.model] if self.average else [])):
                for buffer in model.buffers():
                    torch.distributed.broadcast(buffer, 0)

    def state(self) -> dict:
        """Everything that a run needs to continue after this step; ``restore`` reads it."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "average": None if self.average is None else self.average.state(),
        }

    def restore(self, state: dict) -> None:
        """Load what ``state`` returned for a step with the same settings."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        # empty where the run was not in fp16 so far
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            self.average.restore(state["average"])


def _distribute(model: nn.Module, engine: Engine) -> nn.Module:
    place = [engine.device] if engine.device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(model, device_ids=place)
