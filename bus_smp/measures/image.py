"""All that is measured in one image: the reference and the prediction are checked and cropped once, then compared in every way."""

from typing import Any

import numpy as np

from bus_smp.classes import BACKGROUND
from bus_smp.measures.lesions import match_lesions
from bus_smp.measures.overlap import confusion, image_row
from bus_smp.measures.regions import bounding_box
from bus_smp.measures.shape import lesion_shape, shape_row
from bus_smp.measures.surfaces import surface_row


def measure_image(
    truth: np.ndarray,
    prediction: np.ndarray,
    lesion_probability: np.ndarray | None = None,
    shape_of_truth: dict[str, float] | None = None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Compare a predicted mask with the reference.

    Args:
        truth, prediction: uint8 (H, W) of class indices, at the image's own size.
        lesion_probability: float (H, W) in 0..1, the probability of benign or malignant, for the scores of the
            predicted lesions; without it each score is 1.
        shape_of_truth: ``lesion_shape(truth)``, where it is known already.

    Returns:
        The columns of the per-image table that follow from the two masks (``image_row``, ``surface_row``, ``match_lesions``,
        ``shape_row``), and a dict for each predicted lesion (``match_lesions``). What is undefined is NaN.

    Raises:
        EvaluationError: if the masks differ in shape, or a value is not a class index.
    """
    overlap = image_row(confusion(truth, prediction))
    # The other measurements do not depend on the background around the lesions, and their time grows with the area.
    box = bounding_box((truth != BACKGROUND.index) | (prediction != BACKGROUND.index))
    truth, prediction = truth[box], prediction[box]
    lesions, components = match_lesions(
        truth, prediction, None if lesion_probability is None else lesion_probability[box]
    )
    shapes = shape_row(shape_of_truth or lesion_shape(truth), lesion_shape(prediction))
    return overlap | surface_row(truth, prediction) | lesions | shapes, components
