"""How long the search for near-duplicates takes: python benchmarks/near_duplicates.py [images] [--screen] [--repeats N].

Images are speckle, made at the size of a thumbnail; every hundredth is a cropped copy of the one before it. With
--screen all of them carry the same scanner text, which is the worst case: every image then shares features with every
other. Making the images and their fingerprints is timed separately. Memory is the most
that the process held during the search (Linux only).
"""

import argparse
import statistics
import time
from pathlib import Path

import cv2
import numpy as np

from bus_smp.data.near_duplicates.search import Fingerprint, find_near_duplicates, fingerprint
from bus_smp.system.threads import read_ahead


def make_scan(
    rng: np.random.Generator, height: int = 375, width: int = 450, scale: float = 1.0
) -> np.ndarray:
    """Log-compressed speckle, 3 * scale pixels wide, on blurred random tissue: uint8 (height, width)."""
    tissue = cv2.resize(
        rng.normal(size=(12, 12)).astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC
    )
    wave = rng.standard_normal((height, width, 2), dtype=np.float32)
    wave = cv2.GaussianBlur(wave, (0, 0), sigmaX=3.0 * scale, sigmaY=1.5 * scale)
    amplitude = np.hypot(wave[..., 0], wave[..., 1])
    level = 20 * np.log10(amplitude / amplitude.mean() + 0.05) + 6 * tissue
    return np.clip(110 + 4 * level, 0, 255).astype(np.uint8)


def write_screen(scan: np.ndarray) -> np.ndarray:
    """The scan inside a frame with the text that a scanner burns in."""
    framed = cv2.copyMakeBorder(scan, 40, 40, 110, 20, cv2.BORDER_CONSTANT, value=0)
    for line, text in enumerate(
        ("B Gain 54", "Freq 12MHz", "MI 0.8", "DR 66", "Map E/0", "TIs 0.1", "FPS 31", "D 3.5cm")
    ):
        cv2.putText(framed, text, (4, 60 + 30 * line), cv2.FONT_HERSHEY_SIMPLEX, 0.5, 210, 1)
    return framed


def make_print(number: int, screen: bool) -> Fingerprint:
    copy = number % 100 == 99
    scan = make_scan(np.random.default_rng(number - copy), 205, 256, 0.57)
    if copy:
        scan = scan[16:190, 20:240]
    return fingerprint(write_screen(scan) if screen else scan)


def memory(name: str) -> int:
    """A line of /proc/self/status, MB; 0 where there is none."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) >> 10 for line in lines if line.startswith(name)), 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", nargs="?", type=int, default=1000)
    parser.add_argument("--screen", action="store_true")
    parser.add_argument("--repeats", type=int, default=1, help="search so many times")
    arguments = parser.parse_args()

    cv2.setNumThreads(1)
    count = arguments.images
    wall, cpu = time.perf_counter(), time.process_time()
    made = read_ahead(lambda number: make_print(number, arguments.screen), range(count))
    prints = list(made)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    size = sum(p.points.nbytes + p.descriptors.nbytes + len(p.thumbnail) for p in prints) / count / 1024
    print(
        f"{count} images and fingerprints ({size:.1f} KB each) made in {wall:.1f} s ({cpu:.1f} s of CPU)",
        flush=True,
    )

    walls = []
    for _ in range(arguments.repeats):
        before = memory("VmRSS")
        if before:
            Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
        wall, cpu = time.perf_counter(), time.process_time()
        pairs = find_near_duplicates(prints)
        walls.append(time.perf_counter() - wall)
        cpu = time.process_time() - cpu
        print(
            f"searched in {walls[-1]:.1f} s ({cpu:.1f} s of CPU), "
            f"memory {before} MB before, {memory('VmHWM')} MB at most",
            flush=True,
        )
    print(f"median {statistics.median(walls):.1f} s ({min(walls):.1f}..{max(walls):.1f})")
    hidden = {(number - 1, number) for number in range(99, count, 100)}
    found = {pair[:2] for pair in pairs}
    print(f"of {len(hidden)} hidden copies {len(hidden & found)} found; {len(found - hidden)} other pairs")


if __name__ == "__main__":
    main()
