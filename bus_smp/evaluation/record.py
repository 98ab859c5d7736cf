"""The evaluation folder: tables first, then the summary and the figures made from them.

``per_image.csv``, ``baselines.csv``, ``pixel_roc.csv`` and ``masks/`` hold all that was measured;
everything else in the folder can be made again from them without the model.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd

from bus_smp import __version__
from bus_smp.classes import LABELS, MALIGNANT
from bus_smp.data.examples import read_example
from bus_smp.data.images import read_mask
from bus_smp.data.manifest import Manifest, manifest_hash
from bus_smp.evaluation.baselines import BASELINES
from bus_smp.evaluation.crosseval import score_images
from bus_smp.evaluation.legacy import legacy_metrics
from bus_smp.evaluation.metrics import TARGETS, PixelHistograms
from bus_smp.evaluation.predictor import Predictor
from bus_smp.evaluation.statistics import read_per_image, summarise, warnings_of
from bus_smp.files import replacing, write_text
from bus_smp.report.figures import write_confusion_matrix, write_roc_curves
from bus_smp.report.pictures import Case, write_qualitative

MODEL = "model"
_LONGEST_NAME = 150  # file systems take 255 bytes


def evaluate(
    predictor: Predictor,
    header: Mapping[str, Any],
    manifest: Manifest,
    rows: pd.DataFrame,
    folder: Path,
    *,
    about: Mapping[str, Any],
    legacy: bool = False,
    progress: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """Score ``rows``, write the evaluation folder, return what ``summary.json`` holds.

    Args:
        header: the checkpoint's header; recorded.
        rows: the rows of ``manifest`` to score.
        folder: replaced file by file.
        about: ``run``, ``dataset``, ``split``, ``external``; recorded and used in titles.
        legacy: add the numbers of the notebook this project replaces.

    Raises:
        EvaluationError, ImageError: as ``score_images``.
    """
    folder = Path(folder)
    histograms = PixelHistograms()
    scores = score_images(
        predictor,
        manifest,
        rows,
        baselines=list(BASELINES),
        histograms=histograms,
        mask_path=lambda row: mask_path(folder, row),
        progress=progress,
    )
    _write_table(scores.model, folder / "per_image.csv")
    _write_table(
        pd.concat([table.assign(baseline=name) for name, table in scores.baselines.items()]),
        folder / "baselines.csv",
    )
    _write_table(histograms.to_frame(), folder / "pixel_roc.csv")

    tables = {MODEL: scores.model, **scores.baselines}
    summaries = {name: summarise(table) for name, table in tables.items()}
    known = rows["patient_known"].all()
    summary = {
        "bus_smp": __version__,
        **about,
        "patient_known": bool(known),
        "computed_in": {"device": predictor.engine.device.type, "precision": predictor.engine.precision},
        "checkpoint": {
            key: header.get(key) for key in ("epoch", "score", "datasets", "git_commit", "precision")
        },
        "manifest_sha256": manifest_hash(manifest.frame),
        "warnings": _warnings(summaries, known),
        "summaries": summaries,
    }
    if legacy:
        summary["legacy"] = {name: legacy_metrics(table) for name, table in tables.items()}
    write_text(folder / "summary.json", json.dumps(summary, indent=2, allow_nan=False) + "\n")
    draw_figures(folder, manifest)
    return summary


def mask_path(folder: Path, row: Mapping[str, Any]) -> Path:
    """Where the predicted mask of a row lies; any id becomes a file name that stays in the folder."""
    name = quote(row["image_id"], safe=" ()")
    if len(name) > _LONGEST_NAME:
        name = f"{name[:_LONGEST_NAME]}-{hashlib.sha256(row['image_id'].encode()).hexdigest()[:16]}"
    return Path(folder) / "masks" / row["dataset"] / f"{name}.png"


def draw_figures(folder: Path, manifest: Manifest) -> None:
    """Draw the folder's figures again from its tables, its masks and the images of ``manifest``.

    Raises:
        EvaluationError: if a table is missing or damaged.
    """
    folder = Path(folder)
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    table = read_per_image(folder / "per_image.csv")
    histograms = PixelHistograms.from_frame(pd.read_csv(folder / "pixel_roc.csv"))
    model = summary["summaries"][MODEL]
    kind = "external test" if summary["external"] else f"{summary['split']} split"
    title = f"{summary['run']} on {summary['dataset']} ({kind}, {len(table)} images)"

    curves = {f"{target} pixels": histograms.roc(target) for target in TARGETS}
    curves["malignant images"] = _image_roc(table, model["rates"]["auc_malignant"]["mean"])
    write_roc_curves(curves, folder / "roc_curves.png", title)
    write_confusion_matrix(
        np.array(model["image_confusion"]),
        np.array(model["pixel_confusion"]),
        folder / "confusion_matrix.png",
        title,
    )
    write_qualitative(_cases(folder, table, manifest), folder / "qualitative.png", title)


def _image_roc(table: pd.DataFrame, auc: float | None) -> tuple[np.ndarray, np.ndarray, float]:
    """ROC of ``malignant_score`` over images, malignant against all others; the area is the summary's."""
    positive = (table["label"] == MALIGNANT.name).to_numpy()
    if auc is None:
        return np.array([]), np.array([]), float("nan")
    score = table["malignant_score"].to_numpy()
    thresholds = np.unique(score)[::-1]
    above = score[None] >= thresholds[:, None]
    rates = [np.concatenate([[0.0], above[:, of].mean(axis=1)]) for of in (~positive, positive)]
    return rates[0], rates[1], auc


