"""Convolutions computed with what follows them: the same numbers, nothing overwritten that is read again."""

import pytest
import torch
from torch import nn

from bus_smp.inference import fusing
from bus_smp.inference.folding import MainHead, fold_batch_norms
from bus_smp.inference.fusing import FusedConvolution, fuse_convolutions
from bus_smp.model.hybrid import HybridResNet50
from bus_smp.model_comparison.networks import NETWORKS, build, for_prediction
from bus_smp.system.engine import make_engine

CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.bfloat16]


pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="no oneDNN here")
if make_engine("cpu").dtype != torch.bfloat16:
    DTYPES = DTYPES[:1]


def fused_layers(network: nn.Module) -> list[FusedConvolution]:
    return [module for module in network.modules() if isinstance(module, FusedConvolution)]


def additions(network: nn.Module) -> int:
    calls = [node for node in network.graph.nodes if str(node.target).startswith("fused_")]
    return sum(len(call.args) == 2 for call in calls)


def assert_the_same(network, images, dtype=torch.float32, atol=1e-4):
    graph = str(network.graph)
    fused = fuse_convolutions(network, CPU, dtype)
    assert str(network.graph) == graph
    with torch.inference_mode(), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        for shown in (images, images[:1], images):  # batches differ in size, as the last one does
            expected, found, again = network(shown), fused(shown), fused(shown)
            spread = expected.float().std()
            torch.testing.assert_close(found.float() / spread, expected.float() / spread, atol=atol, rtol=0)
            assert torch.equal(found, again)
    return fused


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", [{}, {"attention": "scse"}, {"bottleneck": "aspp"}])
def test_the_hybrid_network_answers_the_same(options, dtype):
    torch.manual_seed(0)
    model = HybridResNet50(encoder_name="resnet50", encoder_weights=None, **options)
    model(torch.randn(4, 3, 64, 64))  # in training mode: statistics that are not 0 and 1
    folded = fold_batch_norms(MainHead(model.eval()))
    before = {name: value.clone() for name, value in folded.state_dict().items()}
    images = torch.randn(3, 3, 50, 70)
    fused = assert_the_same(folded, images, dtype, atol=1e-4 if dtype == torch.float32 else 0.4)
    assert not any(isinstance(module, nn.Conv2d) for module in fused.modules())
    assert additions(fused) == 16, "every residual addition of a ResNet-50"
    assert all(torch.equal(value, before[name]) for name, value in folded.state_dict().items())


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "hybrid-heads"])
def test_networks_of_smp_answer_the_same(name):
    network = for_prediction(build(name, "resnet18"))
    fused = assert_the_same(network, torch.randn(2, 3, 64, 64))
    assert len(fused_layers(fused)) > 20


class Reads(nn.Module):
    """What a graph may do with an addend besides adding it."""

    def __init__(self, after: str) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.third, self.same = nn.Conv2d(8, 8, 1), nn.Identity()
        self.after = after

    def forward(self, images):
        kept = self.first(images)
        if self.after == "a view":
            view = self.same(kept)
        seen = kept if self.after == "its own input" else torch.relu(self.third(kept))
        total = torch.relu(self.second(seen) + kept)
        if self.after == "a view":
            return total * view
        if self.after == "a convolution":
            return self.third(kept) * total
        if self.after == "the caller":
            return torch.cat([kept, total])
        if self.after == "itself":
            seen = self.third(total)
            return seen + seen
        if self.after == "a small one":
            return self.third(total) + self.third(total.mean((2, 3), keepdim=True))
        if self.after == "a small one first":
            small = self.third(total.mean((2, 3), keepdim=True))
            return self.second(total) + small
        return total


@pytest.mark.parametrize(
    ("after", "added"),
    [
        ("nothing", 1), ("its own input", 0), ("a view", 0), ("a convolution", 0), ("the caller", 0), ("itself", 1), ("a small one", 2), ("a small one first", 2),
    ],
)  # fmt: skip
def test_nothing_is_overwritten_that_is_read_again(after, added):
    torch.manual_seed(0)
    network = torch.fx.symbolic_trace(Reads(after).eval())
    fused = assert_the_same(network, torch.randn(2, 3, 9, 7))
    assert additions(fused) == added


def test_convolutions_that_pad_otherwise_are_left_alone():
    class Padded(nn.Module):
        def __init__(self):
            super().__init__()
            self.reflects = nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect")
            self.named = nn.Conv2d(4, 4, 3, padding="same")
            self.dilated = nn.Conv2d(4, 8, 3, padding=2, dilation=2, stride=2, groups=2, bias=False)

        def forward(self, images):
            return torch.relu(self.dilated(self.named(self.reflects(images))))

    fused = assert_the_same(torch.fx.symbolic_trace(Padded().eval()), torch.randn(2, 3, 9, 7))
    assert len(fused_layers(fused)) == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_damage_in_any_weight_is_seen_in_the_answer(value):
    """A ReLU that makes zero of NaN would hide it."""
    torch.manual_seed(0)
    model = HybridResNet50(encoder_name="resnet18", encoder_weights=None).eval()
    folded = fold_batch_norms(MainHead(model))
    layers = [module for module in folded.modules() if isinstance(module, nn.Conv2d)]
    assert len(layers) == 31
    images = torch.randn(1, 3, 64, 64)
    for layer in layers:
        whole = layer.weight.detach().clone()
        with torch.no_grad():
            layer.weight[0] = value
            assert not torch.isfinite(folded(images)).all()
            assert not torch.isfinite(fuse_convolutions(folded, CPU, torch.float32)(images)).all()
            layer.weight.copy_(whole)


def test_operators_that_are_missing_or_say_something_else_are_not_used(monkeypatch):
    tried = fusing._is_possible.__wrapped__
    monkeypatch.setattr(torch.ops.mkldnn, "_convolution_pointwise_", lambda addend, *rest: addend)
    assert not tried(torch.float32)
    monkeypatch.undo()
    monkeypatch.setattr(torch.ops.mkldnn, "_convolution_pointwise", lambda images, *rest: images)
    assert not tried(torch.float32)
    monkeypatch.undo()
    monkeypatch.delattr(torch.ops.mkldnn, "_convolution_pointwise_")
    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_convolution_weight", None)
    assert not tried(torch.float32)
    network = torch.fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 3, 1)))
    assert fuse_convolutions(network, torch.device("meta"), torch.float32) is network
    monkeypatch.setattr(fusing, "_is_possible", lambda dtype: False)
    assert fuse_convolutions(network, CPU, torch.float32) is network


def test_trying_draws_nothing_from_the_seed_of_a_training():
    before = torch.get_rng_state()
    assert fusing._is_possible.__wrapped__(torch.float32)
    assert torch.equal(torch.get_rng_state(), before)
