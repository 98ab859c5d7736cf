"""A few kills of ``tests/torture/kills.py``, the same each time, and the same bits from other processes and precisions."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import invoke, settings_options

sys.path.append(str(Path(__file__).parent / "torture"))

import kills
from training import MOMENTS, catches_sigterm, hear_ctrl_c
from whole import differences

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="watches processes and files as Linux shows them"
)

SETTINGS = (
    "train.epochs=2",
    "train.batch_size=16",
    "train.precision=auto",  # bf16 is many times slower on a CPU that has to imitate it
    "train.ema=0.9",
    "train.accumulate=2",
)
FEW = (
    kills.Kill("cache", signal.SIGTERM, True),
    kills.Kill("last.ckpt", signal.SIGKILL, False, 2),
    kills.Kill("validation", signal.SIGINT, True),
    kills.Kill("curves", signal.SIGTERM, False),
)


@pytest.fixture
def no_git(monkeypatch, tmp_path):
    """A commit that is made meanwhile is no difference."""
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "none"))


def test_killed_at_four_moments_a_training_ends_with_the_same_bytes(tmp_path, no_git):
    training = kills.make_training(tmp_path / "data", SETTINGS)
    whole = tmp_path / "whole" / "outputs" / "run"
    result = invoke(
        "train", "--out", whole.parent, "--run", "run", *training.options(tmp_path / "whole" / "cache", 0)
    )
    assert result.exit_code == 0, result.stderr
    missed = []
    for attempt in range(3):  # a busy machine may let a training end before its moment is seen
        torture = kills.Torture(training, tmp_path / f"killed-{attempt}", random.Random(attempt))
        todo, done = list(FEW), []
        while todo and (one := torture.once(todo)) is not None:
            assert one.problems == (), one
            done.append(one.hit)
        options = training.options(torture.cache, 2)
        end = invoke("train", "--out", torture.run.parent, "--run", "run", *options)
        assert end.exit_code == 0, end.stderr
        assert kills.at_the_end(torture, whole) == []
        missed = sorted({kill.moment for kill in FEW} - set(done))
        if not missed:
            return
    pytest.fail(f"in three trainings never killed while {', '.join(missed)}")


def test_the_plan_holds_every_moment_and_every_signal():
    plan = kills.plan_kills(24, random.Random(1))
    assert len(plan) == 24 and {kill.moment for kill in plan} == {*MOMENTS, "any"}
    assert {kill.signal for kill in plan} == set(kills.SIGNALS) and {kill.all_of_it for kill in plan} == {
        True,
        False,
    }
    assert plan == kills.plan_kills(24, random.Random(1)) != kills.plan_kills(24, random.Random(2))


TWICE = """
import sys
from bus_smp.cli import main
for precision in sys.argv[1].split(","):
    main([*sys.argv[2:], "--run", precision, "--set", f"train.precision={precision}"])
