"""How long the search for near-duplicates takes: python benchmarks/near_duplicates.py [images] [--screen].

Images are speckle; every tenth is a cropped copy of the one before it. With --screen all of them carry the
same scanner text, which is the worst case: every image then shares features with every other.
"""

import argparse
import time

import cv2
import numpy as np

from bus_smp.data.duplicates import find_near_duplicates, fingerprint


def make_scan(rng: np.random.Generator, height: int = 375, width: int = 450) -> np.ndarray:
    """Log-compressed speckle on blurred random tissue: uint8 (height, width)."""
    tissue = cv2.resize(
        rng.normal(size=(12, 12)).astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC
    )
    wave = rng.normal(size=(height, width, 2)).astype(np.float32)
    wave = cv2.GaussianBlur(wave, (0, 0), sigmaX=3.0, sigmaY=1.5)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", nargs="?", type=int, default=1000)
    parser.add_argument("--screen", action="store_true")
    arguments = parser.parse_args()

    rng = np.random.default_rng(0)
    prints, hidden, spent = [], 0, 0.0
    scan = make_scan(rng)
    for i in range(arguments.images):
        copy = i % 10 == 9
        hidden += copy
        scan = scan[30:350, 40:420] if copy else make_scan(rng)
        image = write_screen(scan) if arguments.screen else scan
        start = time.process_time()
        prints.append(fingerprint(image))
        spent += time.process_time() - start
    size = np.mean([len(p.thumbnail) + p.points.nbytes + p.patches.nbytes for p in prints])
    print(f"fingerprint: {1000 * spent / len(prints):.2f} ms of CPU and {size / 1024:.1f} KB an image")

    wall, cpu = time.perf_counter(), time.process_time()
    pairs = find_near_duplicates(prints)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(f"find_near_duplicates: {len(prints)} images, {wall:.1f} s ({cpu:.1f} s of CPU)")
    print(f"{len(pairs)} pairs found, {hidden} hidden")


if __name__ == "__main__":
    main()
