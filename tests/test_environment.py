"""What is recorded with a run: enough to repeat it, nothing that names a machine or a person."""

import getpass
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from bus_smp.system import environment
from bus_smp.system.engine import make_engine
from bus_smp.system.threads import count_cores


def test_the_commit_of_the_checkout_is_recorded():
    here = Path(environment.__file__).parent
    head = subprocess.run(["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True)
    if head.returncode:
        pytest.skip("the package does not run from a git checkout")
    assert environment.git_commit().rstrip("+") == head.stdout.strip()


def test_what_the_bits_of_a_result_depend_on_is_recorded():
    """By what PyTorch does with it: fewer instructions and threads are seen in what is recorded."""
    code = (
        "import json; from bus_smp.system.engine import make_engine, set_determinism; set_determinism(True)\n"
        "from bus_smp.system.environment import describe_environment\n"
        "print(json.dumps(describe_environment(make_engine('cpu', 'bf16'))))"
    )

    def of(**variables):
        result = subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, **variables}, capture_output=True, text=True
        )
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)

    one = of(ATEN_CPU_CAPABILITY="default", OMP_NUM_THREADS="1", SECRET="x")
    assert one["cpu_capability"].split()[0] in ("DEFAULT", "NO") and one["threads"] == 1
    assert one["variables"].keys() >= {"ATEN_CPU_CAPABILITY", "OMP_NUM_THREADS"}
    assert "SECRET" not in one["variables"]
    assert (one["processes"], one["precision"], one["deterministic"]) == (1, "bf16", True)
    assert one["device"] and one["packages"]["torch"] and one["float32_products"] == "highest"


def test_neither_host_nor_user_nor_path_is_recorded():
    text = json.dumps(environment.describe_environment(make_engine("cpu", "fp32")))
    assert json.loads(text)["packages"]["torch"]
    words = set(text.replace('"', " ").replace(",", " ").split())
    assert not words & {platform.node(), getpass.getuser(), str(Path.home())}


CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


@pytest.mark.parametrize(
    ("membership", "files", "cores"),
    [
        ("0::/job/step", {"job/cpu.max": "100000 100000"}, 1),
        ("0::/job/step", {"job/step/cpu.max": "max 100000", "job/cpu.max": "150000 100000"}, 2),
        # in a container, whose path is that of the host
        ("0::/docker/0123", {"cpu.max": "50000 100000"}, 1),
        (
            "4:cpu,cpuacct:/job",
            {"cpu/job/cpu.cfs_quota_us": "100000", "cpu/job/cpu.cfs_period_us": "100000"},
            1,
        ),
        ("4:cpu,cpuacct:/job", {"cpu/job/cpu.cfs_quota_us": "-1", "cpu/job/cpu.cfs_period_us": "100000"}, 64),
        ("0::/", {"cpu.max": "max 100000"}, 64),
        ("", {}, 64),
    ],
)
def test_cores_that_a_container_or_a_job_withholds_do_not_count(tmp_path, membership, files, cores):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    (tmp_path / "own").write_text(membership + "\n" if membership else "")
    assert count_cores(tmp_path, tmp_path / "own") == min(cores, CORES)


@pytest.mark.parametrize(
    ("own", "shown"),
    [({}, "1000 None"), ({"GOMP_SPINCOUNT": "7"}, "7 None"), ({"OMP_WAIT_POLICY": "active"}, "None active")],
)
def test_threads_spin_briefly_unless_the_user_chose_how_they_wait(own, shown, tmp_path):
    """In a process as a user starts it, before PyTorch is there."""
    (tmp_path / "sitecustomize.py").write_text(
        "import atexit, os, sys\n"
        "names = ('GOMP_SPINCOUNT', 'OMP_WAIT_POLICY')\n"
        "atexit.register(lambda: print(*(os.environ.get(name) for name in names), 'torch' in sys.modules))\n"
    )
    removed = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    environ = {key: value for key, value in os.environ.items() if key not in removed} | own
    environ["PYTHONPATH"] = os.pathsep.join([str(tmp_path), str(Path(environment.__file__).parents[2])])
    command = [sys.executable, "-m", "bus_smp", "--version"]
    result = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == f"{shown} False"
