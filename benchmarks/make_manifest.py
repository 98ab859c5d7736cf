"""Does the time of make-manifest grow in proportion to the files?

    python benchmarks/make_manifest.py --files 5000 20000 100000 --repeats 5

Makes a BUS-UCLM tree of 64 x 48 px images with colour masks (half of the files each, 20 images a patient, not timed),
then times each step on it: finding, listing, looking at every file, judging and splitting, writing. The search for
near-duplicates is left out, because it has a benchmark of its own (near_duplicates.py); --search puts it back.
Each reading is taken in a process of its own; memory is the peak resident size, interpreter and libraries included.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from timing import arguments, median_and_range, peak_mb, repeated

from bus_smp.classes import LABELS
from bus_smp.data import exclusions as policies
from bus_smp.data.audit import audit_folder
from bus_smp.data.make_manifests import SplitPlan, make_manifests
from bus_smp.data.manifest import write_manifest
from bus_smp.data.sources import bus_uclm, find_known

IMAGES_PER_PATIENT = 20


def make_tree(root: Path, files: int, seed: int = 0) -> None:
    """Write ``files`` / 2 different images, as many masks, and INFO.csv."""
    rng = np.random.default_rng(seed)
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    rows = ["Image;Resolution;Label;Doppler;Marks;Combined"]
    for index in range(files // 2):
        patient, number = divmod(index, IMAGES_PER_PATIENT)
        name = "".join(letters[patient // 26**place % 26] for place in (3, 2, 1, 0)) + f"_{number:03d}.png"
        label = int(rng.integers(0, len(LABELS)))
        mask = np.zeros((48, 64, 3), np.uint8)
        if label:
            # different ones: one mask for many images is a fault that excludes them
            top, left, height, width = rng.integers((2, 2, 10, 10), (16, 24, 30, 38))
            # BGR: green benign, red malignant
            mask[top : top + height, left : left + width, label] = 255
        cv2.imwrite(str(root / "images" / name), rng.integers(0, 256, (48, 64), np.uint8))
        cv2.imwrite(str(root / "masks" / name), mask)
        rows.append(f"{name};64x48;{LABELS[label].capitalize()};No;No;No")
    (root / "INFO.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")


def measure(folder: Path, search: bool) -> dict[str, float]:
    """Make the manifest of the tree in ``folder``; seconds of each step, of all, and the peak memory in MB."""
    if not search:
        policies.find_near_duplicates = lambda prints, progress: []
    taken: dict[str, float] = {}

    def timed(name: str, work: Callable[[], object]) -> object:
        start = time.perf_counter()
        result = work()
        taken[f"{name}, s"] = time.perf_counter() - start
        return result

    ((_, root),) = timed("find the data set", lambda: find_known(folder))
    records = timed("list files and table", lambda: list(bus_uclm.records(root)))
    looked = timed("look at every file", lambda: audit_folder(bus_uclm.NAME, records, root))
    (manifest,) = timed("judge and split", lambda: make_manifests([looked], plan=SplitPlan(folds=5)))
    timed("write", lambda: write_manifest(manifest, folder / "made.csv"))
    assert (manifest.frame["excluded"] == "").sum() == len(records)
    taken["all, s"] = sum(taken.values())
    return taken | {"peak memory, MB": peak_mb()}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--files", type=int, nargs="+", default=[5000, 20000])
    parser.add_argument("--search", action="store_true", help="search for near-duplicates too")
    parser.add_argument("--repeats", type=int, default=1, help="readings of each size")
    options = parser.parse_args()
    for files in options.files:
        print(
            f"{files} files{'' if options.search else ', without the search for near-duplicates'}", flush=True
        )
        with tempfile.TemporaryDirectory() as name:
            make_tree(Path(name) / "BUS-UCLM", files)
            readings = repeated(options.repeats, measure, Path(name), options.search)
        for what in readings[0]:
            print(f"  {what:<24}{median_and_range([one[what] for one in readings], 2)}", flush=True)
        each = [1e3 * one["all, s"] / files for one in readings]
        print(f"  {'a file, ms':<24}{median_and_range(each, 2)}", flush=True)


if __name__ == "__main__":
    main()
