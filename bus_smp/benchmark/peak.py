"""Peak memory of one forward pass, in a process that has done nothing else.

Run as ``python -m bus_smp.benchmark.peak NAME ENCODER SIZE BATCH DEVICE DTYPE``, it prints megabytes.
"""

import contextlib
import ctypes
import gc
import subprocess
import sys
from pathlib import Path

MEGABYTE = 1e6


def peak_memory(name: str, encoder: str, size: int, batch: int, device: str, dtype: str) -> float | None:
    """Megabytes that one forward pass needs on top of the weights; None where the system does not tell.

    On a CPU the greatest resident memory minus that before the pass; on CUDA what PyTorch has allocated
    (``torch.cuda.max_memory_allocated``), minus what it had before.

    Args:
        dtype: ``float32``, ``bfloat16`` or ``float16``.
    """
    arguments = [name, encoder, str(size), str(batch), device, dtype]
    done = subprocess.run(
        [sys.executable, "-m", "bus_smp.benchmark.peak", *arguments], capture_output=True, text=True
    )
    last = (done.stdout.strip().splitlines() or ["none"])[-1]
    return None if done.returncode or last == "none" else float(last)


def _measure(name: str, encoder: str, size: int, batch: int, device: str, dtype: str) -> float | None:
    import torch

    from bus_smp.benchmark.networks import build, for_prediction
    from bus_smp.system.engine import Engine

    engine = Engine(torch.device(device), getattr(torch, dtype))
    network = for_prediction(build(name, encoder)).to(engine.device, memory_format=torch.channels_last)
    images = torch.zeros(batch, 3, size, size).to(engine.device, memory_format=torch.channels_last)
    with torch.inference_mode(), engine.autocast():
        if engine.device.type == "cuda":
            network(images)  # tuning takes memory of its own, once
            torch.cuda.synchronize()
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            network(images)
            return (torch.cuda.max_memory_allocated() - before) / MEGABYTE
        gc.collect()
        before = _forget_peak()
        network(images)
    after = _resident("VmHWM")
    return None if before is None or after is None else (after - before) / MEGABYTE


def _forget_peak() -> int | None:
    """Give freed memory back and start the peak anew; the resident bytes, None on a system without Linux's /proc."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)  # else the pass would take what building the network has freed
    try:
        Path("/proc/self/clear_refs").write_text("5")  # man 5 proc: resets the peak
    except OSError:
        return None
    return _resident("VmRSS")


def _resident(field: str) -> int | None:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    return None


if __name__ == "__main__":
    found = _measure(*sys.argv[1:3], int(sys.argv[3]), int(sys.argv[4]), *sys.argv[5:7])
    print("none" if found is None else found)
