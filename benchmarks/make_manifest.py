"""Does the time of make-manifest grow with the files alone?

    python benchmarks/make_manifest.py --files 5000 20000 100000

Makes a BUS-UCLM tree of 64 x 48 px images with colour masks (half of the files each, 20 images a patient, not timed),
then times each step on it: finding, listing, looking at every file, judging and splitting, writing. The search for
near-duplicates is left out, because it has a benchmark of its own (near_duplicates.py); --search puts it back.
Each size runs in a process of its own; memory is the peak resident size, interpreter and libraries included.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from bus_smp.classes import LABELS
from bus_smp.data import policies
from bus_smp.data.audit import survey
from bus_smp.data.making import SplitPlan, make_manifests
from bus_smp.data.manifest import write_manifest
from bus_smp.data.sources import bus_uclm, find_known

IMAGES_PER_PATIENT = 20


def make_tree(root: Path, files: int, seed: int = 0) -> None:
    """Write ``files`` / 2 images, as many masks and INFO.csv; every image is another."""
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
            mask[10:30, 20:45, {1: 1, 2: 2}[label]] = 255  # BGR: green benign, red malignant
        cv2.imwrite(str(root / "images" / name), rng.integers(0, 256, (48, 64), np.uint8))
        cv2.imwrite(str(root / "masks" / name), mask)
        rows.append(f"{name};64x48;{LABELS[label].capitalize()};No;No;No")
    (root / "INFO.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")


def timed(name: str, files: int, work: Callable[[], object]) -> object:
    """Do it; print seconds and microseconds a file."""
    start = time.perf_counter()
    result = work()
    spent = time.perf_counter() - start
    print(f"  {name:<22}{spent:8.2f} s {1e6 * spent / files:8.1f} us a file", flush=True)
    return result


def run(files: int, search: bool) -> None:
    """Make the tree and time the steps on it."""
    if not search:
        policies.find_near_duplicates = lambda prints, progress: []
    with tempfile.TemporaryDirectory() as name:
        root = Path(name) / "BUS-UCLM"
        make_tree(root, files)
        print(f"{files} files{'' if search else ', without the search for near-duplicates'}", flush=True)
        begin = time.perf_counter()
        found = timed("find the data set", files, lambda: find_known(Path(name)))
        assert [place for _, place in found] == [root]
        records = timed("list files and table", files, lambda: list(bus_uclm.records(root)))
        looked = timed("look at every file", files, lambda: survey(bus_uclm.NAME, records, root))
        plan = SplitPlan(folds=5)
        (manifest,) = timed("judge and split", files, lambda: make_manifests([looked], plan=plan))
        timed("write", files, lambda: write_manifest(manifest, Path(name) / "made.csv"))
        spent = time.perf_counter() - begin
    assert (manifest.frame["excluded"] == "").sum() == files // 2
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    print(f"  {'all':<22}{spent:8.2f} s {1e6 * spent / files:8.1f} us a file, peak {peak:.0f} MB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files", type=int, nargs="+", default=[5000, 20000])
    parser.add_argument("--search", action="store_true", help="search for near-duplicates too")
    options = parser.parse_args()
    if len(options.files) == 1:
        run(options.files[0], options.search)
        return
    for files in options.files:
        more = ["--search"] if options.search else []
        subprocess.run([sys.executable, __file__, "--files", str(files), *more], check=True)


if __name__ == "__main__":
    main()
