"""Lesions as things to be found: predicted components matched to reference components, and the FROC curve."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from bus_smp.classes import BENIGN, MALIGNANT
from bus_smp.errors import EvaluationError
from bus_smp.measures.regions import lesion_components

# IoU from which a component can be a hit at all, and from which it is a good one.
LEAST_IOU, GOOD_IOU = 0.1, 0.5

DETECTION_COLUMNS = (
    "lesions_true",
    "lesions_predicted",
    "hits_iou10",
    "hits_iou50",
    "false_lesions_iou10",
    "false_lesions_iou50",
    "right_class_iou10",
)
COMPONENT_COLUMNS = ("component", "area", "score", "class", "iou", "right_class")


def match_lesions(
    truth: np.ndarray, prediction: np.ndarray, lesion_probability: np.ndarray | None = None
) -> tuple[dict[str, int], list[dict[str, Any]]]:
    """Match predicted lesions to reference lesions, one to one.

    A lesion is an 8-connected component of lesion pixels of either class; its class is that of most of its
    pixels, malignant on a tie. Pairs are taken by falling IoU as long as both are free and IoU >= .1. Of pairs with exactly the same IoU
    that exclude one another, those are taken that make most pairs, then most of the same class, then the highest scores: so
    no number depends on the way the image is turned.

    At IoU >= .5 no other way is possible: two components of one mask cannot both overlap a third by that
    much (Kirillov et al., CVPR 2019; at exactly .5 they would fill it, and so touch), so each has at most one partner. At .1
    a lesion may have several candidates. The best overlap then goes first, even where another choice would give
    one hit more; in return one matching holds for both thresholds, and the hits at .5 are among those at .1.
    A component on a lesion that is already matched is a false one: a lesion predicted in pieces counts as found once.

    Args:
        truth, prediction: uint8 (H, W) of class indices.
        lesion_probability: float (H, W) in 0..1, the probability of benign or malignant; without it each
            component's score is 1.

    Returns:
        Integers under ``DETECTION_COLUMNS``: lesions in the reference and in the prediction; pairs with IoU >= .1 and
        >= .5; predicted lesions in no such pair; pairs at .1 with the same class. Never undefined: 0 where there is none.
        And one dict per predicted component, keys ``COMPONENT_COLUMNS``: number (1..), area (pixels),
        score (mean lesion probability of its pixels), class, iou (0 where unmatched), right_class (1 or 0; NaN where unmatched).
    """
    labels_true, stats_true = lesion_components(truth)
    labels, stats = lesion_components(prediction)
    malignant_true = _mostly_malignant(truth, labels_true, stats_true[:, 4])
    malignant = _mostly_malignant(prediction, labels, stats[:, 4])
    scores = _scores(labels, stats[:, 4], lesion_probability)
    pairs = overlapping_pairs(labels_true, stats_true[:, 4], labels, stats[:, 4])
    reference, candidate, _ = pairs
    matches = _match(*pairs, malignant_true[reference] == malignant[candidate], scores[candidate])

    components: list[dict[str, Any]] = []
    for index, (area, score, is_malignant) in enumerate(zip(stats[:, 4], scores, malignant, strict=True)):
        partner, iou = matches.get(index, (None, 0.0))
        components.append(
            {
                "component": index + 1,
                "area": int(area),
                "score": float(score),
                "class": MALIGNANT.name if is_malignant else BENIGN.name,
                "iou": iou,
                "right_class": math.nan if partner is None else int(malignant_true[partner] == is_malignant),
            }
        )
    good = sum(iou >= GOOD_IOU for _, iou in matches.values())
    row = {
        "lesions_true": len(stats_true),
        "lesions_predicted": len(stats),
        "hits_iou10": len(matches),
        "hits_iou50": good,
        "false_lesions_iou10": len(stats) - len(matches),
        "false_lesions_iou50": len(stats) - good,
        "right_class_iou10": sum(components[index]["right_class"] for index in matches),
    }
    return row, components


def _mostly_malignant(mask: np.ndarray, labels: np.ndarray, areas: np.ndarray) -> np.ndarray:
    """Bool (n,): is at least half of each component malignant?"""
    malignant = np.bincount(labels[mask == MALIGNANT.index], minlength=len(areas) + 1)[1:]
    return 2 * malignant >= areas


def _scores(labels: np.ndarray, areas: np.ndarray, lesion_probability: np.ndarray | None) -> np.ndarray:
    if lesion_probability is None:
        return np.ones(len(areas))
    inside = labels > 0
    sums = np.bincount(labels[inside], weights=lesion_probability[inside], minlength=len(areas) + 1)[1:]
    # Sums of probabilities are off by rounding.
    return np.clip(sums / areas, 0, 1)


def overlapping_pairs(
    labels_true: np.ndarray, areas_true: np.ndarray, labels: np.ndarray, areas: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Reference component, predicted component, both counted from 0, and IoU of each two that share a pixel."""
    both = (labels_true > 0) & (labels > 0)
    # Pairs that occur, not a table of all: noise can have thousands of components in each mask.
    pairs, shared = np.unique(
        (labels_true[both] - 1).astype(np.int64) * len(areas) + (labels[both] - 1), return_counts=True
    )
    reference, candidate = np.divmod(pairs, max(len(areas), 1))
    return reference, candidate, shared / (areas_true[reference] + areas[candidate] - shared)


