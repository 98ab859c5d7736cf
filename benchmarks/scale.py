"""What large tables cost: a manifest of 100,000 rows, and the statistics of a million images.

    python benchmarks/scale.py manifest --repeats 5
    python benchmarks/scale.py statistics --rows 100000 300000 1000000 --repeats 5

There are no images; the rows are as make-manifest writes them: 20 images a patient, some excluded, some with two
masks, some with flags. Each reading is taken in a process of its own; memory is the peak resident size, interpreter and
libraries included.
"""

import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from timing import arguments, median_and_range, peak_mb, repeated, timed

from bus_smp.classes import CLASSES, LABELS
from bus_smp.data.manifest import COLUMNS, Manifest, check, manifest_hash, read_manifest, write_manifest
from bus_smp.data.splits import assign_folds, assign_splits
from bus_smp.measures.lesions import DETECTION_COLUMNS
from bus_smp.measures.overlap import METRIC_COLUMNS, PIXEL_COLUMNS
from bus_smp.measures.shape import SHAPE_COLUMNS
from bus_smp.measures.surfaces import SURFACE_COLUMNS
from bus_smp.measures.uncertainty import UNCERTAINTIES
from bus_smp.statistics.summary import NEEDED, summarise

PARTS = ("manifest", "statistics")
IMAGES_PER_PATIENT = 20


