"""Exponential moving average of weights (Polyak & Juditsky 1992; Tarvainen & Valpola, Mean Teacher, 2017)."""

import copy

import torch

from bus_smp.model.hybrid import HybridResNet50


class WeightAverage:
    """A second network whose weights follow the first one's slowly. It predicts and is never trained.

    ``average += (1 - d) * (weights - average)`` with ``d = min(decay, (1 + n) / (10 + n))`` after ``n`` updates, so
    that the random initial weights soon lose their influence. Batch norm's running statistics are averaged too.

    Args:
        model: the network whose weights are averaged.
        decay: in 0..1; 0.999 averages over about the last 1,000 updates.
    """

    def __init__(self, model: HybridResNet50, decay: float) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, model: HybridResNet50) -> None:
        """Move towards the weights of ``model``; to be called after each of their updates."""
        average, now = self.model.state_dict(), model.state_dict()
        real = [name for name, value in now.items() if value.is_floating_point()]
        weight = 1 - min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_([average[name] for name in real], [now[name] for name in real], weight)
        # batch norm's counters
        for name in now.keys() - set(real):
            average[name].copy_(now[name])
        self.updates += 1

    def state(self) -> dict:
        """Tensors and a number, which ``restore`` reads."""
        return {"model": self.model.state_dict(), "updates": self.updates}

    def restore(self, state: dict) -> None:
        """Continue from what ``state`` returned."""
        self.model.load_state_dict(state["model"])
        self.updates = state["updates"]
