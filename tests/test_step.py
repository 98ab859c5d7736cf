"""One training step: what accumulation, the moving average, and determinism promise."""

import os
import subprocess
import sys

import pytest
import torch
from conftest import settings_options

from bus_smp.config import Settings, load_settings
from bus_smp.data.manifest import read_manifest
from bus_smp.errors import TrainingError
from bus_smp.model.checkpoint import weights_sha256
from bus_smp.runs.run import Run
from bus_smp.system.engine import make_engine, set_determinism
from bus_smp.training.average import WeightAverage
from bus_smp.training.preflight import explained_compile
from bus_smp.training.resume import read_state
from bus_smp.training.start import train
from bus_smp.training.step import TrainingStep

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here")

SMALL = ("model.encoder_name=tu-test_resnet", "model.encoder_weights=null")


def settings(*more: str) -> Settings:
    return load_settings(None, [*SMALL, *more])


def make_step(*more: str, device: str = "cpu", precision: str = "fp32") -> TrainingStep:
    torch.manual_seed(0)
    step = TrainingStep(settings(*more), make_engine(device, precision))
    step.model.train()
    return step


def batch(seed: int = 0, size: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (4, size, size, 3), dtype=torch.uint8, generator=generator)
    return images, torch.randint(0, 3, (4, size, size), dtype=torch.uint8, generator=generator)


def parameters(step: TrainingStep) -> list[torch.Tensor]:
    return [value.detach().clone() for value in step.model.parameters()]


