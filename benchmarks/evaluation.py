"""What scoring costs on top of the network's forward passes, and that its memory does not grow.

    python benchmarks/evaluation.py outputs/bus-uclm/best.safetensors data_manifests/busi.csv --images 200

Both are timed in turn, several times, on the same images: the forward passes alone (images already in memory and
resized), and ``score_images`` with everything it does (reading, verifying, both baselines, all metrics, masks).
The summary and the figures are made once an evaluation and are timed apart.
"""

import argparse
import resource
import statistics
import tempfile
import time
from pathlib import Path

from bus_smp.data.examples import read_example
from bus_smp.data.images import resize_image
from bus_smp.data.manifest import read_manifest
from bus_smp.evaluation.evaluate import write_evaluation
from bus_smp.evaluation.score_images import score_images
from bus_smp.inference.predictor import describe_computing, load_predictor
from bus_smp.measures.baselines import BASELINES
from bus_smp.runs.evaluations import mask_path
from bus_smp.system.engine import make_engine


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--precision", default="auto")
    options = parser.parse_args()

    predictor, header = load_predictor(options.checkpoint, make_engine(precision=options.precision))
    manifest = read_manifest(options.manifest)
    rows = manifest.used().sample(options.images, random_state=0).reset_index(drop=True)
    images = [resize_image(read_example(manifest, row)[0], predictor.size) for row in rows.to_dict("records")]
    size = predictor.batch_size

    def forward() -> None:
        for start in range(0, len(images), size):
            predictor.grid_logits(images[start : start + size])

    def score(folder: Path):
        return score_images(
            predictor,
            manifest,
            rows,
            calibration=header.get("calibration"),
            baselines=list(BASELINES),
            mask_path=lambda row: mask_path(folder, row),
        )

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        forward()
        tables = score(folder)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        pairs = []
        for _ in range(options.repeats):
            start = time.perf_counter()
            forward()
            middle = time.perf_counter()
            score(folder)
            pairs.append((middle - start, time.perf_counter() - middle))
        start = time.perf_counter()
        about = {"run": "benchmark", "dataset": "benchmark", "split": "all", "external": True}
        write_evaluation(folder, tables, about, manifest)
        wrote = time.perf_counter() - start
    alone, scored = (statistics.median(times) for times in zip(*pairs, strict=True))
    over = statistics.median(b / a - 1 for a, b in pairs)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak
    print(f"{len(rows)} images, {describe_computing(predictor.computed_in)}, median of {len(pairs)}")
    print(f"forward passes alone   {1000 * alone / len(rows):6.1f} ms an image")
    print(f"score_images           {1000 * scored / len(rows):6.1f} ms an image, {100 * over:+.1f} %")
    print(f"summary and figures    {wrote:6.1f} s, once an evaluation")
    print(
        f"peak memory            {peak / 1024:6.0f} MiB after the first scoring, {grown / 1024:+.0f} MiB after the last"
    )


if __name__ == "__main__":
    main()
