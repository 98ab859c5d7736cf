"""Several processes, started by torchrun as a user would: one result, one writer, one voice."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import invoke, settings_options

from bus_smp.data.sampler import EpochSampler, RankSampler
from bus_smp.model.checkpoint import read_header
from bus_smp.runs.evaluations import read_summary
from bus_smp.runs.run import Run
from bus_smp.system import ranks
from bus_smp.system.engine import make_engine
from bus_smp.training.resume import read_state


def torchrun(*arguments: object, restarts: int = 0, processes: int = 2, wait: bool = True, **options):
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", processes,
        "--max-restarts", restarts, "--monitor-interval", "0.2", "-m", "bus_smp", "--", *arguments,
    ]  # fmt: skip
    command = [str(part) for part in command]
    if wait:
        return subprocess.run(command, capture_output=True, text=True, timeout=300, **options)
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def run_by_two(code: str, *arguments: str) -> str:
    """What two processes of a job print that run Python code."""
    job = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python"]
    command = [sys.executable, *job, sys.executable, "-c", code, *arguments]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def of_rank(pid: int, run: Path) -> str:
    """The RANK that torchrun gave a process of the training ``run``; empty for any other process."""
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
        command = Path(f"/proc/{pid}/cmdline").read_bytes().decode()
    except OSError:
        return ""
    variables = dict(entry.partition("=")[::2] for entry in environment if entry)
    own = str(run.parent) in command and "distributed.run" not in command
    return variables.get("RANK", "") if own else ""


@pytest.fixture(scope="module")
def shared_run(manifests, tmp_path_factory) -> tuple[Path, str]:
    """A run trained by two processes, and what was shown."""
    out = tmp_path_factory.mktemp("ranks")
    options = settings_options(manifests, "train.epochs=1", "train.ema=0.5", "train.accumulate=2")
    result = torchrun("train", "--out", out, "--run", "two", *options)
    assert result.returncode == 0, result.stderr
    return out, result.stdout + result.stderr


def test_without_torchrun_nothing_is_started(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "4")  # some clusters set it everywhere
    assert (ranks.rank(), ranks.count(), ranks.is_first()) == (0, 1, True)
    with ranks.together():
        assert not torch.distributed.is_initialized()
        assert ranks.gather("mine") == ["mine"]
        assert ranks.on_first(lambda: 7) == 7


@pytest.mark.parametrize("items", [0, 1, 2, 5, 6])
def test_shared_items_come_back_in_order(monkeypatch, items):
    monkeypatch.setenv("WORLD_SIZE", "3")
    parts = []
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        parts.append(ranks.share(range(items)))
    assert sorted(sum(parts, [])) == list(range(items))
    assert ranks.interleave(parts) == list(range(items))


@pytest.mark.parametrize("count", [1, 2, 4])
def test_processes_together_draw_the_batches_of_one_process(count):
    whole = EpochSampler(["benign"] * 9 + ["normal"] * 14, seed=3)
    shares = [RankSampler(whole, 8, rank, count) for rank in range(count)]
    for sampler in shares:
        sampler.set_epoch(2)
    drawn = [list(sampler) for sampler in shares]
    assert [len(part) for part in drawn] == [len(sampler) for sampler in shares] == [16 // count] * count
    part = 8 // count
    for batch in range(2):
        together = [draw for share in drawn for draw in share[batch * part : (batch + 1) * part]]
        assert together == list(whole)[batch * 8 : (batch + 1) * 8]


def test_two_processes_print_and_write_as_one(shared_run):
    _, shown = shared_run
    assert shown.count("Training ") == 1 and shown.count("best validation lesion Dice") == 1
    assert shown.count("epoch 1/1") == 1


@pytest.mark.slow
def test_two_processes_validate_as_one_does_to_the_last_digit(shared_run):
    """Every image once, on the same weights and the same batch norm statistics."""
    out, _ = shared_run
    result = invoke("evaluate", "--out", out, "--run", "two", "--split", "val")
    assert result.exit_code == 0, result.stderr
    score = read_header(out / "two" / "best.safetensors")["score"]
    model = read_summary(out / "two" / "eval-bus-uclm-val")["summaries"]["model"]
    table = pd.read_csv(out / "two" / "eval-bus-uclm-val" / "per_image.csv")
    assert len(table) == len(Run(out / "two").manifest().used("val"))
    assert model["metrics"]["dice_lesion"]["mean"] == score["val_dice_lesion"]


@pytest.mark.slow
def test_crosseval_by_two_processes_writes_what_one_writes(shared_run, manifests):
    out, _ = shared_run
    target = ("crosseval", "--out", out, "--run", "two", "--target", "busi")
    options = ("--manifests", manifests / "data_manifests")
    alone = invoke(*target, *options)
    assert alone.exit_code == 0, alone.stderr
    folder = out / "two" / "eval-busi-all"
    names = sorted(
        path.relative_to(folder) for path in folder.rglob("*") if path.suffix in (".csv", ".json", ".png")
    )
    before = {
        name: (folder / name).read_bytes() for name in names if name.suffix != ".png" or "masks" in name.parts
    }
    for name in names:
        (folder / name).unlink()
    together = torchrun(*target, *options)
    assert together.returncode == 0, together.stderr
    assert together.stdout == alone.stdout
    assert {name: (folder / name).read_bytes() for name in before} == before


# Every value of every option with every value of each other one at least once. Batch norm over GPUs is refused on CPUs.
COMBINATIONS = """
model.attention=scse model.bottleneck=aspp model.deep_supervision=true  train.ema=0.5 train.accumulate=2 train.precision=fp32 heads.image=0.2 heads.detached=false model.perturb_norm=0.5 model.exchange_style=0.5 model.decoder_norm=instance heads.shape=0.2 heads.consistency=0.2
model.attention=scse model.bottleneck=null model.deep_supervision=false train.ema=0   train.accumulate=1 train.precision=bf16 heads.image=0.2 model.perturb_norm=0.5 model.exchange_style=0.5 heads.shape=0.2 heads.consistency=0.2
model.attention=null model.bottleneck=aspp model.deep_supervision=false train.ema=0.5 train.accumulate=1 train.precision=bf16 heads.image=0.2 model.decoder_norm=instance
model.attention=null model.bottleneck=null model.deep_supervision=true  train.ema=0   train.accumulate=2 train.precision=bf16 model.perturb_norm=0.5 model.exchange_style=0.5 model.decoder_norm=instance
model.attention=null model.bottleneck=aspp model.deep_supervision=true  train.ema=0   train.accumulate=1 train.precision=fp32 heads.shape=0.2
model.attention=scse model.bottleneck=null model.deep_supervision=false train.ema=0.5 train.accumulate=2 train.precision=fp32
"""

# Two updates by each process from other images: a parameter without a gradient stops the second.
_STEPS = """
import sys, torch
from bus_smp.config import load_settings
from bus_smp.system import ranks
from bus_smp.system.engine import make_engine
from bus_smp.training.step import ImageTargets, TrainingStep
with ranks.together():
    for line in sys.argv[1].strip().splitlines():
        settings = load_settings(None, ["model.encoder_name=tu-test_resnet", *line.split()])
        torch.manual_seed(1)
        step = TrainingStep(settings, make_engine("cpu", settings.train.precision))
        group = settings.train.accumulate
        torch.manual_seed(10 + ranks.rank())
        for number in range(2 * group):
            images = torch.randint(256, (2, 32, 32, 3), dtype=torch.uint8)
            masks = torch.randint(3, (2, 32, 32), dtype=torch.uint8)
            whole = ImageTargets(torch.randint(3, (2,)), torch.rand(2, 4), torch.ones(2))
            losses = step(images, masks, group, number % group == group - 1, whole)
            assert torch.isfinite(losses).all(), line
        step.share_buffers()
        sums = [sum(t.double().abs().sum().item() for t in step.best_model.state_dict().values())]
        assert len(set(ranks.gather(sums[0]))) == 1, line
        missing = [name for name, weight in step.model.named_parameters() if weight not in step.optimizer.state]
        assert not missing, (line, missing)
    print("all done")
