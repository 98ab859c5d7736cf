"""Device, precision and determinism, chosen in one place. The same code runs on CPU and CUDA."""

import contextlib
import os
import re
from dataclasses import dataclass

import torch

from bus_smp.errors import ConfigError
from bus_smp.system import ranks


@dataclass(frozen=True)
class Engine:
    """Where tensors live and in which type products are computed.

    ``dtype`` is float32, bfloat16 or float16; weights and losses stay float32 in every case.
    """

    device: torch.device
    dtype: torch.dtype

    def autocast(self) -> contextlib.AbstractContextManager:
        """Mixed precision for the forward pass; nothing in float32."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def make_scaler(self) -> torch.amp.GradScaler:
        """Loss scaling, active only for float16, because bfloat16 has the exponent range of float32."""
        return torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)

    @property
    def precision(self) -> str:
        """``fp32``, ``bf16`` or ``fp16``."""
        return {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[self.dtype]


def make_engine(device: str = "auto", precision: str = "auto", trained_in: str = "") -> Engine:
    """Choose device and precision.

    Args:
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        precision: ``fp32``, ``bf16``, ``fp16``, or ``auto``: that of the training, if the device computes in
            it natively, so that a number means the same afterwards; else the fastest.
        trained_in: precision of the training; empty in training itself.

    Raises:
        ConfigError: if there is no such device, or the precision does not exist there.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        raise ConfigError(f"unknown device {device!r}", hint="use auto, cpu, cuda or cuda:N")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if ranks.count() > 1 and ":" in device:
        raise ConfigError(f"{device}: each process needs its own GPU", hint="use cuda, auto or cpu")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(
            f"no CUDA device is available ({_why_no_cuda()})",
            hint="use cpu (or auto): --device cpu, in training --set runtime.device=cpu",
        )
    if ranks.count() > 1 and device == "cuda":
        device = f"cuda:{ranks.local_rank()}"
    place = torch.device(device)
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"{device} does not exist; this machine has {torch.cuda.device_count()} CUDA devices"
        )
    if precision == "auto":
        fast = _fast_precision(place)
        native = {"fp32", fast} | ({"fp16"} if place.type == "cuda" else set())
        precision = trained_in if trained_in in native else fast
    if precision == "fp16" and place.type == "cpu":
        raise ConfigError("fp16 needs a GPU", hint="on a CPU use --set train.precision=bf16 (or auto)")
    if precision == "bf16" and place.type == "cuda" and _fast_precision(place) != "bf16":
        raise ConfigError(
            f"{device} computes bf16 only by imitation, many times slower",
            hint="use fp16: in training --set train.precision=fp16 (or auto), else --precision fp16",
        )
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    return Engine(place, dtype)


def _why_no_cuda() -> str:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return f"CUDA_VISIBLE_DEVICES={visible!r} leaves none; unset CUDA_VISIBLE_DEVICES, or name one that nvidia-smi -L lists"
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        # such as: the NVIDIA driver on your system is too old (found version ...)
        return str(error).splitlines()[0].split(". ")[0]
    return "PyTorch finds none"


def _fast_precision(device: torch.device) -> str:
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    # Without bf16 instructions the CPU emulates them, several times slower than fp32.
    capabilities = torch.backends.cpu.get_cpu_capability()
    return "bf16" if capabilities.startswith("AVX512") and _cpu_has_bf16() else "fp32"


def _cpu_has_bf16() -> bool:
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, check, lambda: False)() for check in checks)


def set_determinism(wanted: bool) -> None:
    """Choose between algorithms that give the same bits each time (an error where there is none) and the fastest."""
    # On CUDA the fastest is found by trying, which pays because all batches have one shape.
    torch.backends.cudnn.benchmark = not wanted
    torch.use_deterministic_algorithms(wanted)
    # Else PyTorch also fills all new memory, 7 % of a training step on a CPU. It helps to find code that reads
    # memory it never wrote; results do not change by it.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if wanted:
        # read by cuBLAS when it starts, so it is set before the first CUDA call
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
