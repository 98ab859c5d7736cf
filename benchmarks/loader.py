"""Images a second that one core makes ready for the network: the fused augmentation beside albumentations' list.

    python benchmarks/loader.py data_manifests/bus-uclm.csv

Everything reads the same cache of the manifest's images, goes through the whole list of augmentations of the settings,
and ends with batches as training takes them. All are timed in turn, several times, with one thread each; beside them
stands the speed of a plain copy in memory of the bytes that such a batch has.
"""

import argparse
import tempfile
from pathlib import Path

import cv2
import torch

from bus_smp.benchmark.limits import core_copy
from bus_smp.benchmark.timing import quotient, spread, time_in_turn
from bus_smp.config import load_settings
from bus_smp.data.cache import Cache, open_cache
from bus_smp.data.loading import TrainingDataset, make_loader
from bus_smp.data.manifest import read_manifest
from bus_smp.data.sampler import EpochSampler


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as of bus-smp train")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)

    manifest = read_manifest(options.manifest)
    rows = manifest.used()
    rows = rows.sample(min(options.images, len(rows)), random_state=0).reset_index(drop=True)
    settings = load_settings(overrides=options.set)
    batch, size = settings.train.batch_size, settings.data.size

    with tempfile.TemporaryDirectory() as folder:
        cache = open_cache(manifest, rows, size, Path(folder))
        images = len(rows) // batch * batch

        def reader(implementation: str, workers: int):
            return epoch_reader(cache, settings, implementation, workers)

        copy, copied = core_copy()
        works = {
            "fused, no worker": reader("fused", 0),
            "fused, 1 worker": reader("fused", 1),
            "albumentations, no worker": reader("albumentations", 0),
            "albumentations, 1 worker": reader("albumentations", 1),
            "plain copy": copy,
        }
        readings = time_in_turn(works, options.repeats)
    each = {name: [seconds / images for seconds in times] for name, times in readings.items()}
    each["plain copy"] = [seconds / copied * size * size * 4 for seconds in readings["plain copy"]]
    print(f"{images} images of {size} px in batches of {batch}, one core, medians of {options.repeats}")
    print(f"{'':28}{'images/s':>10}   times albumentations'   images/s, lowest..highest")
    for name, seconds in each.items():
        rate = spread(seconds).rate(1)
        gain = quotient(each["albumentations, no worker"], seconds).median
        print(f"{name:28}{rate.median:10,.0f}{gain:14.2f}{rate.low:24,.0f}..{rate.high:,.0f}")


def epoch_reader(cache: Cache, settings, implementation: str, workers: int):
    """A function that draws the next epoch, batch after batch, and leaves the images alone."""
    augment = settings.augment.model_copy(update={"implementation": implementation})
    sampler = EpochSampler(["any"] * len(cache), settings.train.seed, balanced=False)
    dataset = TrainingDataset(cache, augment, settings.train.seed)
    loader = make_loader(dataset, sampler, settings.train.batch_size, workers, "cpu")

    def read() -> None:
        sampler.set_epoch(sampler.epoch + 1)
        for _ in loader:
            pass

    return read


if __name__ == "__main__":
    main()
