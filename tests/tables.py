"""Rows of per-image tables as the evaluation writes them, measured on small masks."""

import math

import numpy as np
import pandas as pd

from bus_smp.classes import LABELS
from bus_smp.measures.image import measure_image
from bus_smp.measures.uncertainty import UNCERTAINTIES
from bus_smp.statistics.metrics import IMAGE_COLUMNS


def table_row(image_id: str, group: str, label: str, counts: np.ndarray, score: float = 0.0, **more) -> dict:
    """One row, of masks one pixel high with ``counts`` pixels by true and predicted class; ``more`` replaces columns."""
    counts = np.array(counts)
    # Predicted, then both, then true, then neither: each lesion in one piece.
    cells = [(0, 1), (0, 2), (1, 1), (1, 2), (2, 2), (2, 1), (1, 0), (2, 0), (0, 0)]
    truth, prediction = np.repeat(np.array(cells, np.uint8), [counts[cell] for cell in cells], axis=0).T[
        :, None
    ]
    measured, _ = measure_image(truth, prediction)
    about = {
        "dataset": "made", "image_id": image_id, "patient_id": group, "group_id": group, "label": label,
        "width": 10, "height": 10, "flags": "", "pixel_mm": math.nan,
    }  # fmt: skip
    scores = {
        "malignant_score": score,
        "malignant_score_raw": score,
        "pixel_brier": 0.1,
        "pixel_brier_raw": 0.2,
        **dict.fromkeys(UNCERTAINTIES, score),
        **dict.fromkeys(IMAGE_COLUMNS, score),
    }
    calls = dict.fromkeys(
        ("called_malignant", "called_malignant_90", "called_malignant_95"), float(score >= 0.5)
    )
    at_point = {
        "marked_at_point": float((prediction > 0).any()),
        "hits_iou10_at_point": measured["hits_iou10"],
        "dice_lesion_at_point": measured["dice_lesion"],
    }
    return about | measured | scores | calls | at_point | {"call_confidence": 0.0} | more


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
