"""Scoring a network on whole images at native size, and refusing comparisons that are not what they claim."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bus_smp.data.examples import read_example
from bus_smp.data.images import color_mask, write_png
from bus_smp.data.manifest import Manifest
from bus_smp.errors import EvaluationError
from bus_smp.evaluation.baselines import BASELINES
from bus_smp.evaluation.metrics import PixelHistograms, confusion, image_row, malignant_score
from bus_smp.evaluation.predictor import Predictor
from bus_smp.threads import read_ahead

_COPIED = ("dataset", "image_id", "patient_id", "group_id", "label", "width", "height", "flags")


@dataclass(frozen=True)
class Scores:
    """One row per image, in the order scored: of the model, and of each baseline asked for."""

    model: pd.DataFrame
    baselines: dict[str, pd.DataFrame]


def score_images(
    predictor: Predictor,
    manifest: Manifest,
    rows: pd.DataFrame,
    *,
    baselines: Sequence[str] = (),
    histograms: PixelHistograms | None = None,
    mask_path: Callable[[Mapping[str, Any]], Path] | None = None,
    progress: Callable[[], object] = lambda: None,
) -> Scores:
    """Predict and score images one by one; memory does not grow with their number or total size.

    Args:
        rows: rows of ``manifest.frame``; every one is scored.
        baselines: names in ``BASELINES`` to score on the same images.
        histograms: receives the pixel probabilities, for ROC curves.
        mask_path: where to write the predicted colour mask of a row.
        progress: called after each image.

    Raises:
        EvaluationError: if there are no rows, or the network returns NaN.
        ImageError: naming the first file that is missing, damaged, or does not fit its mask.
    """
    if rows.empty:
        raise EvaluationError("there is no image to score")
    waiting: deque[tuple[dict[str, Any], np.ndarray]] = deque()
    tables: dict[str, list[dict[str, Any]]] = {name: [] for name in ("", *baselines)}

    def load(row: dict[str, Any]) -> tuple:
        image, truth = read_example(manifest, row)
        return row, image, truth, [confusion(truth, BASELINES[name](image)) for name in baselines]

    def images() -> Iterator[np.ndarray]:
        for row, image, truth, counts in read_ahead(load, rows.to_dict("records")):
            for name, of_baseline in zip(baselines, counts, strict=True):
                tables[name].append(_table_row(row, of_baseline, 0.0))
            waiting.append((row, truth))
            yield image

    for probabilities in predictor.probabilities(images()):
        row, truth = waiting.popleft()
        prediction = probabilities.argmax(axis=0).astype(np.uint8)
        tables[""].append(_table_row(row, confusion(truth, prediction), malignant_score(probabilities)))
        if histograms is not None:
            histograms.update(truth, probabilities)
        if mask_path is not None:
            write_png(mask_path(row), color_mask(prediction))
        progress()
    frames = {name: pd.DataFrame(table) for name, table in tables.items()}
    return Scores(frames.pop(""), frames)


def _table_row(row: Mapping[str, Any], counts: np.ndarray, score: float) -> dict[str, Any]:
    return {name: row[name] for name in _COPIED} | image_row(counts) | {"malignant_score": score}


def check_external(training: Manifest, target: Manifest) -> None:
    """Refuse to call ``target`` external if the run has seen any of it.

    All splits of the training manifest count: a data set whose test split was held back is still the
    same hospital, scanner and annotator.

    Raises:
        EvaluationError: naming the shared data sets, groups or pictures; or if it cannot be told, because
            pictures have no hash.
    """
    shared = sorted(set(training.datasets) & set(target.datasets))
    if shared:
        raise EvaluationError(
            f"{', '.join(shared)} was used in training this run, so it is no external test",
            hint="score the run on its own test split instead: bus-smp evaluate",
        )
    seen, new = training.used(), target.used()
    unproven = [name for name, rows in (("training", seen), ("target", new)) if (rows["sha256"] == "").any()]
    if unproven:
        raise EvaluationError(
            f"the {' and the '.join(unproven)} manifest has images without sha256: nobody can tell if they are the same",
            hint="make it with bus-smp make-manifest (from a table of your own: --csv)",
        )
    for column, things in (("group_id", "groups"), ("sha256", "pictures")):
        common = set(seen[column]) & set(new[column])
        if common:
            images = new.loc[new[column].isin(common), "image_id"]
            raise EvaluationError(
                f"{len(common)} {things} of {', '.join(target.datasets)} were used in training this run "
                f"(images {', '.join(images[:3])}{', ...' if len(images) > 3 else ''})",
                hint="a target that overlaps with the training data is no external test; choose another",
            )
