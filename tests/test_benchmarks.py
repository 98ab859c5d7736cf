"""The scripts in benchmarks/ run, and the convolutions that they time are those of the model."""

import argparse
import importlib.util
import itertools
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TINY
from torch import nn

from bus_smp.config import load_settings
from bus_smp.system.engine import Engine

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


def _script(name, monkeypatch):
    # By its path: tests/torture has a module of the same name.
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def training(monkeypatch):
    return _script("training", monkeypatch)


@pytest.fixture
def factorial(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return _script("factorial", monkeypatch)


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


def test_no_effect_of_a_change_is_mixed_with_that_of_another_or_of_two(factorial):
    signs = 1 - 2 * factorial.design()
    assert signs.shape == (16, 1 + len(factorial.CHANGES))
    assert (signs.T @ signs == 16 * np.eye(signs.shape[1])).all()
    pairs = np.stack([signs[:, a] * signs[:, b] for a, b in itertools.combinations(range(signs.shape[1]), 2)])
    assert (pairs @ signs == 0).all()


def test_effects_are_differences_of_means_with_the_standard_error_of_what_is_left(factorial):
    runs, noise = factorial.design(), np.random.default_rng(0).normal(0, 0.02, 16)
    true = np.linspace(-0.3, 0.4, runs.shape[1])
    values = 0.5 + runs @ true + noise
    found, error = factorial.effects(runs, values)
    means = [values[column == 1].mean() - values[column == 0].mean() for column in runs.T]
    np.testing.assert_allclose(found, means)
    assert (abs(found - true) < 4 * error).all() and (error > 0.004).all() and (error < 0.02).all()
    assert np.isnan(factorial.effects(runs[:8], values[:8])[1]).all()


def test_measures_of_a_run_count_what_they_say(factorial):
    def image(label, split, dice, marked, score, malignancy):
        return {"view": "plain", "label": label, "split": split, "dice": dice, "marked": marked, "lesion_score": score,
                "malignancy": malignancy}  # fmt: skip

    table = pd.DataFrame(
        [
            image("benign", "val", 0.5, 1, -0.4, 0.2),
            image("malignant", "val", 0.7, 1, -0.2, 0.9),
            image("normal", "val", np.nan, 0, -0.9, 0.5),
            image("benign", "other", 0.0, 0, -0.5, 0.2),
            image("malignant", "other", 0.8, 1, -0.1, 0.1),
            image("normal", "other", np.nan, 1, -0.3, 0.5),
            image("normal", "other", np.nan, 0, -0.8, 0.5),
        ]
    )
    found = factorial.summarise(table)
    assert found["plain", "home"]["dice"] == pytest.approx(0.6)
    assert found["plain", "home"]["alarms"] == found["plain", "home"]["misses"] == 0
    assert found["plain", "other"] == pytest.approx(
        {"dice": 0.4, "misses": 0.5, "alarms": 0.5, "misses_95": 0.5, "alarms_95": 0.5, "auc_lesion": 0.75, "auc_malignant": 0}
    )  # fmt: skip


@pytest.mark.slow
def test_the_factorial_trains_and_scores_a_run_once(factorial, monkeypatch, manifests, tmp_path, capsys):
    monkeypatch.setattr(factorial, "COMMON", (*TINY, "train.batch_size=8", "train.patience=0"))
    options = argparse.Namespace(out=tmp_path, manifests=manifests / "data_manifests", steps=8, size=32)
    # the last run has all changes
    first = factorial._run(15, options)
    assert first == factorial._run(15, options) and '"auc_malignant": 0' in first
    assert (tmp_path / "run15.log").read_text().count("Calibrating") == 1
    factorial.print_table(tmp_path)
    assert "1 of 16 runs" in capsys.readouterr().out


SCRIPTS = {
    "training": ["--parts", "limits", "loader", "step", "profile", "epoch", "--repeats", "1"],
    "startup": ["--repeats", "1"],
    "predict": ["{run}", "{images}", "--images", "8", "--repeats", "1"],
    "make_manifest": ["--files", "240"],
    "near_duplicates": ["200"],
    "scale": ["--rows", "2000", "--draws", "100"],
}


def test_every_script_is_tried_below():
    # the one tried above takes long
    assert set(SCRIPTS) | {"timing", "factorial"} == {path.stem for path in BENCHMARKS.glob("*.py")}


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
