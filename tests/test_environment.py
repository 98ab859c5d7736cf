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
