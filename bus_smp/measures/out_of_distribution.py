"""How far an image is from what a network was trained on: the nearest neighbours of its pooled features.

The mean distance to the nearest training images, divided by the distance that 99 % of the validation images stay below
(k nearest neighbours: Sun et al., ICML 2022). Above 1 the image is farther from the training images than nearly all
validation images: another scanner, organ or device, a photograph, a mask. Only random projections of the encoder's mean
feature at 1/16 are kept of the training images. The deepest feature, at 1/32, is worse: it describes the lesion more than
the kind of picture (docs/ensembles.md).
"""

import base64
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

# Distances in a random projection to so many dimensions differ by some 6 % from those of all features (Johnson &
# Lindenstrauss); its matrix is made from a fixed seed and need not be kept.
_DIMENSIONS = 128
_NEIGHBOURS = 5
PERCENTILE = 99


@dataclass(frozen=True, eq=False)
class Reference:
    """The training images of a network, as ``ood_scores`` needs them.

    Attributes:
        features: float32 (images, dimensions), from ``project``.
        limit: mean distance to the nearest of them that 99 % of the validation images stay below.
    """

    features: np.ndarray
    limit: float

    @classmethod
    def of(cls, header: Mapping[str, Any]) -> "Reference | None":
        """The entry ``ood`` of a checkpoint's header; None where it has none, or one of another version."""
        about = header.get("ood") or {}
        if about.get("version") != 1:
            return None
        kept = np.frombuffer(base64.b64decode(about["features"]), np.float16).reshape(-1, _DIMENSIONS)
        return cls(kept.astype(np.float32), about["limit"])

    def scores(self, features: np.ndarray) -> np.ndarray:
        """Float (N,): above 1, out of distribution; of features float (N, channels)."""
        return self._distances(project(features)) / self.limit

    def _distances(self, projected: np.ndarray) -> np.ndarray:
        squared = ((projected[:, None] - self.features) ** 2).sum(axis=2)
        nearest = np.partition(squared, min(_NEIGHBOURS, len(self.features)) - 1)[:, :_NEIGHBOURS]
        return np.sqrt(nearest).mean(axis=1)


def project(features: np.ndarray) -> np.ndarray:
    """Float32 (N, dimensions) of pooled features (N, channels); distances stay, to some 6 %."""
    return (features @ _matrix(features.shape[1])).astype(np.float32)


@functools.cache
def _matrix(channels: int) -> np.ndarray:
    # the numbers of RandomState are the same in every version of numpy
    return np.random.RandomState(0).standard_normal((channels, _DIMENSIONS)) / np.sqrt(_DIMENSIONS)
