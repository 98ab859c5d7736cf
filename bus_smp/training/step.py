"""One step of training: from uint8 images and masks to changed weights."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from bus_smp.classes import CLASSES
from bus_smp.config import Settings
from bus_smp.model.checkpoint import load_model
from bus_smp.model.consistency import consistency_loss
from bus_smp.model.hybrid import IMAGENET_MEAN, IMAGENET_STD, HybridResNet50, Output, normalise
from bus_smp.model.image_head import image_loss
from bus_smp.model.losses import DeepSupervisionLoss
from bus_smp.model.perturb import change_shallow_features, exchange_style, perturb_norm
from bus_smp.model.shape_head import shape_loss
from bus_smp.system import ranks
from bus_smp.system.engine import Engine
from bus_smp.training.average import WeightAverage
from bus_smp.training.graph import RecordedStep

_SEGMENTATION = ("main", "aux_2", "aux_4", "aux_8")
_HEADS = ("image_head", "shape_head")
# Settings of the model that change its training only.
_CHANGES = {"perturb_norm": perturb_norm, "exchange_style": exchange_style}


class ImageTargets(NamedTuple):
    """What the heads of the whole image learn from a batch.

    Attributes:
        labels: int64 (N,), places in ``LABELS``.
        shapes: float32 (N, 4), as in ``Batch``.
        weights: float32 (N,), of each image in these losses.
    """

    labels: Tensor
    shapes: Tensor
    weights: Tensor


class TrainingStep:
    """Network, loss and optimiser of a run, and the step that ties them together.

    Args:
        settings: of the run.
        engine: device and precision.
        encoder_weights: as for ``HybridResNet50``. The settings' own are ignored, because a continued run takes all
            weights from its state. Random weights depend on ``torch.manual_seed``.
        start: a checkpoint of the same network, whose weights are the start.
        model: another network to train in place of the settings', with the same methods.

    Attributes:
        model: the network that is trained.
        average: moving average of its weights, or None.
        loss_names: of the losses that a step returns after the total.
        rule: for ``consistency_loss``, of ``learn_rule``; until it is set, no shape says anything.
        new_heads: heads of the whole image that ``start`` does not have, and which start from random weights.
        rates: highest learning rate of each group of the optimiser's parameters, train.lr last.
        encoder_origin: in words, where the encoder's first weights come from; None if not known or from ``start``.
    """

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        encoder_weights: str | None = None,
        start: Path | None = None,
        model: Any = None,
    ) -> None:
        plan, self.heads = settings.train, settings.heads
        self.engine = engine
        self.model_arguments = {
            "num_classes": len(CLASSES),
            **settings.model.model_dump(exclude={"init", *_CHANGES}),
            "image_head": self.heads.image > 0,
            "shape_head": self.heads.shape > 0,
            "detached_heads": self.heads.detached,
        }
        if model is None:
            model = HybridResNet50(**{**self.model_arguments, "encoder_weights": encoder_weights})
        self.encoder_origin: str | None = model.encoder_origin if start is None else None
        self.new_heads = [] if start is None else _start_from(model, start)
        if plan.sync_batchnorm and ranks.count() > 1:
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        self.model = model.to(engine.device).to(memory_format=torch.channels_last)
        # not earlier: the conversion above replaces modules
        for name, change in _CHANGES.items():
            if probability := getattr(settings.model, name):
                change_shallow_features(model.encoder, change, probability)
        self.grey = settings.data.grey
        padded = settings.data.geometry == "letterbox"
        self.loss = DeepSupervisionLoss(len(CLASSES), **settings.loss.model_dump(), padded=padded)
        supervised = len(self.model.heads)
        whole = [name for name in ("image", "shape", "consistency") if getattr(self.heads, name)]
        self.rule = torch.zeros(4, device=engine.device)
        self.loss_names = (*_SEGMENTATION[:supervised], *whole)
        groups: list[Any] = list(self.model.parameters())
        self.rates: tuple[float, ...] = (plan.lr,)
        if plan.encoder_lr is not None:
            parts: tuple[list[nn.Parameter], list[nn.Parameter]] = ([], [])
            for name, parameter in self.model.named_parameters():
                parts[not name.startswith("encoder.")].append(parameter)
            groups = [{"params": part} for part in parts]
            self.rates = (plan.encoder_lr, plan.lr)
        self.optimizer = torch.optim.AdamW(groups, lr=plan.lr, weight_decay=plan.weight_decay, fused=True)
        self.clip = plan.clip
        self.scaler = engine.make_scaler()
        self.average = WeightAverage(self.model, plan.ema) if plan.ema else None
        self._network: Any = _Computed(self.model)
        if ranks.count() > 1:
            self._network = _distribute(self._network, engine)
        self._compute = torch.compile(self._losses) if plan.compile else self._losses
        self._update: Any = self._add_and_update
        # on a CPU there is nothing to record: a run may continue there
        self._recorded = settings.runtime.graph and engine.device.type == "cuda"
        if self._recorded:
            self._update = RecordedStep(self._add_and_update)
        self._prepare_optimizer()

    @property
    def best_model(self) -> HybridResNet50:
        """The network that is validated and saved: the average, where there is one."""
        return self.model if self.average is None else self.average.model

    def __call__(
        self,
        images: Tensor,
        masks: Tensor,
        group: int = 1,
        last: bool = True,
        whole: ImageTargets | None = None,
    ) -> Tensor:
        """Add the gradient of one batch; after the last batch of its group, update the weights.

        Args:
            images: uint8 (N, S, S, 3), RGB.
            masks: uint8 (N, S, S), class indices; ``IGNORED`` in the padding of a letterbox.
            group: number of batches whose mean gradient makes one update.
            last: whether this batch is the group's last.
            whole: what the heads of the whole image learn; needed where there is one.

        Returns:
            The total loss and those of ``loss_names``, detached, float32 (1 + heads,).
        """
        device = self.engine.device
        given = [part.to(device, non_blocking=True) for part in (images, masks, *(whole or ()))]
        if not last:
            # processes exchange gradients once for each update of the weights
            with self._network.no_sync() if ranks.count() > 1 else contextlib.nullcontext():
                return self._add_gradient(group, *given)
        losses = self._update(*given) if group == 1 else self._add_and_update(*given, group=group)
        if self.average is not None:
            self.average.update(self.model)
        return losses

    def set_rates(self, rates: Sequence[float]) -> None:
        """Set the learning rates of the following steps, in the order of ``rates``."""
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                # on a GPU as a recorded step has it, so that both give the same bits
                group["lr"] = float(np.float32(rate)) if self.engine.device.type == "cuda" else rate

    def _prepare_optimizer(self) -> None:
        """Let a recorded step read its rates from the device; options of a state from another device are not taken over."""
        # else PyTorch warns of the steps before the recording
        self.optimizer._warned_capturable_if_run_uncaptured = True
        for group in self.optimizer.param_groups:
            rate = float(group["lr"])
            group["lr"] = torch.tensor(rate, device=self.engine.device) if self._recorded else rate
            group["capturable"] = self._recorded

    def _add_and_update(self, *given: Tensor, group: int = 1) -> Tensor:
        losses = self._add_gradient(group, *given)
        if self.clip:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return losses

    def _add_gradient(self, group: int, images: Tensor, masks: Tensor, *whole: Tensor) -> Tensor:
        """Add the gradient of a batch on the device; return its losses as ``__call__`` does."""
        inputs = normalise(images, IMAGENET_MEAN, IMAGENET_STD, self.grey)
        loss, heads = self._compute(inputs, masks, ImageTargets(*whole) if whole else None)
        self.scaler.scale(loss / group).backward()
        return torch.stack([loss.detach(), *heads])

    def _losses(
        self, inputs: Tensor, targets: Tensor, whole: ImageTargets | None
    ) -> tuple[Tensor, list[Tensor]]:
        with self.engine.autocast():
            output: Output = self._network(inputs)
        total, losses = self.loss((output.logits, *output.aux), targets)
        if output.image is not None:
            assert whole is not None
            losses.append(image_loss(output.image, whole.labels, whole.weights))
            total = total + self.heads.image * losses[-1]
        if output.shape is not None:
            assert whole is not None
            losses.append(shape_loss(output.shape, whole.shapes, whole.weights))
            total = total + self.heads.shape * losses[-1]
        if self.heads.consistency and output.image is not None:
            assert whole is not None
            losses.append(consistency_loss(output.logits, output.image, whole.labels, self.rule))
            total = total + self.heads.consistency * losses[-1]
        return total, [loss.detach() for loss in losses]

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
            "encoder_origin": self.encoder_origin,
        }

    def restore(self, state: dict) -> None:
        """Load what ``state`` returned for a step with the same settings."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self._prepare_optimizer()
        # empty where the run was not in fp16 so far
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            self.average.restore(state["average"])
        # states of earlier versions do not know it
        self.encoder_origin = state.get("encoder_origin")


class _Computed(nn.Module):
    """A hybrid model as a module that returns its whole ``Output``: several processes exchange the gradients of a module's call."""

    def __init__(self, model: HybridResNet50) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Output:
        return self.model.compute(images)


def _start_from(model: HybridResNet50, start: Path) -> list[str]:
    """Load another run's weights; return the names of the heads of the whole image that it does not have."""
    weights = load_model(start)[0].state_dict()
    own = model.state_dict()
    theirs = {name: value for name, value in weights.items() if name in own or not name.startswith(_HEADS)}
    missing = {name: own[name] for name in own.keys() - theirs.keys() if name.startswith(_HEADS)}
    model.load_state_dict(theirs | missing)
    return [head for head in _HEADS if any(name.startswith(head) for name in missing)]


def _distribute(model: nn.Module, engine: Engine) -> nn.Module:
    place = [engine.device] if engine.device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(model, device_ids=place)
