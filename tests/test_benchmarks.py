"""The scripts in benchmarks/ run, and the convolutions that they time are those of the model."""

import importlib.util
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from conftest import TINY
from torch import nn

from bus_smp.config import load_settings
from bus_smp.system.engine import Engine

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def training(monkeypatch):
    # By its path: tests/torture has a module of the same name.
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("benchmarks_training", BENCHMARKS / "training.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def test_the_recorded_convolutions_are_exactly_those_of_the_model(training):
    settings = load_settings(
        None, [*TINY, "train.batch_size=2", "model.attention=scse", "model.bottleneck=aspp"]
    )
    plan = training.Plan(Engine(torch.device("cpu"), torch.bfloat16), settings, None, [], 1)
    run, step = training.make_step(plan, torch.bfloat16)
    expected = Counter()
    for module in step.model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(
                lambda module, inputs: expected.update([(tuple(inputs[0].shape), tuple(module.weight.shape))])
            )
    calls = training.record_convolutions(run)
    assert sum(expected.values()) > 20
    forward = Counter(tuple(t.shape for t in call.tensors()[:2]) for call in calls if call.forward)
    backward = Counter(tuple(t.shape for t in call.tensors()[1:3]) for call in calls if not call.forward)
    assert forward == backward == expected
    assert {layout.dtype for call in calls for layout in call.tensors()} == {torch.bfloat16}
    again = training.record_convolutions(training.repeat_convolutions(calls))
    assert again == calls, "repeated, they have the same shapes, strides, types and options"


def test_a_profile_finds_the_loss_in_both_directions_and_nothing_else_in_it(training):
    weights = torch.randn(4, 3, 8, 8, requires_grad=True)

    def kinds(inner, outer, backward):
        """Calls of each kind: ``inner`` functions one after the other inside the loss, ``outer`` before it."""
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as watched:
            value = weights
            for _ in range(outer):
                value = value.relu()
            with torch.profiler.record_function("loss"):
                for _ in range(inner):
                    value = value.exp()
                value = value.log_softmax(1).sum()
            if backward:
                value.backward()
        return training.group_by_kind(watched.events(), on_cuda=False)[1]

    forward, both = kinds(3, 1, False), kinds(3, 1, True)
    assert both["loss"] > 1.5 * forward["loss"], "its backward pass is the loss too"
    more = kinds(3, 9, True)
    assert more["loss"] == both["loss"], "what is outside is not the loss, in neither direction"
    assert more["ReLU"] > both["ReLU"]


SCRIPTS = {
    "training": ["--parts", "limits", "loader", "step", "profile", "epoch", "--repeats", "1"],
    "startup": ["--repeats", "1"],
    "predict": ["{run}", "{images}", "--images", "8", "--repeats", "1"],
    "make_manifest": ["--files", "240"],
    "near_duplicates": ["200"],
    "scale": ["--rows", "2000", "--draws", "100"],
}


def test_every_script_is_tried_below():
    assert set(SCRIPTS) | {"timing"} == {path.stem for path in BENCHMARKS.glob("*.py")}


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_runs_and_prints_its_numbers(script, trained, busi_tree):
    tiny = [part for setting in (*TINY, "train.batch_size=2") for part in ("--set", setting)]
    options = [option.format(run=trained, images=busi_tree) for option in SCRIPTS[script]]
    command = [sys.executable, str(BENCHMARKS / f"{script}.py"), *options]
    done = subprocess.run(
        command + (tiny if script in ("training", "startup") else []), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert any(character.isdigit() for character in done.stdout)