def make_frame(rows: int, seed: int = 0) -> pd.DataFrame:
    """The frame of a manifest with empty splits and folds; one row in 100 is excluded."""
    rng = np.random.default_rng(seed)
    patient = rng.integers(0, max(3, rows // IMAGES_PER_PATIENT), rows)
    label = np.array(LABELS, dtype=object)[rng.integers(0, len(LABELS), rows)]
    names = [f"P{p:06d}_{i:07d}" for i, p in enumerate(patient)]
    digits = rng.bytes(64 * rows).hex()
    hashes = [digits[128 * i : 128 * i + 128] for i in range(rows)]
    several = rng.random(rows) < 0.05
    columns = {
        "dataset": ["made"] * rows,
        "image_id": names,
        "patient_id": [f"P{p:06d}" for p in patient],
        "patient_known": np.ones(rows, dtype=bool),
        "group_id": [f"made:P{p:06d}" for p in patient],
        "label": label,
        "split": [""] * rows,
        "fold": pd.array([pd.NA] * rows, dtype="Int64"),
        "image": [f"images/{name}.png" for name in names],
        "masks": [
            f"masks/{name}.png|masks/{name}_1.png" if two else f"masks/{name}.png"
            for name, two in zip(names, several, strict=True)
        ],
        "mask_format": ["color"] * rows,
        "width": pd.array(rng.integers(300, 900, rows), dtype="Int64"),
        "height": pd.array(rng.integers(300, 900, rows), dtype="Int64"),
        "sha256": [both[:64] for both in hashes],
        "phash": [both[64:] for both in hashes],
        "flags": np.where(several, "several_masks|marks", ""),
        "excluded": np.where(rng.random(rows) < 0.01, "empty-mask: the image is labelled benign", ""),
    }
    return pd.DataFrame(columns)[list(COLUMNS)]


def make_scores(images: int, seed: int = 0) -> pd.DataFrame:
    """A per-image table of random numbers: scores with ties at 1/1000, groups of unequal sizes."""
    rng = np.random.default_rng(seed)
    groups = max(5, images // IMAGES_PER_PATIENT)
    label = rng.integers(0, len(LABELS), images)
    group = np.r_[np.arange(groups), rng.integers(0, groups, images - groups)]
    counts = np.zeros((images, len(CLASSES), len(CLASSES)), np.int64)
    counts[:, 0, 0] = 10_000
    counts[np.arange(images), label, rng.integers(0, 3, images)] += rng.integers(50, 500, images)
    shown = label > 0
    scores = np.round(np.clip(rng.normal(0.35 + 0.2 * (label == 2), 0.2, images), 0, 1), 3)
    table = {
        "dataset": "made",
        "image_id": np.char.mod("%07d", np.arange(images)),
        "patient_id": "",
        "group_id": np.char.mod("p%06d", group),
        "label": np.array(LABELS)[label],
        "predicted_label": np.array(LABELS)[rng.integers(0, 3, images)],
        "flags": np.where(rng.random(images) < 0.3, "marks", ""),
        "pixel_mm": 0.1,
        "false_alarm_area": np.where(shown, np.nan, rng.random(images) / 50),
        "malignant_score": scores,
        "malignant_score_raw": scores**1.5,
    }
    table |= dict(zip(PIXEL_COLUMNS, counts.reshape(images, -1).T, strict=True))
    lesion_columns = (*METRIC_COLUMNS, *SURFACE_COLUMNS, *SHAPE_COLUMNS)
    table |= {name: np.where(shown, rng.random(images), np.nan) for name in lesion_columns}
    table |= {name: rng.random(images) for name in ("pixel_brier", "pixel_brier_raw", *UNCERTAINTIES)}
    decided = [name for name in NEEDED if name.startswith("called_") or name.endswith("_at_point")]
    table |= {name: rng.integers(0, 2, images).astype(float) for name in decided}
    table |= {name: rng.integers(1, 3, images) for name in DETECTION_COLUMNS}
    return pd.DataFrame(table)


def time_manifest(rows: int, draws: int) -> dict[str, float]:
    """Make, split, check, write, read and hash a manifest of ``rows`` rows; return what is printed."""
    began, cpu = time.perf_counter(), time.process_time()
    frame = timed("make the rows", make_frame, rows)
    used = frame[frame["excluded"] == ""]
    frame.loc[used.index, "split"] = timed("split 70/15/15", assign_splits, used).astype(object)
    frame.loc[used.index, "fold"] = timed("5 folds", assign_folds, used, 5)
    del used
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "made.csv"
        problems = timed("check", check, frame)
        assert not problems, problems[:3]
        timed("write (checks again)", write_manifest, Manifest(frame, {"made": Path(name)}), path)
        size = path.stat().st_size / 1e6
        del frame
        read = timed("read (checks again)", read_manifest, path)
        timed("hash", manifest_hash, read.frame)
    spent, cpu = time.perf_counter() - began, time.process_time() - cpu
    return {"all, s": spent, "of CPU, s": cpu, "peak, MB": peak_mb(), "the CSV, MB": size}


def time_statistics(rows: int, draws: int) -> dict[str, float]:
    """Summarise a per-image table of ``rows`` rows; return what is printed."""
    table = timed("make the table", make_scores, rows)
    before = peak_mb()
    start, cpu = time.perf_counter(), time.process_time()
    summarise(table, draws=draws)
    spent, cpu = time.perf_counter() - start, time.process_time() - cpu
    return {
        "summary, s": spent,
        "of CPU, s": cpu,
        "peak, MB": peak_mb(),
        "the table, bytes a row": table.memory_usage(deep=True).sum() / rows,
        "above it, bytes a row": (peak_mb() - before) * 1e6 / rows,
    }


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("part", nargs="?", choices=PARTS, help="default: both")
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000])
    parser.add_argument("--draws", type=int, default=5000)
    parser.add_argument("--repeats", type=int, default=1, help="readings of each")
    options = parser.parse_args()
    for part in [options.part] if options.part else PARTS:
        work = time_manifest if part == "manifest" else time_statistics
        for rows in options.rows:
            print(f"{part}: {rows} rows, {rows // IMAGES_PER_PATIENT} patients", flush=True)
            readings = repeated(options.repeats, work, rows, options.draws)
            for what in readings[0]:
                print(f"  {what:<28}{median_and_range([one[what] for one in readings])}", flush=True)


if __name__ == "__main__":
    main()
