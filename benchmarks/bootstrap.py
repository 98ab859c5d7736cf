"""How long intervals take: python benchmarks/bootstrap.py [images] [groups] [--draws N].

First 20 metrics as the bootstrap sees them (16 means, 2 AUCs, 2 sensitivities at fixed specificity), then a whole
summary (every metric and rate, by size, class, flag and data set), on one core.
"""

import argparse
import os

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import resource
import time

import numpy as np
import pandas as pd

from bus_smp.classes import LABELS
from bus_smp.measures.lesions import DETECTION_COLUMNS
from bus_smp.measures.overlap import image_row
from bus_smp.statistics.bootstrap import bootstrap, estimate, rare_labels
from bus_smp.statistics.estimators import Auc, Ratio, SensitivityAt
from bus_smp.statistics.summary import NEEDED, summarise


def make_table(images: int, groups: int, seed: int = 0) -> pd.DataFrame:
    """A per-image table of random numbers; groups are of random sizes."""
    rng = np.random.default_rng(seed)
    group = np.r_[np.arange(groups), rng.integers(0, groups, images - groups)]
    rows = []
    for index, label in enumerate(rng.integers(0, 3, images)):
        counts = np.zeros((3, 3), int)
        counts[0, 0] = 10_000
        counts[label, rng.integers(0, 3, 5)] += rng.integers(50, 500)
        rows.append(
            {"dataset": "made", "image_id": str(index), "patient_id": "", "group_id": str(group[index])}
            | {"label": LABELS[label], "flags": rng.choice(["", "marks", "doppler"]), "pixel_mm": 0.1}
            | image_row(counts)
        )
    table = pd.DataFrame(rows)
    counts = {name: rng.integers(1, 3, images) for name in DETECTION_COLUMNS}
    return table.assign(
        **counts, **{name: rng.random(images) for name in NEEDED if name not in (*table, *counts)}
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", nargs="?", type=int, default=780)
    parser.add_argument("groups", nargs="?", type=int, default=584)
    parser.add_argument("--draws", type=int, default=5000)
    arguments = parser.parse_args()

    table = make_table(arguments.images, arguments.groups)
    group = table["group_id"].astype(int).to_numpy()
    label = table["label"].map(LABELS.index).to_numpy()
    score, malignant = table["malignant_score"].to_numpy(), label == 2
    estimators = {f"mean {i}": Ratio.mean(np.random.default_rng(i).random(len(table))) for i in range(16)}
    estimators |= {f"auc {i}": Auc(score, malignant, label == i) for i in range(2)}
    estimators |= {f"at {s}": SensitivityAt(score, malignant, ~malignant, s) for s in (0.90, 0.95)}
    print(f"{len(table)} images, {arguments.groups} groups, {arguments.draws} draws")
    start = time.perf_counter()
    stratum, _ = rare_labels(label, group)
    for name, resampled in bootstrap(estimators, group, stratum, arguments.draws, 42).items():
        estimate(resampled, estimators[name].kinds, group, stratum, 0.95, len(table))
    print(f"{len(estimators)} metrics: {time.perf_counter() - start:.2f} s")
    start = time.perf_counter()
    summarise(table, draws=arguments.draws)
    print(f"a summary: {time.perf_counter() - start:.2f} s")
    print(f"memory at most: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")


if __name__ == "__main__":
    main()
