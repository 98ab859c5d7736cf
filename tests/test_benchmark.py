"""The benchmark measures what it says, and its tables say in which unit. No test asks how long anything took."""

import json
from collections import Counter

import pandas as pd
import pytest
import torch
from conftest import invoke, settings_options
from torch import nn

from bus_smp.benchmark import PARTS, timing
from bus_smp.benchmark.convolutions import record_convolutions, repeat_convolutions
from bus_smp.benchmark.plan import Plan, as_in_training
from bus_smp.benchmark.profile import group_by_kind
from bus_smp.benchmark.step import make_step
from bus_smp.benchmark.table import Row, markdown, write_table
from bus_smp.benchmark.timing import Spread, quotient, spread, time_in_turn
from bus_smp.config import load_settings
from bus_smp.system.engine import Engine

COLUMNS = [
    "part", "name", "median", "low", "high", "unit", "readings", "ratio_median", "ratio_low", "ratio_high",
    "ratio_of", "target", "target_of", "met", "note",
]  # fmt: skip
CPU = torch.device("cpu")
ABOUT = {
    "environment": {"device": "d", "cores": 1, "threads": 1, "system": "s", "python": "3", "packages": {}},
    "packages": {}, "images": "synthetic", "options": "",
}  # fmt: skip


@pytest.fixture(scope="module")
def plan(manifests, tmp_path_factory):
    overrides = [text for text in settings_options(manifests, "train.batch_size=2") if text != "--set"]
    folder = tmp_path_factory.mktemp("plan")
    settings = load_settings(None, overrides)
    path = manifests / "data_manifests" / "busi.csv"
    return Plan(Engine(CPU, torch.float32), settings, path, folder, folder / "cache", repeats=1)


