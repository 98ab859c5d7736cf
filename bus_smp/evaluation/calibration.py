"""Temperature and operating points, fitted only on a run's validation split, and what they make of a prediction.

``calibrate`` is the only function that fits anything. It takes a manifest, not rows, and reads the validation split
from that manifest's files; so no caller can fit on the images that are scored.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import brentq

from bus_smp.classes import CLASSES, IGNORED, LABELS, MALIGNANT
from bus_smp.data.examples import ExampleReader
from bus_smp.data.manifest import Manifest
from bus_smp.errors import EvaluationError
from bus_smp.evaluation.operating_point import FoundLesions, fit_operating_point
from bus_smp.inference.batches import predict_batches
from bus_smp.inference.out_of_distribution import fit_reference
from bus_smp.inference.predictor import NetworkPredictor, Prediction, TorchNetwork, load_predictor
from bus_smp.measures.lesions import match_lesions
from bus_smp.measures.overlap import malignant_score, score_mask
from bus_smp.measures.reliability import brier_score
from bus_smp.model.checkpoint import write_checkpoint
from bus_smp.runs.describe import LEAST_TEMPERATURE, MOST_TEMPERATURE
from bus_smp.statistics.metrics import IMAGE_COLUMNS
from bus_smp.system.engine import Engine
from bus_smp.system.threads import read_ahead

# Share of the validation images without malignancy that an operating point does not call malignant.
SPECIFICITIES = {"specificity_90": 0.90, "specificity_95": 0.95}

# What the mask finds at the operating point.
POINT_COLUMNS = ("marked_at_point", "hits_iou10_at_point", "dice_lesion_at_point")

SCORE_COLUMNS = (
    "malignant_score",
    "malignant_score_raw",
    "called_malignant",
    "called_malignant_90",
    "called_malignant_95",
    "call_confidence",
    *POINT_COLUMNS,
    "pixel_brier",
    "pixel_brier_raw",
)

# More pixels than this change the third digit of the temperature at most, and cost memory.
_PIXELS = 2_000_000
# Less is rounded in float32.
_LEAST_PROBABILITY = 1e-7


def calibrate(
    predictor: NetworkPredictor, manifest: Manifest, reader: ExampleReader | None = None
) -> dict[str, Any]:
    """Fit temperature and thresholds on the validation split of ``manifest``, and on nothing else.

    Args:
        reader: of this manifest, where it has read the split already; each example is needed twice.

    Returns:
        JSON values. ``temperature``: see ``fit_temperature``. ``threshold``: image score from which an image is called
        malignant, the one with the highest Youden's J. ``thresholds``: those that keep a specificity of 90 % and
        95 %. Thresholds are None where the split lacks malignant or other images, and ``reason`` gives the reason.
        ``operating_point``: see ``fit_operating_point``. ``image``: of an image head, its own ``temperature``, and the mean
        negative log-likelihood of an image before and after it.
        ``nll_before``, ``nll_after``: mean negative log-likelihood of a pixel (nats). ``brier_before``, ``brier_after``: Brier score of the
        malignant score. ``images``, ``malignant_images``, ``groups``: what it was fitted on; ``fitted_on``: "val".

    Raises:
        EvaluationError: if the split is empty.
        ValueError: if ``reader`` reads another manifest.
    """
    reader = reader or ExampleReader(manifest)
    rows = manifest.used("val")
    if rows.empty:
        raise EvaluationError(
            "the validation split is empty: there is nothing to calibrate on",
            hint="make the manifest with a validation split and train again",
        )
    plain = predictor.at_temperature(1.0)
    logits, truth = _sample(plain, manifest, rows, reader)
    temperature = fit_temperature(logits, truth)
    scaled = predictor.at_temperature(temperature)

    def measure(row: Any, image: np.ndarray, mask: np.ndarray, prediction: Prediction) -> tuple:
        found = FoundLesions.of(mask, prediction.lesions)
        return prediction.score, malignant_score(prediction.raw_grid), found, prediction.image_probabilities

    measured = predict_batches(scaled, rows.to_dict("records"), lambda row: reader(manifest, row), measure)
    scores, raw, found, of_images = zip(*measured, strict=True)
    of_head: dict[str, Any] = {}
    if of_images[0] is not None:
        of_head = fit_image_temperature(np.stack(of_images), list(rows["label"]))
        normal = at_temperature(np.stack(of_images), of_head["temperature"])[:, 0]
        pairs = zip(found, normal, strict=True)
        found = tuple(replace(one, normal=float(value)) for one, value in pairs)
    malignant = (rows["label"] == MALIGNANT.name).to_numpy()
    return {
        "temperature": temperature,
        **fit_thresholds(np.array(scores), malignant),
        "operating_point": fit_operating_point(found),
        **({"image": of_head} if of_head else {}),
        "fitted_on": "val",
        "images": len(rows),
        "malignant_images": int(malignant.sum()),
        "groups": int(rows["group_id"].nunique()),
        "nll_before": negative_log_likelihood(logits, truth, 1.0),
        "nll_after": negative_log_likelihood(logits, truth, temperature),
        "brier_before": float(np.mean((np.array(raw) - malignant) ** 2)),
        "brier_after": float(np.mean((np.array(scores) - malignant) ** 2)),
    }


def calibrate_weights(
    path: Path,
    engine: Engine,
    manifest: Manifest,
    reader: ExampleReader | None = None,
    *,
    batch_size: int = 8,
    cached: np.ndarray | None = None,
) -> dict[str, Any]:
    """``calibrate`` a file of weights, and write the result and ``fit_reference`` into its header; the weights stay.

    Args:
        path: ``best.safetensors`` of the run that was trained on ``manifest``.
        cached: the training images, as for ``fit_reference``.

    Raises:
        CheckpointError: as ``load_predictor``.
        EvaluationError: as ``calibrate``.
    """
    predictor, header = load_predictor(path, engine, batch_size)
    reader = reader or ExampleReader(manifest)
    calibration = calibrate(predictor, manifest, reader)
    fitted = {"calibration": calibration, "ood": fit_reference(predictor, manifest, reader, cached)}
    about = {key: value for key, value in header.items() if key != "sha256"} | fitted
    assert isinstance(predictor.network, TorchNetwork)
    write_checkpoint(path, predictor.network.model, about)
    return calibration


def _sample(
    predictor: NetworkPredictor, manifest: Manifest, rows: pd.DataFrame, reader: ExampleReader
) -> tuple[np.ndarray, np.ndarray]:
    """Logits float32 (N, 3) and classes uint8 (N,) of every k-th pixel of the grid in both directions."""
    stride = max(1, math.ceil(math.sqrt(len(rows) * predictor.size**2 / _PIXELS)))
    logits, truths = [], []

    def load(row: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        image, mask = reader(manifest, row)
        return image, predictor.geometry.mask(mask)[::stride, ::stride]

    examples = read_ahead(load, rows.to_dict("records"))
    while batch := list(islice(examples, predictor.batch_size)):
        images, masks = zip(*batch, strict=True)
        grid = predictor.grid_logits(images)[:, :, ::stride, ::stride]
        logits.append(grid.transpose(0, 2, 3, 1).reshape(-1, len(CLASSES)))
        truths.append(np.stack(masks).reshape(-1))
    truth = np.concatenate(truths)
    counted = truth != IGNORED
    return np.concatenate(logits)[counted], truth[counted]


def negative_log_likelihood(logits: np.ndarray, truth: np.ndarray, temperature: float) -> float:
    """Mean of -log softmax(logits / temperature)[truth] in nats; float (N, C), integer (N,)."""
    below, chosen = _below_the_highest(logits, truth)

    def total(part: np.ndarray) -> float:
        return float(np.log(np.exp(part / temperature).sum(axis=0)).sum())

    return sum(map(total, _blocks(below))) / len(truth) - chosen / temperature


def _below_the_highest(logits: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, float]:
    """Each logit less the highest of its pixel, float64 (C, N), and the mean of the true classes'.

    So no power of e overflows, and a sum over classes adds long rows.
    """
    below = np.ascontiguousarray(logits.T, dtype=np.float64)
    below -= below.max(axis=0)
    return below, float(np.take_along_axis(below, truth[None].astype(np.intp), axis=0).mean())


def _blocks(below: np.ndarray) -> Iterator[np.ndarray]:
    """Pixels in blocks that fit the processor's cache."""
    for start in range(0, below.shape[1], 1 << 14):
        yield below[:, start : start + (1 << 14)]


