"""Peak memory of one forward pass, in a process that has done nothing else.

``python -m bus_smp.model_comparison.peak_memory NAME ENCODER SIZE BATCH DEVICE DTYPE`` prints megabytes.
"""

import contextlib
import ctypes
import gc
import subprocess
import sys
from pathlib import Path

MEGABYTE = 1e6


def peak_memory(name: str, encoder: str, size: int, batch: int, device: str, dtype: str) -> float | None:
    """Megabytes that one forward pass needs in addition to the weights; None where the system does not report them.

    On a CPU this is the greatest resident memory minus the memory before the pass. On CUDA it is
    ``torch.cuda.max_memory_allocated`` minus the memory that was allocated before.

    Args:
        dtype: ``float32``, ``bfloat16`` or ``float16``.
    """
    arguments = [name, encoder, str(size), str(batch), device, dtype]
    done = subprocess.run(
        [sys.executable, "-m", "bus_smp.model_comparison.peak_memory", *arguments],
        capture_output=True,
        text=True,
    )
    last = (done.stdout.strip().splitlines() or ["none"])[-1]
    return None if done.returncode or last == "none" else float(last)


def _measure(name: str, encoder: str, size: int, batch: int, device: str, dtype: str) -> float | None:
    import torch

    from bus_smp.model_comparison.networks import build, for_prediction
    from bus_smp.system.engine import Engine

    engine = Engine(torch.device(device), getattr(torch, dtype))
    network = for_prediction(build(name, encoder)).to(engine.device)
    network = network.to(memory_format=torch.channels_last)
    images = torch.zeros(batch, 3, size, size).to(engine.device, memory_format=torch.channels_last)
    with torch.inference_mode(), engine.autocast():
        if engine.device.type == "cuda":
            # The first pass also needs memory for tuning.
            network(images)
            torch.cuda.synchronize()
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            network(images)
            return (torch.cuda.max_memory_allocated() - before) / MEGABYTE
        gc.collect()
        resident = _reset_peak()
        network(images)
    peak = _status_bytes("VmHWM")
    return None if resident is None or peak is None else (peak - resident) / MEGABYTE


def _reset_peak() -> int | None:
    """Return freed memory to the system and restart its peak; the resident bytes, or None without Linux's /proc."""
    # Else the pass would use the memory that building the network has freed.
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
    try:
        # man 5 proc: "5" resets the peak.
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    return _status_bytes("VmRSS")


def _status_bytes(field: str) -> int | None:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    return None


if __name__ == "__main__":
    name, encoder, size, batch, device, dtype = sys.argv[1:]
    found = _measure(name, encoder, int(size), int(batch), device, dtype)
    print("none" if found is None else found)
