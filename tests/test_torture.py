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
from whole import check_run, differences, hidden, is_free

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="watches processes and files as Linux shows them"
)

SETTINGS = (
    "train.epochs=3",
    "train.batch_size=16",
    # bf16, except on a CPU that would have to emulate it many times slower.
    "train.precision=auto",
    "train.ema=0.9",
    "train.accumulate=2",
)
# A training that receives a signal when it is about to give a file its final name for the n-th time.
SIGNALLED = """
import os, sys

name, number, occurrence = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
seen = 0

def watch(event, arguments):
    global seen
    if event == "os.rename" and name in os.path.basename(os.fspath(arguments[1])):
        seen += 1
        if seen == occurrence:
            os.kill(os.getpid(), number)

sys.addaudithook(watch)
from bus_smp.cli import main
del sys.argv[1:4]
main()
"""
KILLS = (
    ("last.ckpt", signal.SIGKILL, 2),
    ("metrics.csv", signal.SIGTERM, 1),
)


@pytest.fixture
def no_git(monkeypatch, tmp_path):
    """A commit that is made meanwhile is no difference."""
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "none"))


@pytest.mark.slow
def test_a_training_killed_at_two_moments_ends_with_the_same_bytes(tmp_path, no_git):
    """Each start goes on with another number of loader processes; the last one is not disturbed."""
    hear_ctrl_c()
    training = kills.make_training(tmp_path / "data", SETTINGS)
    whole, run = tmp_path / "whole" / "run", tmp_path / "killed" / "run"
    result = invoke("train", "--out", whole.parent, "--run", "run", *training.options(tmp_path / "cache", 0))
    assert result.exit_code == 0, result.stderr
    for workers, (name, number, occurrence) in enumerate(KILLS):
        options = training.options(tmp_path / "cache", workers % 2)
        command = [
            sys.executable,
            "-c",
            SIGNALLED,
            name,
            number.value,
            occurrence,
            "train",
            "--out",
            run.parent,
            "--run",
            "run",
            *options,
        ]
        killed = subprocess.run([str(part) for part in command], capture_output=True, text=True)
        gentle = number != signal.SIGKILL
        assert killed.returncode == (128 + number if gentle else -number), (name, killed.stderr)
        assert killed.stderr.count(kills.WORDS) == gentle and "Traceback" not in killed.stderr
        check_run(run)
        assert is_free(run)
    end = invoke("train", "--out", run.parent, "--run", "run", *training.options(tmp_path / "cache", 2))
    assert end.exit_code == 0, end.stderr
    assert "Continuing" in end.stderr
    assert differences(run, whole) == [] and hidden(run) == []


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("BUS_SMP_TORTURE"), reason="needs an idle machine: make torture")
def test_kills_at_any_moment_leave_no_trace(tmp_path):
    command = [
        sys.executable,
        str(Path(kills.__file__)),
        "--kills",
        "8",
        "--epochs",
        "2",
        "--variant",
        "auto",
    ]
    done = subprocess.run([*command, "--folder", str(tmp_path / "kills")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


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
    _, shown = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert shown.strip().splitlines()[-1] == kills.WORDS and "Traceback" not in shown
    assert not list(tmp_path.glob("*/*"))


def test_only_the_training_reacts_to_ctrl_c_and_not_its_loaders(manifests, tmp_path):
    """The terminal sends it to all of them: each loader would show a traceback of its own."""
    hear_ctrl_c()
    options = settings_options(manifests, "train.epochs=500", "runtime.workers=2")
    command = [sys.executable, "-m", "bus_smp", "train", "--out", str(tmp_path), *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    shown = []
    for line in process.stderr:
        shown.append(line)
        if line.startswith("epoch 2/"):  # the loaders have served an epoch
            break
    os.killpg(process.pid, signal.SIGINT)
    shown += process.communicate(timeout=60)[1].splitlines(keepends=True)
    assert process.returncode == 128 + signal.SIGINT
    assert shown[-1].strip() == kills.WORDS and "Traceback" not in "".join(shown)
    with pytest.raises(ProcessLookupError):  # nobody is left in the session
        os.killpg(process.pid, 0)


STUCK = """
import ctypes, sys, time
from bus_smp.system import signals
signals.GRACE = 0.5
signals.listen("Stopped.")
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
def test_a_process_that_cannot_handle_the_signal_ends_anyway(how):
    """Waiting in compiled code, an exception that somebody swallows, one that is lost in a destructor."""
    process = subprocess.Popen(
        [sys.executable, "-c", STUCK, how], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    _, shown = process.communicate(timeout=30)
    assert (process.returncode, shown.strip()) == (143, "Stopped.")


SWALLOWS = """
import time
print("ready", flush=True)
try:
    time.sleep(60)
except BaseException:
    pass
print("went on", flush=True)
"""


def test_a_signal_during_an_import_ends_the_process_at_once(tmp_path):
    (tmp_path / "optional.py").write_text(SWALLOWS)
    code = "from bus_smp.system import signals\nsignals.GRACE = 1000\nsignals.listen('Stopped.')\nimport optional\n"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[1]}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    rest, shown = process.communicate(timeout=30)
    assert (process.returncode, shown.strip(), rest) == (143, "Stopped.", "")


FOLLOWS = """
import os, time
from bus_smp.system import signals
if os.fork() == 0:
    signals.follow_parent()
    print("ready", flush=True)
time.sleep(600)
"""


def test_a_child_ends_with_its_killed_parent():
    process = subprocess.Popen([sys.executable, "-c", FOLLOWS], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.kill()
    process.communicate(timeout=60)  # waits until nobody holds the other end of the pipe


def test_a_second_signal_ends_at_once_and_an_ignored_one_is_ignored():
    code = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "from bus_smp.system import signals\n"
        "signals.listen('Stopped.')\n"
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
    _, shown = process.communicate(timeout=6)
    assert (process.returncode, shown.strip()) == (143, "Stopped.")