def _cases(folder: Path, table: pd.DataFrame, manifest: Manifest) -> list[Case]:
    """Best, median and worst by lesion Dice, and the largest false alarm on a normal image."""
    lesions = table[table["dice_lesion"].notna()].sort_values(["dice_lesion", "image_id"], ignore_index=True)
    chosen: list[tuple[str, pd.Series]] = []
    if len(lesions):
        middle = (len(lesions) - 1) // 2
        places = {"best": [-1, -2], "median": [middle, middle + 1], "worst": [0, 1]}
        taken: set[int] = set()
        for note, indices in places.items():
            for index in (i % len(lesions) for i in indices if -len(lesions) <= i < len(lesions)):
                if index not in taken:
                    taken.add(index)
                    chosen.append((note, lesions.iloc[index]))
    normals = table[(table["label"] == LABELS[0]) & (table["false_alarm_area"] > 0)]
    if len(normals):
        chosen.append(("largest false alarm", normals.loc[normals["false_alarm_area"].idxmax()]))

    by_id = manifest.frame.set_index(["dataset", "image_id"], drop=False)
    cases = []
    for note, scored in chosen:
        row = by_id.loc[(scored["dataset"], scored["image_id"])]
        image, truth = read_example(manifest, row)
        prediction = read_mask([mask_path(folder, scored)], "color", row["label"], truth.shape)
        cases.append(
            Case(row["image_id"], row["label"], image, truth, prediction, scored["dice_lesion"], note)
        )
    return cases


def _warnings(summaries: Mapping[str, Mapping[str, Any]], patient_known: bool) -> list[str]:
    warnings = list(warnings_of(summaries[MODEL]))
    if not patient_known:
        warnings.append("the data set publishes no patient ids: groups are duplicates found, not patients")
    dice = {name: summary["metrics"]["dice_lesion"]["mean"] for name, summary in summaries.items()}
    if dice[MODEL] is not None:
        beaten = [name for name in BASELINES if dice[name] >= dice[MODEL]]
        warnings += [f"the trivial baseline {name} reaches the same lesion Dice or more" for name in beaten]
    return warnings


def _write_table(table: pd.DataFrame, path: Path) -> None:
    with replacing(path) as temporary:
        table.to_csv(temporary, index=False, lineterminator="\n")
