"""What the machine itself can do: products of matrices, and copies in memory. Nothing here knows of images."""

from collections.abc import Iterator

import numpy as np
import torch

from bus_smp.benchmark.plan import Plan
from bus_smp.benchmark.table import Row
from bus_smp.benchmark.timing import Work, spread, time_in_turn

# Side of the square matrices: large enough that a larger one is no faster, small enough for a reading in a blink.
SIDES = {"cpu": 2048, "cuda": 8192}
COPIED = {"cpu": 1 << 28, "cuda": 1 << 31}  # bytes; many times the last cache


def matrix_product(dtype: torch.dtype, device: torch.device) -> tuple[Work, float]:
    """A product of two square matrices, and its FLOP (2 x side^3)."""
    side = SIDES[device.type]
    one, other = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(one)
    return lambda: torch.mm(one, other, out=out), 2.0 * side**3


def memory_copy(device: torch.device) -> tuple[Work, int]:
    """A copy within the device's memory on all cores, and the bytes that it copies (each is read and written)."""
    # ones: of zeros that nobody wrote, a system keeps one page and copies that from the cache
    source = torch.ones(COPIED[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source).copy_(source)
    return lambda: target.copy_(source), source.numel()


def core_copy() -> tuple[Work, int]:
    """The same on one core of the CPU."""
    source = np.ones(COPIED["cpu"], np.uint8)
    target = source.copy()
    return lambda: np.copyto(target, source), source.nbytes


def measure(plan: Plan) -> Iterator[Row]:
    """Yield FLOP/s of products in fp32 and mixed precision, and bytes copied a second."""
    device = plan.engine.device
    products = {
        f"matrix product, {name}": matrix_product(dtype, device) for name, dtype in plan.precisions().items()
    }
    copies = {f"memory copy, {device.type}": memory_copy(device), "memory copy, one CPU core": core_copy()}
    works = {name: work for name, (work, _) in {**products, **copies}.items()}
    readings = time_in_turn(works, plan.repeats, device)
    for name, (_, flop) in products.items():
        side = SIDES[device.type]
        yield Row(
            "limits",
            name,
            "GFLOP/s",
            spread(readings[name]).rate(flop / 1e9),
            note=f"torch.mm of {side} x {side}; FLOP = 2 x multiplications",
        )
    for name, (_, copied) in copies.items():
        yield Row(
            "limits",
            name,
            "GB/s",
            spread(readings[name]).rate(copied / 1e9),
            note=f"{copied / 1e6:.0f} MB, counted once (read and written)",
        )
