"""Where it is hard: the images of a table by lesion size, class, flag and data set."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from bus_smp.classes import LABELS
from bus_smp.statistics.estimators import Estimator
from bus_smp.statistics.metrics import HEADLINES, pixel_counts

SIZES = ("small", "medium", "large")

# Flags of a manifest that make an image another kind of picture.
FLAGS = ("doppler", "marks", "combined")


@dataclass(frozen=True)
class Level:
    """Some images of a table.

    Attributes:
        images: bool (images,).
        bounds: of ``size``: lowest and highest share of the image that a lesion takes, 0..1; None elsewhere.
    """

    images: np.ndarray
    bounds: tuple[float, float] | None = None

    def estimators(self, of_table: Mapping[str, Estimator]) -> dict[str, Estimator]:
        """The estimators of the whole table, over these images only."""
        return {name: of_table[name].within(self.images) for name in HEADLINES}


def levels(table: pd.DataFrame) -> dict[str, dict[str, Level]]:
    """Ways to divide the images of a per-image table: way -> level -> images.

    - ``size``: thirds of the images with a lesion, by the share of the image that is lesion in the reference. Terciles are of
      this table, so that "small" on one data set is not "small" on another: see the bounds.
    - ``class``: the label.
    - ``flags``: with and without Doppler, marks, two pictures in one; only flags that an image of the table has.
    - ``dataset``.
    """
    divided: dict[str, dict[str, Level]] = {}
    if sizes := _sizes(table):
        divided["size"] = sizes
    label = table["label"].to_numpy()
    divided["class"] = {name: Level(label == name) for name in LABELS if (label == name).any()}
    if flags := _flags(table):
        divided["flags"] = flags
    dataset = table["dataset"].to_numpy()
    divided["dataset"] = {str(name): Level(dataset == name) for name in sorted(set(dataset))}
    return divided


def _sizes(table: pd.DataFrame) -> dict[str, Level]:
    counts = pixel_counts(table)
    lesion, pixels = counts[:, 1:].sum(axis=(1, 2)), counts.sum(axis=(1, 2))
    if not lesion.any():
        return {}
    share = np.divide(lesion, pixels, out=np.zeros(len(table)), where=pixels > 0)
    third, two_thirds = np.quantile(share[lesion > 0], [1 / 3, 2 / 3])
    place = (share > third).astype(int) + (share > two_thirds)
    found = {}
    for index, name in enumerate(SIZES):
        images = (lesion > 0) & (place == index)
        if images.any():
            found[name] = Level(images, (float(share[images].min()), float(share[images].max())))
    return found


def _flags(table: pd.DataFrame) -> dict[str, Level]:
    flags = [str(text).split("|") for text in table["flags"]]
    found: dict[str, Level] = {}
    for name in FLAGS:
        flagged = np.array([name in of_image for of_image in flags])
        if flagged.any():
            found |= {f"with {name}": Level(flagged), f"without {name}": Level(~flagged)}
    return found
