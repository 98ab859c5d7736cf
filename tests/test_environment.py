"""What is recorded with a run: enough to repeat it, nothing that names a machine or a person."""

import getpass
import json
import platform
import subprocess
from pathlib import Path

import pytest

from bus_smp import environment
from bus_smp.engine import make_engine


def test_the_commit_of_the_checkout_is_recorded():
    here = Path(environment.__file__).parent
    head = subprocess.run(["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True)
    if head.returncode:
        pytest.skip("the package does not run from a git checkout")
    assert environment.git_commit().rstrip("+") == head.stdout.strip()


def test_neither_host_nor_user_nor_path_is_recorded():
    text = json.dumps(environment.describe_environment(make_engine("cpu", "fp32")))
    assert json.loads(text)["packages"]["torch"]
    words = set(text.replace('"', " ").replace(",", " ").split())
    assert not words & {platform.node(), getpass.getuser(), str(Path.home())}
