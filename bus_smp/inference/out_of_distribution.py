"""Fitting the reference of ``measures.out_of_distribution`` on the training and validation images of a run."""

import base64
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np

from bus_smp.data.examples import ExampleReader
from bus_smp.data.manifest import Manifest
from bus_smp.inference.predictor import NetworkPredictor
from bus_smp.measures.out_of_distribution import PERCENTILE, Reference, project
from bus_smp.system.threads import read_ahead

# Of a training set at most so many images are kept, evenly over the manifest and so over all patients.
_MOST_IMAGES = 256


def fit_reference(
    predictor: NetworkPredictor, manifest: Manifest, reader: ExampleReader, cached: np.ndarray | None = None
) -> dict[str, Any]:
    """Compute the entry ``ood`` of a checkpoint's header from training and validation images.

    Args:
        predictor: of a ``TorchNetwork``.
        manifest: that the weights were trained on; with images.
        reader: of this manifest.
        cached: uint8 (N, size, size, 3), the training images on the predictor's grid, in the manifest's order; without
            them they are read.
    """
    rows = manifest.used("train")
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(_MOST_IMAGES, len(rows))).astype(int))

    def grid(row: dict[str, Any]) -> np.ndarray:
        return predictor.prepare(reader(manifest, row)[0]).grids[0]

    if cached is None:
        training: Iterator[np.ndarray] = read_ahead(grid, rows.iloc[chosen].to_dict("records"))
    else:
        training = (cached[place] for place in chosen)
    kept = project(_features(predictor, training)).astype(np.float16)
    reference = Reference(kept.astype(np.float32), 1.0)
    seen = _features(predictor, read_ahead(grid, manifest.used("val").to_dict("records")))
    limit = float(np.percentile(reference.scores(seen), PERCENTILE, method="higher"))
    return {
        "version": 1,
        "features": base64.b64encode(kept.tobytes()).decode(),
        "limit": limit,
        "fitted_on": f"{len(kept)} training images; limit from {len(seen)} validation images",
    }


def _features(predictor: NetworkPredictor, grids: Iterator[np.ndarray]) -> np.ndarray:
    found = []
    while batch := list(islice(grids, predictor.batch_size)):
        features = predictor.network(np.stack(batch)).features
        assert features is not None, "of a network of PyTorch"
        found.append(features)
    return np.concatenate(found)
