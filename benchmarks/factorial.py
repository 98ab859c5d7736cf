"""Which changes of the recipe help on another scanner: several at once in 16 trainings, half on each of two data sets.

    python benchmarks/factorial.py [--manifests data_manifests] [--out outputs/factorial] [--table]

Every training has its own seed and half of the changes; every change is in half of the trainings, and in half of those
with any other change (a Hadamard matrix). So all trainings inform about each change, and no effect of a single change is
mixed with an interaction of two. An effect is the mean with the change minus the mean without; its standard error comes
from what the changes and the data set leave unexplained. A training that failed (lesion Dice at home below .1) is
named and left out. A training that is finished is not repeated: type the command again to continue. ``--table`` prints
the effects of the trainings that are finished.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

# one core for each training
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import pandas as pd
from scipy.linalg import hadamard
from scipy.stats import rankdata

from bus_smp.data.examples import read_example
from bus_smp.data.manifest import manifest_path, read_manifest
from bus_smp.inference.backends import load
from bus_smp.inference.predictor import Prediction, Predictor
from bus_smp.measures.overlap import confusion, image_row

# What all trainings have in common.
COMMON = (
    "model.encoder_name=tu-tf_efficientnet_lite0",
    "model.encoder_weights=imagenet",
    "train.lr=5e-4",
    "train.ema=0.99",
    "train.patience=0",
    "train.batch_size=8",
)
CHANGES = {
    "letterbox": ["data.geometry=letterbox"],
    "wide geometry": [
        "augment.zoom=1.6",
        "augment.scale=0",
        "augment.aspect=0.2",
        "augment.rotate=25",
        "augment.shift=0.12",
    ],
    "grey": ["data.grey=true"],
    "tone": [
        "augment.gamma=1.6",
        "augment.contrast=0.35",
        "augment.depth_gain=1",
        "augment.blur=0.2",
        "augment.low_resolution=0.2",
    ],
    "image head": ["heads.image=0.2", "heads.detached=false"],
    "perturbed norm": ["model.perturb_norm=0.5"],
    "slow encoder": ["train.encoder_lr=1e-4", "train.warmup=1", "train.clip=1"],
}
# Columns of the Hadamard matrix whose pairwise products are none of them; the first decides the data set.
COLUMNS = (1, 2, 4, 8, 7, 11, 13, 14)
SOURCES = ("bus-uclm", "busi")
RUNS = 16
# lesion Dice at home
FAILED = 0.1

MEASURES = {
    "dice": "lesion Dice",
    "misses": "misses",
    "alarms": "false alarms",
    "misses_95": "misses at 95 %",
    "alarms_95": "false alarms at 95 %",
    "auc_lesion": "AUC lesion",
    "auc_malignant": "AUC malignant",
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--manifests", type=Path, default=Path("data_manifests"))
    parser.add_argument("--out", type=Path, default=Path("outputs/factorial"))
    parser.add_argument("--steps", type=int, default=560, help="of each training, to the nearest epoch")
    parser.add_argument("--size", type=int, default=160, help="data.size")
    parser.add_argument("--parallel", type=int, default=2, help="trainings at a time, one core each")
    parser.add_argument("--table", action="store_true", help="train nothing, print the effects")
    options = parser.parse_args()
    if not options.table:
        options.out.mkdir(parents=True, exist_ok=True)
        # spawned: each process reads OMP_NUM_THREADS anew
        with ProcessPoolExecutor(options.parallel, get_context("spawn")) as pool:
            for line in pool.map(_run, range(RUNS), [options] * RUNS):
                print(line, flush=True)
    print_table(options.out)


# --- trainings


def design() -> np.ndarray:
    """0 or 1 (RUNS, 1 + changes): the data set of each training, and which changes it has."""
    return (hadamard(RUNS)[:, COLUMNS[: 1 + len(CHANGES)]] < 0).astype(int)


def _run(number: int, options: argparse.Namespace) -> str:
    """Train and score one run, unless that is done; return a line about it."""
    source, *levels = design()[number]
    name = f"run{number:02}"
    done = options.out / f"{name}.csv"
    if not done.exists():
        chosen = [one for has, change in zip(levels, CHANGES.values(), strict=True) if has for one in change]
        train(name, SOURCES[source], [*COMMON, *chosen, f"train.seed={number}"], options)
        table = score(options.out / name, SOURCES[source], SOURCES[1 - source], options.manifests)
        table.to_csv(done.with_suffix(".part"), index=False)
        done.with_suffix(".part").replace(done)
    return f"{name}: {json.dumps(summarise(pd.read_csv(done))['plain', 'other'])}"


def train(name: str, source: str, settings: list[str], options: argparse.Namespace) -> None:
    """Train a run with the command that users have; the number of steps is the same for every data set."""
    images = len(read_manifest(manifest_path(source, options.manifests)).used("train"))
    epochs = max(1, round(options.steps / (images // 8)))
    settings = [
        *settings,
        f"train.epochs={epochs}",
        f"data.size={options.size}",
        f"data.manifests={options.manifests}",
        f"runtime.cache={options.out / 'cache'}",
    ]
    command = [
        sys.executable,
        "-m",
        "bus_smp",
        "train",
        "--data",
        source,
        "--run",
        name,
        "--out",
        str(options.out),
    ]
    with (options.out / f"{name}.log").open("a") as log:
        subprocess.run(
            [*command, *(part for one in settings for part in ("--set", one))],
            check=True,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def score(run: Path, source: str, target: str, manifests: Path) -> pd.DataFrame:
    """One row for each image and view: validation and test of the source, and the whole target."""
    predictor = load(run)
    rows: list[dict[str, Any]] = []
    for name, splits in ((source, ("val", "test")), (target, (None,))):
        manifest = read_manifest(manifest_path(name, manifests))
        for split in splits:
            records = manifest.used(split).to_dict("records")
            for start in range(0, len(records), predictor.batch_size):
                batch = records[start : start + predictor.batch_size]
                read = [read_example(manifest, record) for record in batch]
                for record, (_, truth), views in zip(
                    batch, read, predict_views(predictor, [one for one, _ in read]), strict=True
                ):
                    about = {
                        "image_id": record["image_id"],
                        "label": record["label"],
                        "split": split or "other",
                    }
                    rows += [about | {"view": view} | measure(truth, found) for view, found in views.items()]
    return pd.DataFrame(rows)


def predict_views(predictor: Predictor, images: list[np.ndarray]) -> list[dict[str, Prediction]]:
    """The prediction of each image, and its mean with that of the mirrored image."""
    plain = predictor.predict(images)
    mirrored = predictor.predict([np.ascontiguousarray(image[:, ::-1]) for image in images])
    return [
        {"plain": one, "mirror": replace(one, raw_grid=(one.raw_grid + other.raw_grid[..., ::-1]) / 2)}
        for one, other in zip(plain, mirrored, strict=True)
    ]


def measure(truth: np.ndarray, found: Prediction) -> dict[str, float]:
    """Lesion Dice, whether anything is marked, and two scores of the image: of a lesion, and of its malignancy.

    The first is the highest probability of a lesion of a pixel. The second is the share of malignant in the
    probability of a lesion, p2 / (p1 + p2), weighted by that probability.
    """
    background, benign, malignant = found.raw_grid.astype(float)
    return {
        "dice": image_row(confusion(truth, found.mask))["dice_lesion"],
        "marked": float(found.mask.any()),
        # near 1 the difference from 1 would be rounded away
        "lesion_score": -background.min(),
        "malignancy": malignant.sum() / max(1e-12, (benign + malignant).sum()),
    }


# --- numbers


def auc(positive: np.ndarray, negative: np.ndarray) -> float:
    """Probability that a positive has the higher score, ties half (Mann-Whitney); NaN where one kind is missing."""
    if not len(positive) or not len(negative):
        return float("nan")
    ranks = rankdata(np.concatenate([positive, negative]))[: len(positive)]
    return float((ranks.sum() - len(positive) * (len(positive) + 1) / 2) / len(positive) / len(negative))


def summarise(table: pd.DataFrame) -> dict[tuple[str, str], dict[str, float]]:
    """``MEASURES`` for each view, at home (validation and test) and on the other data set.

    Those at 95 % call an image from the score on that keeps 95 % of validation's lesion images.
    """
    found = {}
    for view, of_view in table.groupby("view"):
        lesions = of_view["label"] != "normal"
        validation = of_view.loc[lesions & (of_view["split"] == "val"), "lesion_score"]
        threshold = validation.quantile(0.05, interpolation="lower")
        for place, rows in of_view.groupby(of_view["split"].eq("other").map({True: "other", False: "home"})):
            sick, normal = rows[rows["label"] != "normal"], rows[rows["label"] == "normal"]
            score = sick.groupby("label")["malignancy"]
            found[view, place] = {
                "dice": sick["dice"].mean(),
                "misses": 1 - sick["marked"].mean(),
                "alarms": normal["marked"].mean(),
                "misses_95": (sick["lesion_score"] < threshold).mean(),
                "alarms_95": (normal["lesion_score"] >= threshold).mean(),
                "auc_lesion": auc(sick["lesion_score"], normal["lesion_score"]),
                "auc_malignant": auc(score.get_group("malignant"), score.get_group("benign")),
            }
    return found


def effects(runs: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Effect of each column of the design and its standard error, by least squares; NaN where the runs cannot tell."""
    matrix = np.column_stack([np.ones(len(runs)), runs])
    if np.linalg.matrix_rank(matrix) < matrix.shape[1]:
        return np.full(runs.shape[1], np.nan), np.full(runs.shape[1], np.nan)
    solution = np.linalg.lstsq(matrix, values, rcond=None)[0]
    left = len(values) - matrix.shape[1]
    variance = np.square(values - matrix @ solution).sum() / left if left > 0 else np.nan
    return solution[1:], np.sqrt(variance * np.diag(np.linalg.pinv(matrix.T @ matrix)))[1:]


