"""Steps of one shape as a CUDA graph: recorded once, then started as a whole, without Python between its kernels."""

from collections.abc import Callable

import torch
from torch import Tensor

from bus_smp.errors import TrainingError

# PyTorch asks for a few calls on a side stream before a recording: they make the optimiser's state and choose algorithms.
_BEFORE = 3

Inputs = tuple[Tensor, ...]


class RecordedStep:
    """A function of tensors on the GPU that is recorded in its fourth call and replayed from then on.

    Every call computes exactly once, those before the recording too. A call whose inputs have other shapes is not replayed.

    Args:
        work: takes tensors on the device and returns one tensor. It must not wait for the device, and what it
            reads besides its inputs must stay where it is in memory.
    """

    def __init__(self, work: Callable[..., Tensor]) -> None:
        self._work = work
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: Inputs = ()
        self._result = torch.empty(0)

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Return what ``work`` returns.

        Raises:
            TrainingError: if the work cannot be recorded.
        """
        if self._calls < _BEFORE:
            self._calls += 1
            return self._on_side_stream(inputs)
        if self._graph is None:
            self._record(inputs)
        if [given.shape for given in inputs] != [own.shape for own in self._inputs]:
            return self._work(*inputs)
        for given, own in zip(inputs, self._inputs, strict=True):
            own.copy_(given)
        assert self._graph is not None
        self._graph.replay()
        # the next replay writes into the same memory
        return self._result.clone()

    def _on_side_stream(self, inputs: Inputs) -> Tensor:
        now, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(now)
        with torch.cuda.stream(side):
            result = self._work(*inputs)
        now.wait_stream(side)
        return result

    def _record(self, inputs: Inputs) -> None:
        self._inputs = tuple(given.clone() for given in inputs)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self._result = self._work(*self._inputs)
        except RuntimeError as error:
            raise TrainingError(
                f"the training step cannot be recorded as a CUDA graph ({str(error).splitlines()[0]})",
                hint="the same command continues without it: --set runtime.graph=false",
            ) from None
        self._graph = graph
