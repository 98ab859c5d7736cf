"""A folded network's convolutions on a CPU, each computed together with what follows it.

oneDNN, which computes PyTorch's convolutions on a CPU, can add a tensor to the sums or apply a ReLU before they are
written to memory, and reads weights faster in an order of its own. PyTorch has operators for both, of which
``torch.compile`` makes use; compiling takes a minute, calling them takes nothing. They are private to PyTorch: each
type is tried once against the public operators, and not used where they are missing or say something else.
"""

import copy
import functools
import operator

import torch
from torch import Tensor, fx, nn

ADDITIONS = (operator.add, operator.iadd, torch.add)
RELUS = (torch.relu, nn.functional.relu)
# oneDNN's ReLU makes zero of NaN, and a network with damaged weights would answer with numbers that look right. Of a
# negative sum this slope leaves less than can be seen, and NaN it leaves as it is.
SLOPE = 1e-30


def fuse_convolutions(network: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Return ``network`` with each convolution, the addition and the ReLU after it as one operator.

    ``network`` is not changed; it is returned as it is if it is no graph, or the device no CPU that can do this.
    What is returned runs without gradients alone, and computes its convolutions in ``dtype``, as under autocast.

    Args:
        network: what ``fold_batch_norms`` returns, in float32.
        device: where it runs.
        dtype: float32 or bfloat16.
    """
    if device.type != "cpu" or not isinstance(network, fx.GraphModule) or not _is_possible(dtype):
        return network
    fused = fx.GraphModule(network, copy.deepcopy(network.graph))  # the layers are shared
    layers = dict(fused.named_modules())
    place = {node: index for index, node in enumerate(fused.graph.nodes)}
    for node in list(fused.graph.nodes):
        if not _is_convolution(node, layers):
            continue
        parts, inputs = [node], [*node.args]
        addend = _addend(node, layers, place)
        if addend is not None:
            parts.append(_only_user(node))
            inputs.append(addend)
        follower = _only_user(parts[-1])
        relu = follower is not None and _is_relu(follower, layers)
        if relu:
            parts.append(follower)
        name = f"fused_{place[node]}"
        layers[name] = FusedConvolution(layers[node.target], dtype, relu)
        fused.add_submodule(name, layers[name])
        with fused.graph.inserting_after(parts[-1]):
            call = fused.graph.call_module(name, tuple(inputs))
        place[call] = place[parts[-1]]
        parts[-1].replace_all_uses_with(call)
        for part in reversed(parts):
            fused.graph.erase_node(part)
    fused.delete_all_unused_submodules()
    fused.recompile()
    return fused


class FusedConvolution(nn.Module):
    """``relu(convolution(images) + addend)``, with or without the ReLU and the addend, which is overwritten.

    Args:
        convolution: padded with zeros; not changed.
        dtype: float32 or bfloat16, to compute in.
        relu: whether negative sums become zero.
    """

    def __init__(self, convolution: nn.Conv2d, dtype: torch.dtype, relu: bool) -> None:
        super().__init__()
        self.dtype, self.relu = dtype, relu
        self._weight = convolution.weight.detach().to(dtype)
        self._bias = None if convolution.bias is None else convolution.bias.detach().to(dtype)
        shape = (convolution.padding, convolution.stride, convolution.dilation)
        self._geometry = (*map(list, shape), convolution.groups)
        self._ordered, self._ordered_for, self._answer = None, None, None

    def forward(self, images: Tensor, addend: Tensor | None = None) -> Tensor:
        """Return (N, C', h', w') in ``dtype``.

        Args:
            images: float (N, C, h, w).
            addend: as what is returned.
        """
        images = images.to(self.dtype)
        if images.shape != self._ordered_for:
            self._order_weights(images)
        weights = (self._ordered, self._bias, *self._geometry)
        convolve = torch.ops.mkldnn._convolution_pointwise
        if addend is None:
            after = ("leaky_relu", [SLOPE]) if self.relu else ("none", [])
            return convolve(images, *weights, *after, "")
        if (addend.shape, addend.dtype) == (self._answer, self.dtype):
            add = torch.ops.mkldnn._convolution_pointwise_
            total = add(addend, images, *weights, "add", None, None, [], None)
        else:  # cannot take the sum
            total = addend + convolve(images, *weights, "none", [], "")
        return total.relu_() if self.relu else total

    def _order_weights(self, images: Tensor) -> None:
        # the fastest order depends on the images' shape
        order = torch.ops.mkldnn._reorder_convolution_weight
        self._ordered = order(self._weight, *self._geometry, list(images.shape))
        self._ordered_for = images.shape
        padding, stride, dilation, groups = self._geometry
        without_values = images.to("meta"), self._weight.to("meta")
        self._answer = torch.conv2d(*without_values, None, stride, padding, dilation, groups).shape


def _addend(node: fx.Node, layers: dict[str, nn.Module], place: dict[fx.Node, int]) -> fx.Node | None:
    """What is added to a convolution's answer, if nothing reads it afterwards."""
    addition = _only_user(node)
    if addition is None or addition.target not in ADDITIONS or addition.kwargs or len(addition.args) != 2:
        return None
    other = addition.args[addition.args[0] is node]
    if other is node or not isinstance(other, fx.Node) or not _computes_convolution(other, layers):
        return None
    readers = [user for user in other.users if user is not addition]
    # A convolution has read all when it answers, and has its final place when its turn is over; any other reader
    # might be a view, itself read later.
    over = all(_computes_convolution(user, layers) and place[user] < place[node] for user in readers)
    return other if over else None


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _computes_convolution(node: fx.Node, layers: dict[str, nn.Module]) -> bool:
    return node.op == "call_module" and isinstance(layers.get(node.target), (nn.Conv2d, FusedConvolution))


def _is_convolution(node: fx.Node, layers: dict[str, nn.Module]) -> bool:
    """Whether it is one that ``FusedConvolution`` can be."""
    layer = layers.get(node.target) if node.op == "call_module" else None
    return (
        isinstance(layer, nn.Conv2d)
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
        and len(node.args) == 1
        and not node.kwargs
    )


def _is_relu(node: fx.Node, layers: dict[str, nn.Module]) -> bool:
    if node.op == "call_module":
        return isinstance(layers.get(node.target), nn.ReLU)
    return node.op == "call_function" and node.target in RELUS


@functools.cache
@torch.no_grad()
def _is_possible(dtype: torch.dtype) -> bool:
    """Whether PyTorch has the operators here, and they do in ``dtype`` what the public ones do."""
    random = torch.Generator().manual_seed(0)
    convolution = nn.utils.skip_init(nn.Conv2d, 16, 16, 3, padding=1)  # draws nothing from training's seed
    for parameter in convolution.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=random))
    images, addend = (
        torch.randn(2, 16, 8, 8, generator=random).to(dtype=dtype, memory_format=torch.channels_last)
        for _ in range(2)
    )
    sums = convolution(images.float())
    expected = torch.relu(torch.stack([sums, sums + addend])).float()
    fused = FusedConvolution(convolution, dtype, relu=True)
    try:
        found = torch.stack([fused(images), fused(images, addend)]).float()
    except (AttributeError, RuntimeError, TypeError):
        return False
    return bool(torch.allclose(found, expected, atol=0.05 * expected.max().item()))