def print_table(out: Path) -> None:
    """Print means and effects of the finished runs as Markdown."""
    done = {number: out / f"run{number:02}.csv" for number in range(RUNS)}
    done = {number: path for number, path in done.items() if path.exists()}
    if not done:
        sys.exit(f"{out} holds no finished run")
    summaries = {number: summarise(pd.read_csv(path)) for number, path in done.items()}
    failed = [number for number, one in summaries.items() if one["plain", "home"]["dice"] < FAILED]
    scores = [one for number, one in summaries.items() if number not in failed]
    runs = design()[[number for number in summaries if number not in failed]]
    print(
        f"\n{len(done)} of {RUNS} runs; failed, left out: {failed or 'none'}; effect of each change (standard error)"
    )
    for place in ("other", "home"):
        print(f"\n{place} data\n\n| | {' | '.join(MEASURES.values())} |\n|---{'|---' * len(MEASURES)}|")
        # runs x measures
        values, mirrored = (
            np.array([[one[view, place][name] for name in MEASURES] for one in scores])
            for view in ("plain", "mirror")
        )
        for at, source in enumerate(SOURCES):
            means = pd.DataFrame(values[runs[:, 0] == at]).mean()
            print(f"| mean, trained on {source} | " + " | ".join(f"{mean:.3f}" for mean in means) + " |")
        found = np.array([effects(runs, column) for column in values.T])
        for at, change in enumerate(CHANGES, start=1):
            _print_effects(change, found[:, 0, at], found[:, 1, at])
        # both of the same runs
        gain = pd.DataFrame(mirrored - values)
        _print_effects("mirror averaging", gain.mean(), gain.sem())


def _print_effects(name: str, effects: Iterable[float], errors: Iterable[float]) -> None:
    cells = (f"{effect:+.3f} ({error:.3f})" for effect, error in zip(effects, errors, strict=True))
    print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
