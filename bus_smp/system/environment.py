"""What a result was made with: versions, hardware, precision, commit."""

import contextlib
import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from bus_smp import __version__
from bus_smp.system import ranks
from bus_smp.system.engine import Engine

_PACKAGES = (
    "torch", "torchvision", "segmentation-models-pytorch", "timm", "albumentations",
    "opencv-python-headless", "numpy", "pandas", "scikit-learn", "pillow",
)  # fmt: skip


# Environment variables that decide how many threads compute and with which instructions.
_VARIABLES = (
    "ATEN_CPU_CAPABILITY", "CUBLAS_WORKSPACE_CONFIG", "KMP_AFFINITY", "MKL_CBWR", "MKL_NUM_THREADS",
    "NVIDIA_TF32_OVERRIDE", "OMP_NUM_THREADS", "ONEDNN_DEFAULT_FPMATH_MODE", "ONEDNN_MAX_CPU_ISA",
)  # fmt: skip


def describe_environment(engine: Engine) -> dict[str, Any]:
    """What must be the same, besides settings and data, to get the same bits on another machine, as JSON values.

    Versions, hardware, instructions, threads, processes and precision; no host name, no user name, no path.
    """
    device = device_name(engine)
    return {
        "bus_smp": __version__,
        "git_commit": git_commit(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "packages": package_versions(),
        "device": device,
        "cuda": torch.version.cuda if engine.device.type == "cuda" else None,
        "cudnn": torch.backends.cudnn.version() if engine.device.type == "cuda" else None,
        "cpu_capability": cpu_capability(),
        "libraries": _libraries(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "processes": ranks.count(),
        "precision": engine.precision,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "float32_products": torch.get_float32_matmul_precision(),
        "variables": {name: os.environ[name][:100] for name in _VARIABLES if name in os.environ},
    }


def device_name(engine: Engine) -> str:
    """The model of the GPU or CPU."""
    return torch.cuda.get_device_name(engine.device) if engine.device.type == "cuda" else _cpu_name()


def cpu_capability() -> str:
    """The instructions that PyTorch's kernels use: "AVX2", "AVX512" and so on, and those for bf16 and matrices."""
    further = {
        "amx": "_is_amx_tile_supported",
        "bf16": "_is_avx512_bf16_supported",
        "vnni": "_is_vnni_supported",
    }
    there = [name for name, check in further.items() if getattr(torch.cpu, check, lambda: False)()]
    return " ".join([torch.backends.cpu.get_cpu_capability(), *there])


def _libraries() -> dict[str, str]:
    """Versions of the compiled libraries that PyTorch brings: their kernels sum in another order from one to the next."""
    built = torch.__config__.show()
    patterns = {"mkl": r"Math Kernel Library Version (\S+)", "onednn": r"MKL-DNN v(\S+)"}
    return {name: found[1] for name, pattern in patterns.items() if (found := re.search(pattern, built))}


def package_versions() -> dict[str, str]:
    """Installed versions of the packages that can change a result."""
    versions = {}
    for name in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def git_commit() -> str | None:
    """Commit of the checkout this package runs from, with ``+`` if files differ; None outside one."""
    package = Path(__file__).resolve().parents[1]

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(package), *arguments], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        # fails in a virtual environment inside the checkout of another project
        git("ls-files", "--error-unmatch", "__init__.py")
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