@pytest.fixture(scope="module")
def measured(manifests, tmp_path_factory):
    """The whole command once, on real files of a manifest: its table, its JSON on stdout and its folder."""
    out = tmp_path_factory.mktemp("benchmark")
    path = manifests / "data_manifests" / "busi.csv"
    options = settings_options(manifests, "train.batch_size=2", "train.precision=fp32")
    result = invoke(
        "benchmark", "--manifest", path, "--repeats", 1, "--profile", "--backends", "torch,torch-fp16",
        "--json", "--out", out, *options,
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    return pd.read_csv(out / "benchmark" / "benchmark.csv"), json.loads(result.stdout), out / "benchmark"


def test_every_part_has_rows_with_a_unit_a_number_and_what_the_ratio_is_of(measured):
    table, _, _ = measured
    assert list(table.columns) == COLUMNS
    assert list(dict.fromkeys(table["part"])) == [*PARTS, "profile"]
    assert table["unit"].notna().all()
    numbers = table[table["median"].notna()]
    assert set(table["part"]) == set(numbers["part"]), "each part measured something"
    assert (numbers["low"] <= numbers["median"]).all() and (numbers["median"] <= numbers["high"]).all()
    assert (numbers["median"] > 0).all()
    assert (table["ratio_median"].notna() == table["ratio_of"].notna()).all()
    unmeasured = table[table["median"].isna()]
    assert unmeasured["note"].notna().all(), "what was not measured says why"


def test_the_units_are_those_of_the_parts(measured):
    table, _, _ = measured
    units = {part: set(rows["unit"]) for part, rows in table.groupby("part")}
    assert units["limits"] == {"GFLOP/s", "GB/s"}
    assert units["loader"] == {"images/s"}
    assert units["step"] == {"s", "% of the time"}
    assert units["inference"] == {"ms/image"}
    assert units["startup"] == {"s"}
    assert units["profile"] == {"ms"}


def test_csv_json_and_markdown_hold_the_same_table(measured):
    table, document, folder = measured
    assert json.loads((folder / "benchmark.json").read_text()) == document
    assert [row["name"] for row in document["rows"]] == list(table["name"])
    assert document["environment"]["packages"]["torch"] == torch.__version__.split("+")[0]
    assert document["images"] == "training images of busi"
    text = (folder / "benchmark.md").read_text()
    assert all(name in text for name in table["name"])
    assert "/" + str(folder).split("/")[1] not in json.dumps(document), "no path of this machine"


def test_the_kinds_of_a_profile_add_up_to_the_step(measured):
    table, _, _ = measured
    shares = table[table["part"] == "profile"]["ratio_median"]
    assert shares.sum() == pytest.approx(1, abs=1e-3)
    kinds = {name.split(" (")[0] for name in table[table["part"] == "profile"]["name"]}
    assert {"convolution", "batch norm", "ReLU", "upsampling", "loss", "optimiser"} <= kinds


def test_the_loss_is_found_in_both_directions_and_nothing_else_in_it():
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
        return group_by_kind(watched.events(), on_cuda=False)[1]

    forward, both = kinds(3, 1, False), kinds(3, 1, True)
    assert both["loss"] > 1.5 * forward["loss"], "its backward pass is the loss too"
    assert kinds(9, 1, True)["loss"] > both["loss"]
    more = kinds(3, 9, True)
    assert more["loss"] == both["loss"], "what is outside is not the loss, in neither direction"
    assert more["ReLU"] > both["ReLU"]


@pytest.mark.parametrize("options", [(), ("model.attention=scse", "model.bottleneck=aspp")])
def test_the_convolutions_alone_are_exactly_those_of_the_model(plan, options):
    flat = [f"{key}={json.dumps(value)}" for key, value in plan.settings.flat().items()]
    settings = load_settings(None, [*flat, *options])
    run, step = make_step(Plan(plan.engine, settings, *_rest(plan)), torch.float32)
    expected = Counter()
    hooks = [
        module.register_forward_pre_hook(
            lambda module, inputs: expected.update([(tuple(inputs[0].shape), tuple(module.weight.shape))])
        )
        for module in step.model.modules()
        if isinstance(module, nn.Conv2d)
    ]
    run()
    for hook in hooks:
        hook.remove()
    calls = record_convolutions(run)
    assert sum(expected.values()) > 20
    forward = Counter(tuple(t.shape for t in call.tensors()[:2]) for call in calls if call.forward)
    backward = Counter(tuple(t.shape for t in call.tensors()[1:3]) for call in calls if not call.forward)
    assert forward == backward == expected

    again = record_convolutions(repeat_convolutions(calls))
    assert again == calls, "run alone they have the same shapes, strides, types and options"


def _rest(plan):
    return plan.manifest_path, plan.scratch, plan.cache, plan.repeats


def test_the_convolutions_are_recorded_in_the_precision_and_layout_they_run_in(plan):
    calls = record_convolutions(make_step(plan, torch.bfloat16)[0])
    assert {layout.dtype for call in calls for layout in call.tensors()} == {torch.bfloat16}
    wide = [layout for call in calls for layout in call.tensors() if len(layout.shape) == 4]
    assert sum(layout.stride[1] == 1 for layout in wide) > 0.9 * len(wide), "channels last"


def test_only_the_image_needs_no_gradient(plan):
    calls = [c for c in record_convolutions(make_step(plan, torch.float32)[0]) if not c.forward]
    masks = [call.arguments[-1] for call in calls]
    assert [mask[0] for mask in masks].count(False) == 1
    assert all(mask[1] for mask in masks)


def test_works_are_timed_in_turn_after_a_warm_up():
    order = []
    works = {name: (lambda name=name: order.append(name)) for name in "ab"}
    readings = time_in_turn(works, 3, shortest=0)
    assert {name: len(values) for name, values in readings.items()} == {"a": 3, "b": 3}
    turns = "".join(order)[-12:]
    assert turns == "aabbaabbaabb", "untimed, timed; then the other"
    assert len(order) > 12, "a warm-up before"


def test_a_short_work_is_called_often_and_its_time_is_of_one_call(monkeypatch):
    clock = iter(range(10**6))
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
    calls = []
    readings = time_in_turn({"x": lambda: calls.append(1)}, 2, shortest=4)
    assert readings["x"] == [1 / 4, 1 / 4]


def test_a_spread_keeps_its_order_when_it_becomes_a_rate():
    found = spread([2.0, 1.0, 4.0])
    assert found == Spread(2.0, 1.0, 4.0, 3)
    assert found.rate(8) == Spread(4.0, 2.0, 8.0, 3)
    assert found.scaled(1000) == Spread(2000.0, 1000.0, 4000.0, 3)
    # turn by turn: a slow turn slows both
    assert quotient([1.0, 10.0, 1.0], [2.0, 20.0, 2.0]) == Spread(0.5, 0.5, 0.5, 3)


@pytest.mark.parametrize(
    ("ratio", "value", "target_of", "met"),
    [
        (1.1, 9.0, "ratio", True),
        (1.2, 0.0, "ratio", False),
        (9.0, 1.1, "value", True),
        (0.0, 1.2, "value", False),
    ],
)
def test_a_target_is_met_by_the_median_it_is_set_on(ratio, value, target_of, met):
    row = Row("step", "x", "s", spread([value]), spread([ratio]), "y", target=1.15, target_of=target_of)
    assert row.met() is met
    assert ("met" if met else "missed") in markdown([row], ABOUT)
    assert Row("step", "x", "s", target=1.0).met() is None


def test_a_number_that_is_missing_is_an_empty_cell_and_a_dash(tmp_path):
    row = Row("inference", "onnx-fp32", "ms/image", note="not installed")
    write_table([row], ABOUT, tmp_path)
    (line,) = pd.read_csv(tmp_path / "benchmark.csv").to_dict("records")
    assert pd.isna(line["median"]) and line["note"] == "not installed"
    assert "| -" in (tmp_path / "benchmark.md").read_text()


def test_the_mode_of_training_is_left_behind(plan):
    before = torch.are_deterministic_algorithms_enabled()
    with as_in_training(plan.settings):
        assert torch.are_deterministic_algorithms_enabled() is plan.settings.train.deterministic
    assert torch.are_deterministic_algorithms_enabled() is before


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--parts", "limits,lodaer"), "no part is called lodaer"),
        (("--parts", ","), "names no part"),
        (("--backends", "tensorrt"), "there is no tensorrt"),
        (("--device", "gpu"), "runtime.device"),
        (("--set", "train.batchsize=1"), "did you mean train.batch_size"),
        (("--run", "nowhere"), "no trained run nowhere"),
        (("--manifest", "nowhere.csv", "--parts", "limits"), "nowhere.csv"),
    ],
)
def test_a_bad_option_is_a_clear_error(options, said, tmp_path):
    result = invoke("benchmark", "--out", tmp_path, *options)
    assert result.exit_code == 1
    assert said in result.stderr
    assert not list(tmp_path.iterdir())


def test_a_run_is_measured_with_its_own_settings_weights_and_images(trained, tmp_path):
    out = tmp_path / "outputs"
    result = invoke(
        "benchmark", "--run", trained, "--parts", "limits", "--repeats", 1, "--json", "--out", out
    )
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["settings"]["model.encoder_name"] == "resnet18"
    assert document["images"] == "training images of the run first"
    assert (out / "benchmark" / "benchmark.md").is_file()


def test_without_any_data_synthetic_images_are_made(tmp_path):
    options = settings_options(tmp_path, "train.batch_size=2")
    result = invoke("benchmark", "--parts", "loader", "--repeats", 1, "--json", "--out", tmp_path, *options)
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["images"] == "synthetic"
    assert [row["name"] for row in document["rows"]] == ["loader, 0 workers", "loader, 1 worker"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["benchmark"], "nothing else is left behind"
