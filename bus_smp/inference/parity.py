"""Whether two networks predict the same on real images: an exported file and the weights it was made from."""

import math
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

import numpy as np

from bus_smp.classes import MALIGNANT
from bus_smp.data.geometry import Geometry
from bus_smp.data.images import resize_mask
from bus_smp.inference.predictor import Network
from bus_smp.measures.overlap import confusion, image_metrics, malignant_score
from bus_smp.statistics.bootstrap import defined

# Share of the pixels with the same most probable class.
LEAST_AGREEMENT = 0.9995
MOST_DICE_DIFFERENCE = 0.001
# Of a logit of the image head, or of what the shape head says.
MOST_HEAD_DIFFERENCE = 0.01
_BATCH = 8


def compare_networks(
    reference: Network,
    network: Network,
    examples: Iterable[tuple[np.ndarray, np.ndarray | None]],
    geometry: Geometry,
    temperature: float = 1.0,
) -> dict[str, Any]:
    """Run both on the same images, and compare them on the network's grid, without its padding.

    Args:
        reference, network: from uint8 (N, S, S, 3).
        examples: image uint8 (H, W, 3) and true mask uint8 (H, W), or None where it is not known.
        geometry: of the run.
        temperature: of the run; the malignancy score of an image is taken after it.

    Returns:
        JSON values; None where undefined. ``images``; ``argmax_agreement``: share of pixels with the same most
        probable class; ``largest_logit_difference``; ``largest_head_difference`` of the heads for the whole image;
        ``largest_score_difference`` of the malignancy score;
        ``dice_lesion``, ``dice_lesion_reference`` and ``dice_lesion_difference``: mean over the images with a true
        lesion; ``lesion_overlap``: mean over the images without known truth of 2 A / (B + C), where A pixels are lesion
        for both networks, B for the one, C for the other; ``auc_malignant``, ``auc_malignant_reference``: by image;
        ``finite``: whether no logit is NaN or infinite.
    """
    agreed, pixels, largest, finite = 0, 0, 0.0, True
    of_heads: list[float] = []
    dice: list[tuple[float, float]] = []
    overlaps: list[tuple[float, float]] = []
    scores: list[tuple[float, float, bool | None]] = []
    remaining = iter(examples)
    while batch := list(islice(remaining, _BATCH)):
        grids = np.stack([geometry.image(image) for image, _ in batch])
        both = reference(grids), network(grids)
        for head_expected, head_found in zip(both[0][1:], both[1][1:], strict=True):
            if head_expected is not None and head_found is not None:
                finite &= bool(np.isfinite(head_found).all())
                of_heads.append(float(np.abs(head_expected - head_found).max()))
        for number, (image, truth) in enumerate(batch):
            expected, found = (geometry.cut(outputs.logits[number], image.shape) for outputs in both)
            finite &= bool(np.isfinite(found).all())
            largest = max(largest, float(np.abs(expected - found).max()))
            masks = expected.argmax(0).astype(np.uint8), found.argmax(0).astype(np.uint8)
            agreed += int((masks[0] == masks[1]).sum())
            pixels += masks[0].size
            true = masks[0] if truth is None else resize_mask(truth, masks[0].shape)
            by_reference, by_network = (image_metrics(confusion(true, mask))["dice_lesion"] for mask in masks)
            (overlaps if truth is None else dice).append((by_reference, by_network))
            malignant = None if truth is None else bool((true == MALIGNANT.index).any())
            scores.append((_score(expected, temperature), _score(found, temperature), malignant))
    (reference_dice, network_dice), (reference_auc, network_auc) = _means(dice), _aucs(scores)
    return {
        "images": len(scores),
        "finite": finite,
        "argmax_agreement": agreed / pixels if pixels else None,
        "largest_logit_difference": defined(largest),
        "largest_head_difference": defined(max(of_heads, default=math.nan)),
        "largest_score_difference": defined(max((abs(a - b) for a, b, _ in scores), default=math.nan)),
        "dice_lesion_reference": defined(reference_dice),
        "dice_lesion": defined(network_dice),
        "dice_lesion_difference": defined(network_dice - reference_dice),
        "lesion_overlap": defined(_means(overlaps)[1]),
        "auc_malignant_reference": defined(reference_auc),
        "auc_malignant": defined(network_auc),
    }


def passes(parity: Mapping[str, Any]) -> bool:
    """Return whether an fp32 file agrees with the weights closely enough to be kept."""
    difference, overlap = parity["dice_lesion_difference"], parity["lesion_overlap"]
    of_heads = parity["largest_head_difference"]
    return bool(
        parity["finite"]
        and parity["argmax_agreement"] is not None
        and parity["argmax_agreement"] >= LEAST_AGREEMENT
        and (difference is None or abs(difference) <= MOST_DICE_DIFFERENCE)
        and (overlap is None or overlap >= 1 - MOST_DICE_DIFFERENCE)
        and (of_heads is None or of_heads <= MOST_HEAD_DIFFERENCE)
    )


def _score(logits: np.ndarray, temperature: float) -> float:
    scaled = logits / temperature
    if not np.isfinite(scaled).all():
        return math.nan
    exponents = np.exp(scaled - scaled.max(axis=0))
    return malignant_score(exponents / exponents.sum(axis=0))


def _means(pairs: list[tuple[float, float]]) -> tuple[float, float]:
    defined = [pair for pair in pairs if not math.isnan(pair[0])]
    if not defined:
        return math.nan, math.nan
    first, second = np.mean(defined, axis=0)
    return float(first), float(second)


def _aucs(scores: list[tuple[float, float, bool | None]]) -> tuple[float, float]:
    known = [score for score in scores if score[2] is not None]
    truth = np.array([score[2] for score in known], bool)
    reference, network = (np.array([score[which] for score in known]) for which in (0, 1))
    return _auc(reference, truth), _auc(network, truth)


def _auc(scores: np.ndarray, truth: np.ndarray) -> float:
    if not len(scores) or np.isnan(scores).any():
        return math.nan
    if truth.all() or not truth.any():
        return math.nan
    # Not at the top: every start of a command that predicts would wait for it.
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(truth, scores))
