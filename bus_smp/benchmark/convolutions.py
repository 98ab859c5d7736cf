"""The convolutions of a training step, recorded as they are called and then run alone.

They are recorded below autograd and autocast, so what is repeated has the true shapes, types and memory
formats, and asks for the same gradients; nothing else of the network is in it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bus_smp.benchmark.timing import Work

_FORWARD = torch.ops.aten.convolution.default
_BACKWARD = torch.ops.aten.convolution_backward.default


@dataclass(frozen=True)
class Layout:
    """Shape, strides, type and place of a tensor."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    def fill(self) -> Tensor:
        """A tensor like that, of random numbers: of zeros, some kernels and processors make less work."""
        made = torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=self.device)
        return made.normal_(std=0.1)


@dataclass(frozen=True)
class Call:
    """One convolution, forward or backward, with ``Layout`` in place of its tensors."""

    forward: bool
    arguments: tuple[Any, ...]

    def tensors(self) -> list[Layout]:
        """Forward: input, weight and perhaps bias. Backward: the output's gradient, input, weight."""
        return [argument for argument in self.arguments if isinstance(argument, Layout)]


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in (_FORWARD, _BACKWARD):
            self.calls.append(
                Call(function is _FORWARD, tuple(_layout(a) if isinstance(a, Tensor) else a for a in args))
            )
        return function(*args, **(kwargs or {}))


def _layout(tensor: Tensor) -> Layout:
    return Layout(tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device)


def record_convolutions(work: Work) -> list[Call]:
    """Call ``work`` once; return its convolutions in the order of their calls.

    Only eager code can be watched: of a compiled network, record the one before it was compiled.
    """
    with _Recorder() as recorder:
        work()
    return recorder.calls


def repeat_convolutions(calls: Sequence[Call]) -> Work:
    """Work that runs the recorded convolutions, and nothing else. Each has tensors of its own, as in the step."""
    ready = [
        (
            _FORWARD if call.forward else _BACKWARD,
            [argument.fill() if isinstance(argument, Layout) else argument for argument in call.arguments],
        )
        for call in calls
    ]

    @torch.no_grad()
    def run() -> None:
        for function, arguments in ready:
            function(*arguments)

    return run
