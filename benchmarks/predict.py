"""What `bus-smp predict` costs on top of the forward passes of the network, and whether its memory grows.

    python benchmarks/predict.py outputs/bus-uclm data/BUSI --images 500 [--backend openvino --precision bf16]

Both are timed in turn, several times, on the same images: the forward passes only (images already in memory and
resized), and ``predict_files`` with everything it does (reading, masks, overlays, the table). ``--profile`` prints
instead where one run spends its time: the calls of every thread, by cProfile.

The forward passes of each backend against a matrix product: bus-smp compare-models --models hybrid --batch 8.
"""

import cProfile
import pstats
import tempfile
import threading
import time
from pathlib import Path

from timing import arguments, peak_mb, quotient, row, show, spread

from bus_smp.data.images import read_image
from bus_smp.inference.backends import PRECISIONS, open_predictor
from bus_smp.inference.predict_files import find_images, predict_files
from bus_smp.inference.predictor import describe_computing


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("run", type=Path, help="a run folder")
    parser.add_argument("folder", type=Path, help="images, in sub-folders too")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--backend", choices=tuple(PRECISIONS), default="torch")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--profile", action="store_true")
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
        images = [predictor.geometry.fit(read_image(path)) for path, _ in chosen]

        def forward() -> None:
            for start in range(0, len(images), predictor.batch_size):
                predictor.grid_logits(images[start : start + predictor.batch_size])

        predictor.grid_logits(images[: predictor.batch_size])
        predict_files(predictor, chosen[: 4 * predictor.batch_size], Path(name))
        few = peak_mb()
        forwards, predictions = [], []
        for _ in range(options.repeats):
            start = time.perf_counter()
            forward()
            middle = time.perf_counter()
            predict_files(predictor, chosen, Path(name))
            forwards.append((middle - start) / len(chosen))
            predictions.append((time.perf_counter() - middle) / len(chosen))
        grown = peak_mb() - few
    over = quotient(predictions, forwards)
    show(
        f"{len(chosen)} images, {describe_computing(predictor.computed_in)}, {options.repeats} readings",
        [
            row("forward passes", spread(forwards).scaled(1000), "ms an image"),
            row(
                "predict",
                spread(predictions).scaled(1000),
                "ms an image",
                over,
                "forward passes",
                "ratio <= 1.15",
            ),
        ],
    )
    print(
        f"peak memory {peak_mb():.0f} MB, {grown:+.0f} MB since the first {4 * predictor.batch_size} images"
    )


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