def _match(
    reference: np.ndarray, candidate: np.ndarray, iou: np.ndarray, same_class: np.ndarray, score: np.ndarray
) -> dict[int, tuple[int, float]]:
    """Predicted component -> (reference component, IoU); arguments: float or int (pairs,)."""
    taken: set[int] = set()
    matches: dict[int, tuple[int, float]] = {}
    # one more pair is worth more than all classes, and one more class more than all scores
    most = len(iou) + 1
    worth = most * (most + same_class) + score
    order = np.argsort(-iou, kind="stable")
    order = order[iou[order] >= LEAST_IOU]
    for equal in np.split(order, np.flatnonzero(np.diff(iou[order])) + 1):
        free = [i for i in equal if reference[i] not in taken and candidate[i] not in matches]
        for place in _most_worth(np.array(free, int), reference, candidate, worth):
            taken.add(int(reference[place]))
            matches[int(candidate[place])] = int(reference[place]), float(iou[place])
    return matches


def _most_worth(
    places: np.ndarray, reference: np.ndarray, candidate: np.ndarray, worth: np.ndarray
) -> Iterator[int]:
    """The pairs at ``places`` that can stand together, a component in one pair only, and are worth most."""
    rows, row = np.unique(reference[places], return_inverse=True)
    columns, column = np.unique(candidate[places], return_inverse=True)
    if len(rows) == len(columns) == len(places):
        yield from places
        return
    ends = row, column + len(rows)
    side = len(rows) + len(columns)
    _, part = connected_components(
        coo_array((np.ones(len(places)), ends), shape=(side, side)), directed=False
    )
    for number in np.unique(part):
        own = np.flatnonzero(part[row] == number)
        at = tuple(np.unique(ends[own], return_inverse=True)[1] for ends in (row, column))
        table = np.zeros([cells.max() + 1 for cells in at])
        table[at] = worth[places[own]]
        chosen = set(zip(*linear_sum_assignment(table, maximize=True), strict=True))
        yield from (place for place, *cell in zip(places[own], *at, strict=True) if tuple(cell) in chosen)


def froc(
    per_image: pd.DataFrame, components: pd.DataFrame, iou: float = LEAST_IOU
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Free-response ROC (Bunch et al., Proc. SPIE 127, 1977; Chakraborty, Medical Physics 1989) over a set of images.

    The candidates are the components of the predicted masks, each with its score; lowering the threshold
    admits more of them, and never lets one grow. So the curve ends at the network's own operating point: what it
    would find if asked to mark more than it marks is not in it.

    Args:
        per_image: the per-image table; every image counts, those without lesions too.
        components: the table of components of the same images.
        iou: IoU from which a component is a hit, ``LEAST_IOU`` or more (below it nothing is matched).

    Returns:
        Three float arrays, one point per threshold: false lesions per image, lesion sensitivity (0..1; NaN where the
        reference has no lesion), and the score from which components count, falling from infinity (none) to 0 (all).

    Raises:
        EvaluationError: if a table lacks a column, there are no images, or a component is of none of them or has no score.
    """
    if iou < LEAST_IOU:
        raise ValueError(f"iou {iou}: nothing is matched below {LEAST_IOU}")
    key = ["dataset", "image_id"]
    for name, table, needed in (
        ("per-image table", per_image, [*key, "lesions_true"]),
        ("table of components", components, [*key, "score", "iou"]),
    ):
        missing = [column for column in needed if column not in table]
        if missing:
            raise EvaluationError(
                f"the {name} lacks the columns {', '.join(missing)}",
                hint="evaluate again: bus-smp evaluate, or bus-smp crosseval --target NAME",
            )
    if per_image.empty:
        raise EvaluationError("the per-image table has no rows: nothing was evaluated")
    known = pd.MultiIndex.from_frame(per_image[key].astype(str))
    stray = ~pd.MultiIndex.from_frame(components[key].astype(str)).isin(known)
    if stray.any():
        first = components[stray].iloc[0]
        raise EvaluationError(
            f"{first['dataset']} {first['image_id']} has components but is not in the per-image table",
            hint="evaluate again: bus-smp evaluate, or bus-smp crosseval --target NAME",
        )
    score = components["score"].to_numpy(float)
    if not (score >= 0).all():
        raise EvaluationError("the table of components holds scores that are NaN or below 0")
    hit = components["iou"].to_numpy(float) >= iou
    thresholds = np.append(np.inf, np.unique(np.append(score, 0.0))[::-1])
    # Components at or above each threshold: those not below it.
    false, found = (
        np.count_nonzero(of) - np.searchsorted(np.sort(score[of]), thresholds) for of in (~hit, hit)
    )
    lesions = float(per_image["lesions_true"].sum())
    sensitivity = found / lesions if lesions else np.full(len(thresholds), np.nan)
    return false / len(per_image), sensitivity, thresholds