"""


def test_the_same_bits_in_fp32_and_bf16_whatever_process_and_workers(manifests, tmp_path, no_git):
    """In this process and in another, which trains in the other order and with another hash seed."""

    def command(name: str, workers: int) -> list[str]:
        own = ("train.epochs=1", "train.batch_size=16", "data.size=32", f"runtime.workers={workers}")
        return ["train", "--out", str(tmp_path / name), *settings_options(manifests, *own)]

    for precision in ("fp32", "bf16"):
        here = invoke(*command("here", 0), "--run", precision, "--set", f"train.precision={precision}")
        assert here.exit_code == 0, here.stderr
    result = subprocess.run(
        [sys.executable, "-c", TWICE, "bf16,fp32", *command("there", 2)],
        env={**os.environ, "PYTHONHASHSEED": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    for precision in ("fp32", "bf16"):
        assert differences(tmp_path / "there" / precision, tmp_path / "here" / precision) == []
    assert differences(tmp_path / "here" / "bf16", tmp_path / "here" / "fp32") != []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_at_the_start_is_one_line(manifests, tmp_path, number):
    """During the imports; nothing is written yet."""
    hear_ctrl_c()
    command = [sys.executable, "-m", "bus_smp", "train", "--out", tmp_path, *settings_options(manifests)]
    process = subprocess.Popen([str(part) for part in command], stderr=subprocess.PIPE, text=True)
    while not catches_sigterm(process.pid):
        time.sleep(0.01)
    time.sleep(0.3)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert said.strip().splitlines()[-1] == kills.WORDS and "Traceback" not in said
    assert not list(tmp_path.glob("*/*"))


def test_ctrl_c_is_the_trainings_business_and_not_its_loaders(manifests, tmp_path):
    """The terminal sends it to all of them: each loader would show a traceback of its own."""
    hear_ctrl_c()
    options = settings_options(manifests, "train.epochs=500", "runtime.workers=2")
    command = [sys.executable, "-m", "bus_smp", "train", "--out", str(tmp_path), *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    said = []
    for line in process.stderr:
        said.append(line)
        if line.startswith("epoch 2/"):  # the loaders have served an epoch
            break
    os.killpg(process.pid, signal.SIGINT)
    said += process.communicate(timeout=60)[1].splitlines(keepends=True)
    assert process.returncode == 128 + signal.SIGINT
    assert said[-1].strip() == kills.WORDS and "Traceback" not in "".join(said)
    with pytest.raises(ProcessLookupError):  # nobody is left in the session
        os.killpg(process.pid, 0)


STUCK = """
import ctypes, sys, time
from bus_smp.system import signals as stopping
stopping.GRACE = 0.5
stopping.listen("Stopped.")
print("ready", flush=True)
if sys.argv[1] == "waits":  # in compiled code, for ever: a lock that is taken twice
    libc, lock = ctypes.CDLL(None), ctypes.create_string_buffer(64)
    libc.pthread_mutex_lock(lock)
    libc.pthread_mutex_lock(lock)
elif sys.argv[1] == "swallows":
    while True:
        try:
            time.sleep(60)
        except BaseException:
            pass
else:
    class Lost:
        def __del__(self):
            time.sleep(60)
    Lost()
    time.sleep(60)
"""


@pytest.mark.parametrize("how", ["waits", "swallows", "loses"])
def test_who_cannot_hear_the_signal_ends_all_the_same(how):
    """Waiting in compiled code, an exception that somebody swallows, one that is lost in a destructor."""
    process = subprocess.Popen(
        [sys.executable, "-c", STUCK, how], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=30)
    assert (process.returncode, said.strip()) == (143, "Stopped.")


SWALLOWS = """
import time
print("ready", flush=True)
try:
    time.sleep(60)
except BaseException:
    pass
print("went on", flush=True)
"""


def test_a_signal_during_an_import_ends_at_once_whoever_would_swallow_it(tmp_path):
    (tmp_path / "optional.py").write_text(SWALLOWS)
    code = (
        "from bus_smp import stopping\nstopping.GRACE = 1000\nstopping.listen('Stopped.')\nimport optional\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[1]}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    rest, said = process.communicate(timeout=30)
    assert (process.returncode, said.strip(), rest) == (143, "Stopped.", "")


FOLLOWS = """
import os, time
from bus_smp.system import signals as stopping
if os.fork() == 0:
    stopping.follow_parent()
    print("ready", flush=True)
time.sleep(600)
"""


def test_who_serves_a_parent_that_is_killed_ends_with_it():
    process = subprocess.Popen([sys.executable, "-c", FOLLOWS], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.kill()
    process.communicate(timeout=60)  # waits until nobody holds the other end of the pipe


def test_a_second_signal_ends_at_once_and_an_ignored_one_is_ignored():
    code = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "from bus_smp import stopping\n"
        "stopping.listen('Stopped.')\n"
        "signal.raise_signal(signal.SIGINT)\n"
        "try:\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(60)\n"
        "except KeyboardInterrupt:\n"
        "    print('closing', flush=True)\n"
        "    time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for line in ("ready\n", "closing\n"):
        assert process.stdout.readline() == line
        process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=6)
    assert (process.returncode, said.strip()) == (143, "Stopped.")
