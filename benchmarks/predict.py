"""What `bus-smp predict` costs on top of the network's forward passes, and that its memory does not grow.

    python benchmarks/predict.py outputs/bus-uclm data/BUSI --images 500 [--backend openvino --precision bf16]

Both are timed in turn, several times, on the same images: the forward passes alone (images already in memory and
resized), and ``predict_files`` with everything it does (reading, masks, overlays, the table). ``--profile`` prints,
in place of the times, where one run of it spends them: the calls of every thread, by cProfile.
"""

import argparse
import cProfile
import json
import pstats
import resource
import statistics
import tempfile
import threading
import time
from pathlib import Path

from bus_smp.data.images import read_image, resize_image
from bus_smp.inference.backends import PRECISIONS, open_predictor
from bus_smp.inference.predict_files import find_images, predict_files
from bus_smp.inference.predictor import describe_computing


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="a run folder")
    parser.add_argument("folder", type=Path, help="images, in sub-folders too")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--backend", choices=tuple(PRECISIONS), default="torch")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--to", type=Path, help="also write the figures there, as JSON")
    options = parser.parse_args()

    predictor, _ = open_predictor(
        options.run, backend=options.backend, precision=options.precision, device=options.device,
        batch_size=options.batch_size, say=print,
    )  # fmt: skip
    found = find_images([options.folder])
    chosen = found[:: max(1, len(found) // options.images)][: options.images]
    with tempfile.TemporaryDirectory() as name:
        if options.profile:
            _profile(lambda: predict_files(predictor, chosen, Path(name)))
            return
        images = [resize_image(read_image(path), predictor.size) for path, _ in chosen]

        def forward() -> None:
            for start in range(0, len(images), predictor.batch_size):
                predictor.grid_logits(images[start : start + predictor.batch_size])

        predictor.grid_logits(images[: predictor.batch_size])
        predict_files(predictor, chosen[: 4 * predictor.batch_size], Path(name))
        few = _peak()
        pairs = []
        for _ in range(options.repeats):
            start = time.perf_counter()
            forward()
            middle = time.perf_counter()
            predict_files(predictor, chosen, Path(name))
            pairs.append((middle - start, time.perf_counter() - middle))
            print(f"forward {pairs[-1][0]:.2f} s, predict {pairs[-1][1]:.2f} s", flush=True)
        grown = _peak() - few
    alone, predicted = (statistics.median(times) for times in zip(*pairs, strict=True))
    figures = {
        "images": len(chosen),
        "computed_in": predictor.computed_in,
        "batch_size": predictor.batch_size,
        "forward_ms": 1000 * alone / len(chosen),
        "predict_ms": 1000 * predicted / len(chosen),
        "ratio": statistics.median(b / a for a, b in pairs),
        "peak_mib": _peak() / 1024,
        "grown_mib": grown / 1024,
    }
    print(
        f"{len(chosen)} images, {describe_computing(predictor.computed_in)}, median of {len(pairs)}\n"
        f"forward passes alone   {figures['forward_ms']:6.1f} ms an image\n"
        f"predict_files          {figures['predict_ms']:6.1f} ms an image, {figures['ratio']:.3f} times that\n"
        f"peak memory            {figures['peak_mib']:6.0f} MiB, {figures['grown_mib']:+.0f} MiB since the first "
        f"{4 * predictor.batch_size} images"
    )
    if options.to:
        options.to.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _profile(work) -> None:
    """cProfile of this thread and of each that is started while ``work`` runs, in one table."""
    profiles: list[cProfile.Profile] = []
    run = threading.Thread.run

    def profiled(thread: threading.Thread) -> None:
        profiles.append(cProfile.Profile())
        profiles[-1].runcall(run, thread)

    threading.Thread.run = profiled
    try:
        profiles.append(cProfile.Profile())
        profiles[-1].runcall(work)
    finally:
        threading.Thread.run = run
    stats = pstats.Stats(profiles[0])
    for profile in profiles[1:]:
        stats.add(profile)
    stats.sort_stats("tottime").print_stats(25)


if __name__ == "__main__":
    main()