def fit_temperature(logits: np.ndarray, truth: np.ndarray) -> float:
    """The temperature with the least negative log-likelihood (Guo et al., ICML 2017), in .05..20.

    With b = 1 / temperature the negative log-likelihood is convex, and its slope, mean(E[z] - z_truth) under softmax(b z),
    rises in b: the temperature is where the slope crosses zero. Where it does not cross within the limits, the nearer limit is
    returned; logits that carry no information (all equal) leave the temperature at 1.

    Args:
        logits: float (N, C).
        truth: integer (N,), 0..C-1.
    """
    below, chosen = _below_the_highest(logits, truth)

    def slope(log_b: float) -> float:
        total = 0.0
        for part in _blocks(below):
            weights = np.exp(part * math.exp(log_b))
            total += float(((weights * part).sum(axis=0) / weights.sum(axis=0)).sum())
        return total / len(truth) - chosen

    low, high = -math.log(MOST_TEMPERATURE), -math.log(LEAST_TEMPERATURE)
    if below.min(initial=0) == 0:
        return 1.0
    if slope(low) >= 0:
        return MOST_TEMPERATURE
    if slope(high) <= 0:
        return LEAST_TEMPERATURE
    return round(math.exp(-brentq(slope, low, high)), 6)


def at_temperature(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Probabilities float (N, C) as the softmax of the same logits over ``temperature`` gives them."""
    powers = np.maximum(probabilities, _LEAST_PROBABILITY) ** (1 / temperature)
    return powers / powers.sum(axis=1, keepdims=True)


def fit_image_temperature(probabilities: np.ndarray, labels: Sequence[str]) -> dict[str, float]:
    """The temperature of the image head.

    Args:
        probabilities: float (N, 3), before temperature, in the order of ``LABELS``.
        labels: of the images.
    """
    # logarithms of probabilities are logits
    logits = np.log(np.maximum(probabilities, _LEAST_PROBABILITY))
    truth = np.array([LABELS.index(label) for label in labels])
    temperature = fit_temperature(logits, truth)
    return {
        "temperature": temperature,
        "nll_before": negative_log_likelihood(logits, truth, 1.0),
        "nll_after": negative_log_likelihood(logits, truth, temperature),
    }


def fit_thresholds(scores: np.ndarray, malignant: np.ndarray) -> dict[str, Any]:
    """Scores from which an image is called malignant: ``threshold``, ``thresholds`` and ``reason``.

    ``threshold`` has the highest Youden's J = sensitivity + specificity - 1 (Youden, Cancer 1950); of equal ones the
    lowest, which overlooks fewer. ``thresholds`` are the lowest that keep a specificity of 90 % and 95 %. Every one is one of
    the scores, or just above the highest. All None, with a reason, where one of the two kinds of image is absent.

    Args:
        scores: float (N,), 0..1.
        malignant: bool (N,).
    """
    none = {"threshold": None, "thresholds": dict.fromkeys(SPECIFICITIES)}
    for kind, name in ((malignant, "malignant"), (~malignant, "other than malignant")):
        if not kind.any():
            return {**none, "reason": f"the validation split has no image {name}"}
    # each score, and one above all of them, which calls no image
    cuts = np.append(np.unique(scores), np.nextafter(scores.max(), 2))

    def called(kind: np.ndarray) -> np.ndarray:
        ordered = np.sort(scores[kind])
        return (len(ordered) - np.searchsorted(ordered, cuts)) / len(ordered)

    false, sensitivity = called(~malignant), called(malignant)
    # Rounded, so that rounding errors do not break ties.
    specificity, youden = np.round(1 - false, 12), np.round(sensitivity - false, 12)
    kept = {name: float(cuts[np.argmax(specificity >= least)]) for name, least in SPECIFICITIES.items()}
    return {"threshold": float(cuts[np.argmax(youden)]), "thresholds": kept, "reason": ""}


def score_row(
    prediction: Prediction, truth: np.ndarray, grid_truth: np.ndarray, calibration: Mapping[str, Any]
) -> dict[str, float]:
    """One image's scores under ``SCORE_COLUMNS``; what needs a threshold that is missing is NaN.

    ``call_confidence`` = abs(log-odds of the score - log-odds of the threshold): how far the call is from being another.
    At the operating point: whether a lesion is kept (1 or 0), the lesions found with IoU >= .1, and the lesion Dice.

    Args:
        truth: uint8 (H, W) of class indices, at the image's own size.
        grid_truth: the same on the network's grid, uint8 (S, S).
        calibration: from ``calibrate``; empty for a run without one.
    """
    score = prediction.score
    thresholds = calibration.get("thresholds") or {}
    cuts = {
        "called_malignant": calibration.get("threshold"),
        "called_malignant_90": thresholds.get("specificity_90"),
        "called_malignant_95": thresholds.get("specificity_95"),
    }
    threshold = cuts["called_malignant"]
    return {
        "malignant_score": score,
        "malignant_score_raw": malignant_score(prediction.raw_grid),
        **{name: math.nan if cut is None else float(score >= cut) for name, cut in cuts.items()},
        "call_confidence": math.nan if threshold is None else abs(_log_odds(score) - _log_odds(threshold)),
        **_at_point(prediction, truth),
        "pixel_brier": brier_score(prediction.grid, grid_truth),
        "pixel_brier_raw": brier_score(prediction.raw_grid, grid_truth),
        **_of_heads(prediction),
    }


def _of_heads(prediction: Prediction) -> dict[str, float]:
    """What the heads of the whole image say; no columns without such heads."""
    probabilities = prediction.image_probabilities
    of_image = (
        {} if probabilities is None else dict(zip(IMAGE_COLUMNS, map(float, probabilities), strict=True))
    )
    return of_image | {f"{shape}_head": value for shape, value in (prediction.head_shape or {}).items()}


def _at_point(prediction: Prediction, truth: np.ndarray) -> dict[str, float]:
    if not prediction.rules.has_operating_point:
        return dict.fromkeys(POINT_COLUMNS, math.nan)
    mask = prediction.kept_mask
    found = (
        float(mask.any()),
        match_lesions(truth, mask)[0]["hits_iou10"],
        score_mask(truth, mask)["dice_lesion"],
    )
    return dict(zip(POINT_COLUMNS, found, strict=True))


def _log_odds(probability: float) -> float:
    probability = min(max(probability, 1e-7), 1 - 1e-7)
    return math.log(probability / (1 - probability))
