"""Rows of per-image tables as the evaluation writes them, from counts alone."""

import math

import numpy as np
import pandas as pd

from bus_smp.classes import LABELS
from bus_smp.measures.overlap import image_row
from bus_smp.measures.shape import SHAPES
from bus_smp.measures.surfaces import SURFACE_COLUMNS


def table_row(image_id: str, group: str, label: str, counts: np.ndarray, score: float = 0.0, **more) -> dict:
    """One row: overlap from ``counts``, a lesion that overlaps found as one component; ``more`` replaces columns."""
    counts = np.array(counts)
    row = image_row(counts)
    shown, seen = counts[1:].sum(), counts[:, 1:].sum()
    hit = int(row["dice_lesion"] > 0)
    right = int(hit and np.argmax(counts[1:].sum(axis=1)) == np.argmax(counts[:, 1:].sum(axis=0)))
    about = {
        "dataset": "made", "image_id": image_id, "patient_id": group, "group_id": group, "label": label,
        "width": 10, "height": 10, "flags": "", "pixel_mm": math.nan,
    }  # fmt: skip
    surfaces = {name: _surface(name, shown, hit) for name in SURFACE_COLUMNS}
    detection = {
        "lesions_true": int(shown > 0), "lesions_predicted": int(seen > 0), "hits_iou10": hit, "hits_iou50": hit,
        "false_lesions_iou10": int(seen > 0) - hit, "false_lesions_iou50": int(seen > 0) - hit, "right_class_iou10": right,
    }  # fmt: skip
    shapes = {
        f"{shape}_{mask}": float(area) if area else math.nan
        for shape in SHAPES
        for mask, area in (("truth", shown), ("predicted", seen))
    }
    scores = {
        "malignant_score": score,
        "malignant_score_raw": score,
        "pixel_brier": 0.1,
        "pixel_brier_raw": 0.2,
    }
    calls = {
        name: float(score >= 0.5)
        for name in ("called_malignant", "called_malignant_90", "called_malignant_95")
    }
    return {
        **about,
        **row,
        **surfaces,
        **detection,
        **shapes,
        **scores,
        **calls,
        "call_confidence": 0.0,
        **more,
    }


def _surface(name: str, shown: int, hit: int) -> float:
    missed = 0.0 if name.startswith("surface_dice") else math.nan
    return (0.9 if name.startswith("surface_dice") else 2.0) if hit else missed if shown else math.nan


def lesion(label: str, found: int, predicted_as: str = "", size: int = 20) -> np.ndarray:
    """Counts of an image of 100 pixels with one lesion of ``size``, of which ``found`` are predicted."""
    counts = np.zeros((3, 3), int)
    true = LABELS.index(label)
    counts[0, 0] = 100 - size
    counts[true, LABELS.index(predicted_as or label)] = found
    counts[true, 0] += size - found
    return counts


def normal(false_alarm: int = 0, predicted_as: str = "benign") -> np.ndarray:
    """Counts of an image of 100 pixels without a lesion, ``false_alarm`` of them predicted."""
    counts = np.zeros((3, 3), int)
    counts[0, 0] = 100 - false_alarm
    counts[0, LABELS.index(predicted_as)] += false_alarm
    return counts


def clustered_table(groups: int, per_group: int, seed: int, between: float = 0.2, within: float = 0.02):
    """A table in which images of one patient resemble each other; only lesion Dice matters."""
    random = np.random.default_rng(seed)
    level = np.repeat(0.5 + between * random.uniform(-1, 1, groups), per_group)
    dice = level + within * random.uniform(-1, 1, groups * per_group)
    row = table_row("0", "p0", "benign", lesion("benign", 10))
    return pd.DataFrame([row] * len(dice)).assign(
        image_id=[str(index) for index in range(len(dice))],
        group_id=[f"p{index // per_group}" for index in range(len(dice))],
        dice_lesion=dice,
    )


def random_table(images: int, groups: int, seed: int) -> pd.DataFrame:
    """A table with every label, ties in the scores, misses and false alarms."""
    random = np.random.default_rng(seed)
    rows = []
    for index in range(images):
        label = LABELS[random.integers(3)]
        score = round(random.uniform() * 0.6 + 0.2 * LABELS.index(label), 1)
        counts = (
            normal(int(random.integers(3))) if label == "normal" else lesion(label, int(random.integers(21)))
        )
        rows.append(table_row(str(index), f"p{index % groups}", label, counts, score))
    return pd.DataFrame(rows)
