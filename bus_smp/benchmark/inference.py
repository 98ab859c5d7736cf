"""Milliseconds per image of a trained network on each backend, beside the machine's limit."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from bus_smp.benchmark.backends import Exports, Unavailable, count_gflop, open_backend
from bus_smp.benchmark.limits import matrix_product
from bus_smp.benchmark.plan import Plan
from bus_smp.benchmark.table import Row
from bus_smp.benchmark.timing import Work, quotient, spread, time_in_turn
from bus_smp.classes import CLASSES
from bus_smp.inference.folding import MainHead, fold_batch_norms
from bus_smp.model.checkpoint import load_model
from bus_smp.model.hybrid import HybridResNet50, normalise

MOST_OVER_LIMIT = 1.15  # of the default backend
CALIBRATED_ON = 4  # batches: enough for the speed of int8, not for its accuracy


def measure(plan: Plan) -> Iterator[Row]:
    """Yield one row for each backend, with one image and with a batch; auxiliary heads are left out."""
    device, size = plan.engine.device, plan.settings.data.size
    network = MainHead(_model(plan)).eval()
    gflop = count_gflop(network, size, torch.device("cpu"))
    exports = Exports(network, size, plan.scratch, lambda: _calibration(plan))
    folded = fold_batch_norms(network).to(device, memory_format=torch.channels_last)
    for batch in dict.fromkeys((1, plan.settings.train.batch_size)):
        products = {name: matrix_product(dtype, device) for name, dtype in plan.precisions().items()}
        works: dict[str, Work] = {f"limit {name}": work for name, (work, _) in products.items()}
        missing = {}
        for backend in plan.backends:
            try:
                works[backend] = open_backend(backend, folded, exports, plan.engine, batch)
            except Unavailable as error:
                missing[backend] = str(error)
        readings = time_in_turn(works, plan.repeats, device)
        for backend in plan.backends:
            name = f"{backend}, batch {batch}"
            if backend in missing:
                if batch == 1 and "does not gain" not in missing[backend]:
                    yield Row("inference", backend, "ms/image", note=missing[backend])
                continue
            precision = backend.split("-")[1]
            # int8 and what the device has no products for are held against the fastest it has
            limit = precision if precision in products else plan.engine.precision
            flop = products[limit][1]
            each = [seconds / batch for seconds in readings[backend]]
            least = [seconds / flop * gflop * 1e9 for seconds in readings[f"limit {limit}"]]
            yield Row(
                "inference",
                name,
                "ms/image",
                spread(each).scaled(1000),
                ratio=quotient(each, least),
                ratio_of=f"{limit} matrix product",
                target=_target(backend, plan),
                note=f"{gflop:.1f} GFLOP per image of {size} px",
            )


def _target(backend: str, plan: Plan) -> float | None:
    if backend.endswith("int8"):
        return 1.0  # below what bf16 can do
    return MOST_OVER_LIMIT if backend == f"torch-{plan.engine.precision}" else None


def _model(plan: Plan) -> HybridResNet50:
    if plan.checkpoint is not None:
        return load_model(plan.checkpoint)[0]
    torch.manual_seed(0)
    arguments = plan.settings.model.model_dump() | {"encoder_weights": None}
    return HybridResNet50(num_classes=len(CLASSES), **arguments)


def _calibration(plan: Plan) -> Sequence[np.ndarray]:
    """Training images, normalised as the network sees them."""
    cache, _ = plan.images()
    batch = plan.settings.train.batch_size
    starts = range(0, min(len(cache), CALIBRATED_ON * batch), batch)
    return [
        normalise(torch.from_numpy(np.array(cache.images[start : start + batch]))).contiguous().numpy()
        for start in starts
    ]
