"""What a result was made with: versions, hardware, precision, commit."""

import contextlib
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from bus_smp import __version__
from bus_smp.engine import Engine

_PACKAGES = (
    "torch", "torchvision", "segmentation-models-pytorch", "timm", "albumentations",
    "opencv-python-headless", "numpy", "pandas", "scikit-learn", "pillow",
)  # fmt: skip


def describe_environment(engine: Engine) -> dict[str, Any]:
    """Versions, hardware and precision, as JSON-ready values; no host name, no user name, no path."""
    device = torch.cuda.get_device_name(engine.device) if engine.device.type == "cuda" else _cpu_name()
    return {
        "bus_smp": __version__,
        "git_commit": git_commit(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "packages": package_versions(),
        "device": device,
        "cuda": torch.version.cuda if engine.device.type == "cuda" else None,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "precision": engine.precision,
    }


def package_versions() -> dict[str, str]:
    """Installed versions of the packages that can change a result."""
    versions = {}
    for name in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def git_commit() -> str | None:
    """Commit of the checkout this package runs from, with ``+`` if files differ; None outside one."""
    package = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(package), *arguments], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        git(
            "ls-files", "--error-unmatch", "__init__.py"
        )  # a virtual environment inside another checkout is not ours
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
