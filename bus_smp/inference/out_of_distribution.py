"""Fitting the reference of ``measures.out_of_distribution`` on the training and validation images of a run."""

import base64
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np

from bus_smp.data.examples import read_example
from bus_smp.data.manifest import Manifest
from bus_smp.inference.predictor import NetworkPredictor
from bus_smp.measures.out_of_distribution import PERCENTILE, Reference, project
from bus_smp.system.threads import read_ahead

# Of a training set at most so many images are kept, evenly over the manifest and so over all patients.
_MOST_IMAGES = 256


def fit_reference(predictor: NetworkPredictor, manifest: Manifest) -> dict[str, Any]:
    """Compute the entry ``ood`` of a checkpoint's header from training and validation images.

    Args:
        predictor: of a ``TorchNetwork``.
        manifest: that the weights were trained on; with images.
    """
    rows = manifest.used("train")
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(_MOST_IMAGES, len(rows))).astype(int))
    kept = project(_features(predictor, manifest, rows.iloc[chosen].to_dict("records"))).astype(np.float16)
    reference = Reference(kept.astype(np.float32), 1.0)
    seen = _features(predictor, manifest, manifest.used("val").to_dict("records"))
    limit = float(np.percentile(reference.scores(seen), PERCENTILE, method="higher"))
    return {
        "version": 1,
        "features": base64.b64encode(kept.tobytes()).decode(),
        "limit": limit,
        "fitted_on": f"{len(kept)} training images; limit from {len(seen)} validation images",
    }


def _features(predictor: NetworkPredictor, manifest: Manifest, rows: Sequence[dict[str, Any]]) -> np.ndarray:
    prepared = read_ahead(lambda row: predictor.prepare(read_example(manifest, row)[0]), rows)

    def batches() -> Iterator[np.ndarray]:
        while batch := list(islice(prepared, predictor.batch_size)):
            features = predictor.network(np.stack([image.grids[0] for image in batch])).features
            assert features is not None, "of a network of PyTorch"
            yield features

    return np.concatenate(list(batches()))