def equal(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_a_step_changes_every_parameter_and_reports_every_head():
    # The random tu-test_resnet has channels that no image reaches.
    step = make_step("model.encoder_name=resnet18")
    before = parameters(step)
    losses = step(*batch())
    assert losses.shape == (5,) and losses.dtype == torch.float32 and not losses.requires_grad
    assert all(not torch.equal(a, b) for a, b in zip(before, parameters(step), strict=True))


def test_a_group_of_batches_makes_one_change_by_their_mean_gradient():
    """Twice the same batch has the gradient of once, to the bit: halves of a float add up to it."""
    once, twice = make_step(), make_step()
    start = parameters(twice)
    once(*batch())
    twice(*batch(), group=2, last=False)
    assert equal(parameters(twice), start), "nothing changes before the group's last batch"
    twice(*batch(), group=2, last=True)
    assert equal(parameters(once), parameters(twice))
    twice(*batch(1))
    once(*batch(1))
    assert equal(parameters(once), parameters(twice)), "no gradient is left over for the next group"


def test_a_group_counts_each_of_its_batches():
    mixed, first = make_step(), make_step()
    mixed(*batch(0), group=2, last=False)
    mixed(*batch(1), group=2)
    first(*batch(0))
    assert not equal(parameters(mixed), parameters(first))


def test_the_average_is_what_its_formula_says():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    average = WeightAverage(model, decay=0.15)
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    for update, decay in enumerate([0.1, 0.15, 0.15]):  # (1 + n) / (10 + n) is .1, then above .15
        model(torch.randn(8, 2) * (update + 1))  # moves batch norm's statistics
        with torch.no_grad():
            model[0].weight.add_(1.0)
        average.update(model)
        for name, value in model.state_dict().items():
            real = value.is_floating_point()
            expected[name] = decay * expected[name] + (1 - decay) * value if real else value.clone()
    for name, value in average.model.state_dict().items():
        torch.testing.assert_close(value, expected[name], msg=name)
    assert not any(value.requires_grad for value in average.model.parameters())


def test_only_the_encoder_has_the_encoders_rate():
    step = make_step("train.encoder_lr=1e-5", "train.lr=1e-3")
    assert step.rates == (1e-5, 1e-3)
    encoder, rest = ({id(one) for one in group["params"]} for group in step.optimizer.param_groups)
    assert encoder == {id(one) for one in step.model.encoder.parameters()}
    assert encoder | rest == {id(one) for one in step.model.parameters()} and not encoder & rest


@pytest.mark.parametrize("clip", [0.0, 1e-3, 1e6])
def test_gradients_are_scaled_down_to_the_norm_that_clipping_allows(monkeypatch, clip):
    step, free = make_step(f"train.clip={clip}"), make_step()
    norms = {}
    for name, one in (("clipped", step), ("free", free)):
        used = list(one.model.parameters())
        monkeypatch.setattr(
            one.optimizer,
            "step",
            lambda name=name, used=used: norms.update(
                {name: torch.stack([v.grad.norm() for v in used]).norm().item()}
            ),
        )
        one(*batch())
    assert norms["clipped"] == pytest.approx(min(norms["free"], clip or norms["free"]), rel=1e-4)


def test_the_norm_is_that_of_the_gradients_before_they_were_scaled_for_fp16():
    step = make_step("train.clip=1e-3")
    step.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    step(*batch())
    plain = make_step("train.clip=1e-3")
    plain(*batch())
    for a, b in zip(step.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    "options", [("train.ema=0.9",), ("train.encoder_lr=1e-5",), ("train.clip=0.01",)], ids=lambda one: one[0]
)
def test_a_step_restored_from_its_state_goes_on_bit_for_bit(options):
    whole, first, second = make_step(*options), make_step(*options), make_step(*options)
    for seed in (0, 1, 2):
        whole(*batch(seed))
    first(*batch(0))
    first(*batch(1))
    first.encoder_origin = "the file weights.pth"
    second.restore(first.state())
    second(*batch(2))
    assert second.encoder_origin == first.encoder_origin
    assert weights_sha256(second.model) == weights_sha256(whole.model)
    assert weights_sha256(second.best_model) == weights_sha256(whole.best_model)
    assert (whole.average is None) == (weights_sha256(whole.best_model) == weights_sha256(whole.model))


def test_a_run_with_an_average_keeps_the_average_as_its_best_weights(manifests, tmp_path):
    options = settings_options(manifests, "train.ema=0.5", "train.accumulate=3", "train.epochs=1")
    run, settings = Run(tmp_path / "x"), load_settings(None, options[1::2])

    def stop_before_the_end(text: str) -> None:
        if text.startswith("Calibrating"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(
            settings,
            read_manifest(manifests / "data_manifests" / "bus-uclm.csv"),
            run.folder,
            say=stop_before_the_end,
        )
    engine = make_engine("cpu", "fp32")
    state = read_state(run.state_path, engine)
    step = TrainingStep(settings, engine)
    step.restore(state)
    steps = -(-_batches(run) // 3)
    assert state["average"]["updates"] == steps, (
        "one change of the weights for three batches, the last for fewer"
    )
    assert weights_sha256(run.best_path) == weights_sha256(step.best_model)
    assert weights_sha256(run.best_path) != weights_sha256(step.model)


def _batches(run: Run) -> int:
    return len(run.manifest().used("train")) // run.settings().train.batch_size


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_determinism_costs_no_filling_of_memory_and_changes_no_bit(precision):
    outcomes = []
    for wanted in (True, False):
        set_determinism(wanted)
        try:
            step = make_step(precision=precision)
            step(*batch())
            outcomes.append(parameters(step))
            assert torch.utils.deterministic.fill_uninitialized_memory is False
            assert torch.are_deterministic_algorithms_enabled() is wanted
        finally:
            set_determinism(False)
    assert equal(*outcomes)


def test_a_compilation_that_fails_is_explained_and_other_faults_pass():
    class InductorError(Exception):
        pass

    InductorError.__module__ = "torch._inductor.exc"
    compiled = load_settings(None, ["train.compile=true"])
    with pytest.raises(TrainingError, match="no compiler") as caught, explained_compile(compiled):
        raise InductorError("no compiler")
    assert "--set train.compile=false" in caught.value.hint
    with pytest.raises(RuntimeError, match="another"), explained_compile(compiled):
        raise RuntimeError("another")


@pytest.mark.slow
def test_without_a_compiler_compilation_is_one_clear_error(manifests, tmp_path):
    options = settings_options(manifests, "train.compile=true", "train.epochs=1")
    result = subprocess.run(
        [sys.executable, "-m", "bus_smp", "train", "--out", str(tmp_path), "--run", "x", *options],
        env={**os.environ, "CXX": "no-such-compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor")},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1, result.stderr
    assert "Traceback" not in result.stderr
    assert "torch.compile" in result.stderr and "--set train.compile=false" in result.stderr


@pytest.mark.cuda
@needs_cuda
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_on_cuda_the_compiled_step_has_the_losses_of_the_plain_one(precision):
    plain = make_step(device="cuda", precision=precision)
    compiled = make_step("train.compile=true", device="cuda", precision=precision)
    for seed in range(3):
        torch.testing.assert_close(compiled(*batch(seed)), plain(*batch(seed)), rtol=2e-2, atol=2e-2)


def test_a_state_of_a_recorded_step_continues_without_a_recording():
    step, other = make_step("runtime.graph=true"), make_step()
    step(*batch())
    other(*batch())
    state = step.state()
    state["optimizer"]["param_groups"][0] |= {"capturable": True, "lr": torch.tensor(1e-4)}
    step.restore(state)
    group = step.optimizer.param_groups[0]
    assert not group["capturable"] and isinstance(group["lr"], float), "there is no GPU here to record on"
    for each in (step, other):
        each.set_rates([3e-4])
        each(*batch(1))
    assert equal(parameters(step), parameters(other))


@pytest.mark.cuda
@needs_cuda
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_on_cuda_a_recorded_step_gives_the_bits_of_the_plain_one(precision):
    set_determinism(True)
    try:
        plain, recorded = (
            make_step(f"runtime.graph={graph}", "train.ema=0.9", device="cuda", precision=precision)
            for graph in ("false", "true")
        )
        for seed in range(8):
            for step in (plain, recorded):
                step.set_rates([1e-3 / (1 + seed)])
            assert torch.equal(plain(*batch(seed)), recorded(*batch(seed))), seed
        assert equal(parameters(plain), parameters(recorded))
        assert equal(*(list(step.best_model.state_dict().values()) for step in (plain, recorded)))
        # a batch of another shape is computed too
        assert torch.equal(plain(*batch(9, 64)), recorded(*batch(9, 64)))
    finally:
        set_determinism(False)
