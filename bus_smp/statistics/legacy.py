"""The metric of the notebook that this project replaces: misleading, kept only to see through its numbers.

It is not used for anything else, and its numbers belong in no table next to real ones.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from bus_smp.classes import CLASSES, LESIONS
from bus_smp.errors import EvaluationError
from bus_smp.measures.overlap import PIXEL_COLUMNS


def legacy_metrics(per_image: pd.DataFrame) -> dict[str, float | int]:
    """Dice as the upstream notebook took it. MISLEADING: do not report it as a result.

    Per image and lesion class, Dice = 2 TP / (2 TP + FP + FN), and **1 where the class is absent from
    both mask and prediction**; the mean over all images per class; then the mean of benign and malignant.

    Why it misleads: no image shows both classes, so each image gives at least one free 1 to
    a model that predicts nothing, and a normal image gives two. All-background scores
    (1 + share of normal images) / 2 without having looked: .807 on the notebook's own BUS-UCLM test
    patients (73 of 119 images are normal), .500 on a set without normal images such as UDIAT. A model
    can only lose these points by predicting, so the metric prefers one that stays silent: the published
    .694 / .394 / .269 are all below it. The notebook's own .571 for BUSI is what 64 normal images
    of 450 give, the numbers of a published curation of BUSI (doi 10.5281/zenodo.19047974); the whole
    data set, 133 of 780, gives .585. Which list it used is not known for certain.

    Args:
        per_image: the per-image table; only its nine pixel counts are used.

    Returns:
        ``dice_benign``, ``dice_malignant``, ``dice_mean`` (0..1), and ``images``.

    Raises:
        EvaluationError: if the table is empty or lacks the pixel counts.
    """
    missing = [column for column in PIXEL_COLUMNS if column not in per_image]
    if missing or per_image.empty:
        raise EvaluationError(
            f"no pixel counts to take the metric from: {len(per_image)} rows, lacks {missing}"
        )
    counts = per_image[list(PIXEL_COLUMNS)].to_numpy(np.int64).reshape(-1, len(CLASSES), len(CLASSES))
    result: dict[str, float | int] = {}
    for lesion in LESIONS:
        both = 2 * counts[:, lesion.index, lesion.index]
        pixels = counts[:, lesion.index, :].sum(axis=1) + counts[:, :, lesion.index].sum(axis=1)
        dice = np.where(pixels > 0, both / np.maximum(pixels, 1), 1.0)
        result[f"dice_{lesion.name}"] = float(dice.mean())
    result["dice_mean"] = (result["dice_benign"] + result["dice_malignant"]) / 2
    result["images"] = len(per_image)
    return result


def format_legacy(results: Mapping[str, Mapping[str, float | int]]) -> str:
    """Results of ``legacy_metrics`` by name (a model, the baselines) as plain text that says what they are."""
    width = max(len(name) for name in results)
    lines = [
        "MISLEADING, for comparison with the replaced notebook only: Dice = 1 for a class",
        "absent from mask and prediction, so predicting nothing scores high.",
        f"{'':<{width}}  benign  malignant  mean",
    ]
    lines += [
        f"{name:<{width}}  {of['dice_benign']:.3f}   {of['dice_malignant']:.3f}      {of['dice_mean']:.3f}"
        for name, of in results.items()
    ]
    return "\n".join(lines)