"""


def test_options_work_together_with_several_processes():
    assert run_by_two(_STEPS, COMBINATIONS).count("all done") == 2


def kill_second(job: subprocess.Popen, run: Path) -> None:
    """Kill the process of rank 1 when the first epoch is complete."""
    deadline = time.monotonic() + 200
    while not (run / "last.ckpt").exists() and time.monotonic() < deadline:
        assert job.poll() is None, job.communicate()
        time.sleep(0.02)
    (victim,) = [
        int(entry.name) for entry in Path("/proc").glob("[0-9]*") if of_rank(int(entry.name), run) == "1"
    ]
    os.kill(victim, signal.SIGKILL)


def test_a_process_that_dies_ends_the_job_and_leaves_a_state_to_continue(manifests, tmp_path):
    options = settings_options(manifests, "train.epochs=500")
    job = torchrun("train", "--out", tmp_path, "--run", "killed", *options, wait=False)
    kill_second(job, tmp_path / "killed")
    _, shown = job.communicate(timeout=250)
    assert job.returncode != 0
    assert "bus_smp/cli.py" not in shown, "no traceback of ours"
    assert read_state(Run(tmp_path / "killed").state_path, make_engine("cpu", "fp32"))["history"]


@pytest.mark.slow
def test_a_restart_continues_a_job_of_which_a_process_died_to_the_same_bits(manifests, tmp_path):
    options = settings_options(manifests, "train.epochs=3", "train.batch_size=4")
    whole = torchrun("train", "--out", tmp_path, "--run", "whole", *options)
    assert whole.returncode == 0, whole.stderr
    job = torchrun("train", "--out", tmp_path, "--run", "killed", *options, restarts=1, wait=False)
    kill_second(job, tmp_path / "killed")
    shown = job.communicate(timeout=250)
    assert job.returncode == 0, shown
    assert "Continuing" in shown[1]
    for name in ("best.safetensors", "metrics.csv"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("train.batch_size=9", "2 processes cannot share"),
        pytest.param("train.sync_batchnorm=true", "needs GPUs", marks=pytest.mark.slow),
        pytest.param("train.lr=1e30", "the loss became", marks=pytest.mark.slow),
    ],
)
def test_an_error_is_shown_once_and_ends_the_job(manifests, tmp_path, setting, words):
    options = settings_options(manifests, setting, "train.precision=fp32")
    result = torchrun("train", "--out", tmp_path, "--run", "x", *options)
    assert result.returncode != 0
    assert words in result.stderr
    assert "bus_smp/cli.py" not in result.stderr, "no traceback of ours"
    assert not (tmp_path / "x" / "best.safetensors").exists()


def test_an_error_of_the_first_process_reaches_all():
    code = (
        "import os\nfrom bus_smp.system import ranks\nfrom bus_smp.errors import ConfigError\n"
        "def fail(): raise ConfigError('no room', hint='make some')\n"
        "with ranks.together():\n"
        "    try: ranks.on_first(fail)\n"
        "    except ConfigError as error: told = [error.what, error.hint, ranks.is_shown_by_first(error)]\n"
        "    os.write(1, f'{ranks.gather(told)[ranks.rank()]}\\n'.encode())\n"  # whole: two processes write
    )
    assert sorted(run_by_two(code).splitlines()) == [
        "['no room', 'make some', False]",
        "['no room', 'make some', True]",
    ]
