"""The comparison of networks: its numbers are those of the networks, and one that fails costs only its own row."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ended, invoke, settings_options
from torch import nn

from bus_smp.errors import ConfigError
from bus_smp.figures.models import write_models
from bus_smp.inference.formats.onnx import load_onnx
from bus_smp.model_comparison.backends import BACKENDS, Exports, choose_backends, count_gflop, open_backend
from bus_smp.model_comparison.networks import (
    HYBRID,
    HYBRID_HEADS,
    NETWORKS,
    SMP,
    build,
    count_parameters,
    for_prediction,
)
from bus_smp.model_comparison.peak_memory import peak_memory
from bus_smp.model_comparison.timing import Spread, quotient, spread, time_in_turn
from bus_smp.system.engine import Engine

CPU = torch.device("cpu")
COMPARED = (HYBRID, HYBRID_HEADS)
FP32 = Engine(CPU, torch.float32)


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """Two networks in fp32, and one training step of each."""
    out = tmp_path_factory.mktemp("compare")
    result = invoke(
        "compare-models", "--encoder", "resnet18", "--size", 64, "--batch", 2, "--backends", "torch-fp32", "--repeats", 1,
        "--models", ",".join(COMPARED), "--train", "--json", "--out", out,
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    return (
        pd.read_csv(out / "compare-models" / "models.csv"),
        json.loads(result.stdout),
        out / "compare-models",
    )


def test_there_is_a_row_for_every_network_with_its_units_in_the_columns(compared):
    table, document, folder = compared
    assert list(table["model"]) == list(COMPARED)
    assert list(table.columns) == [
        "model", "encoder", "size_px", "batch", "parameters", "gflop_per_image", "peak_memory_mb",
        "torch_fp32_ms", "torch_fp32_ms_low", "torch_fp32_ms_high", "torch_fp32_limit_ratio",
        "train_step_s", "train_step_s_low", "train_step_s_high", "note",
    ]  # fmt: skip
    numbers = table.drop(columns=["model", "encoder", "note"])
    assert (numbers.drop(columns="peak_memory_mb") > 0).all(axis=None)
    assert table["note"].isna().all()
    assert json.loads((folder / "models.json").read_text()) == document
    assert (folder / "models.png").stat().st_size > 10_000


def test_parameters_and_flop_are_those_of_the_network_and_only_one_hybrid_has_auxiliary_heads(compared):
    table = compared[0].set_index("model")
    for name in COMPARED:
        assert table["parameters"][name] == sum(t.numel() for t in build(name, "resnet18").parameters())
    # Heads of 3 x 3 convolutions from 32, 64 and 128 channels to 3 classes, with biases
    heads = sum(3 * 3 * channels * 3 + 3 for channels in (32, 64, 128))
    assert table["parameters"][HYBRID_HEADS] - table["parameters"][HYBRID] == heads
    flop = sum(2 * 9 * channels * 3 * side**2 for channels, side in ((32, 32), (64, 16), (128, 8)))
    assert table["gflop_per_image"][HYBRID_HEADS] - table["gflop_per_image"][HYBRID] == pytest.approx(
        flop / 1e9, rel=1e-3
    )
    # Without them the hybrid has the layers of smp's U-Net.
    unet = build("unet", "resnet18").eval()
    assert table["parameters"][HYBRID] == count_parameters(unet)
    assert table["gflop_per_image"][HYBRID] == pytest.approx(count_gflop(unet, 64, CPU))


def test_gflop_are_twice_the_multiplications_of_a_convolution():
    convolution = nn.Conv2d(3, 5, kernel_size=3, stride=2, padding=1, bias=False)
    assert count_gflop(convolution, 32, CPU) * 1e9 == pytest.approx(2 * 3 * 3 * 3 * 5 * 16 * 16)


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_timed_answers_as_the_network_does(name):
    network = build(name, "resnet18").eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        expected, found = network(images), for_prediction(network)(images)
    for one, other in zip(*((x if isinstance(x, tuple) else (x,)) for x in (expected, found)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    folded = [m for m in for_prediction(network).modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(folded) < sum(isinstance(m, nn.BatchNorm2d) for m in network.modules()) / 2


@pytest.mark.slow
def test_a_network_of_smp_is_timed_on_other_backends_with_the_same_answer(tmp_path):
    network = build("deeplabv3plus", "resnet18").eval()
    exports = Exports(network, 64, tmp_path, list, fixed="deeplabv3plus" in SMP)
    open_backend("onnx-fp32", network, exports, FP32, 2)()
    images = np.random.default_rng(1).standard_normal((2, 3, 64, 64), np.float32)
    with torch.inference_mode():
        expected = network(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(load_onnx(exports.onnx())(images).logits, expected, rtol=1e-3, atol=1e-3)


def test_peak_memory_grows_with_the_images(compared):
    found = peak_memory(HYBRID, "resnet18", 512, 1, "cpu", "float32")
    if found is None:
        pytest.skip("this system does not report it")
    # 64 channels at half size and 16 at full size are 33 MB in float32; the weights, 57 MB, are not included.
    assert 33 < found < 33 * 10
    assert found > 2 * compared[0].set_index("model")["peak_memory_mb"][HYBRID]


def test_an_encoder_or_a_size_that_a_network_cannot_take_costs_its_own_row(tmp_path):
    result = invoke(
        "compare-models", "--encoder", "mobilenet_v2", "--size", 72, "--backends", "torch-fp32",
        "--models", "hybrid,unetplusplus", "--repeats", 1, "--out", tmp_path,
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    table = pd.read_csv(tmp_path / "compare-models" / "models.csv").set_index("model")
    assert table["torch_fp32_ms"][HYBRID] > 0
    assert "divisible by 32" in table["note"]["unetplusplus"]
    assert pd.isna(table["parameters"]["unetplusplus"])
    assert "divisible by 32" in result.stdout


def test_the_figure_needs_only_the_table(compared, tmp_path):
    table = pd.read_csv(compared[2] / "models.csv")
    write_models(table, tmp_path / "again.png")
    assert (tmp_path / "again.png").read_bytes() == (compared[2] / "models.png").read_bytes()


def test_the_figure_takes_tables_of_any_length_and_without_times(compared, tmp_path):
    table = compared[0]
    failed = table.assign(parameters=np.nan, torch_fp32_ms=np.nan, note="cannot take 72 px " * 8)
    for i, case in enumerate((table.head(0), table.head(1), failed, table.drop(columns="torch_fp32_ms"))):
        write_models(case, tmp_path / f"{i}.png")
        assert (tmp_path / f"{i}.png").stat().st_size > 2_000


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--encoder", "resnet51"), "did you mean resnet50"),
        (("--models", "unet,segnet"), "there is no segnet"),
        (("--backends", "tensorrt"), "there is no tensorrt"),
        (("--backends", ","), "names no backend"),
        (("--device", "gpu"), "unknown device"),
    ],
)
def test_a_bad_option_is_a_clear_error(options, said, tmp_path):
    result = invoke("compare-models", "--out", tmp_path, *options)
    assert result.exit_code == 1
    assert said in result.stderr
    assert not list(tmp_path.iterdir())


def test_a_library_without_a_precision_means_all_of_its_but_int8():
    assert choose_backends("openvino,torch", FP32) == ("openvino-fp32", "openvino-bf16", "torch-fp32")
    assert choose_backends("onnx-int8", FP32) == ("onnx-int8",)
    assert not any(name.endswith("int8") for name in choose_backends(None, FP32))
    assert set(choose_backends(None, FP32)) < set(BACKENDS)
    with pytest.raises(ConfigError, match="no backend that runs on cuda"):
        choose_backends("onnx", Engine(torch.device("cuda"), torch.bfloat16))


def test_works_are_timed_in_turn_after_a_warm_up():
    order = []
    works = {name: (lambda name=name: order.append(name)) for name in "ab"}
    readings = time_in_turn(works, 3, shortest=0)
    assert {name: len(values) for name, values in readings.items()} == {"a": 3, "b": 3}
    assert "".join(order)[-12:] == "aabbaabbaabb", "each untimed, then timed; then the other"
    assert len(order) > 12, "a warm-up before"


def test_a_spread_keeps_its_order_when_it_becomes_a_rate():
    found = spread([2.0, 1.0, 4.0])
    assert found == Spread(2.0, 1.0, 4.0, 3)
    assert found.rate(8) == Spread(4.0, 2.0, 8.0, 3)
    assert found.scaled(1000) == Spread(2000.0, 1000.0, 4000.0, 3)
    # Turn by turn: a slow turn slows both.
    assert quotient([1.0, 10.0, 1.0], [2.0, 20.0, 2.0]) == Spread(0.5, 0.5, 0.5, 3)


@pytest.mark.slow
def test_quality_is_that_of_the_same_training_for_every_network(manifests, trained, tmp_path):
    """The hybrid model with its heads is what ``bus-smp train`` trains, so the last epoch of that has the same score."""
    own = settings_options(manifests)
    used = [f"--set={text}" for text in own[1::2] if not text.startswith(("data.", "model.encoder_name"))]
    result = invoke(
        "compare-models", "--encoder", "tu-test_resnet", "--size", 64, "--backends", "torch-fp32", "--repeats", 1,
        "--models", "hybrid-heads,hybrid-aspp,unet,deeplabv3plus", "--quality", "bus-uclm",
        "--manifests", manifests / "data_manifests", *used, "--out", tmp_path,
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert "false alarms" in result.stdout
    table = pd.read_csv(tmp_path / "compare-models" / "models.csv").set_index("model")
    last = pd.read_csv(trained / "metrics.csv").iloc[-1]
    for name in ("dice_lesion", "miss_rate", "false_alarm_rate"):
        assert table.loc["hybrid-heads", name] == pytest.approx(last[f"val_{name}"], rel=1e-5)
    trained_all = table.drop(index=table.index[table["note"].notna()])
    assert len(trained_all) >= 3 and trained_all["steps"].nunique() == 1
    assert trained_all["dice_lesion"].nunique() == len(trained_all)


@pytest.mark.parametrize("text", ["heads.image=1", "train.accumulate=2", "model.attention=scse"])
def test_a_setting_that_not_every_network_can_follow_is_refused(manifests, tmp_path, text):
    result = invoke(
        "compare-models", "--quality", "bus-uclm", "--manifests", manifests / "data_manifests", "--set", text, "--out", tmp_path
    )  # fmt: skip
    assert "not every network that is compared can follow it" in ended(result, 1)
    assert "missing" in ended(invoke("compare-models", "--set", "train.epochs=1", "--out", tmp_path), 2)
