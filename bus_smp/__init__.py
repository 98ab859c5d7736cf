"""Breast-ultrasound segmentation: leak-free manifests, a hybrid ResNet-50, honest evaluation.

The names below are what a notebook needs. Each is imported when it is first used: ``import bus_smp`` takes no time.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bus_smp.data.examples import read_example as read_example
    from bus_smp.data.images import read_image as read_image
    from bus_smp.data.manifest import read_manifest as read_manifest
    from bus_smp.figures.overlay import overlay as overlay
    from bus_smp.inference.backends import load_run as load_run
    from bus_smp.inference.predictor import Prediction as Prediction
    from bus_smp.inference.predictor import Predictor as Predictor
    from bus_smp.measures.overlap import score_mask as score_mask
    from bus_smp.model.hybrid import HybridResNet50 as HybridResNet50
    from bus_smp.model.losses import DeepSupervisionLoss as DeepSupervisionLoss

__version__ = "0.1.0"

_MODULES = {
    "HybridResNet50": "model.hybrid",
    "DeepSupervisionLoss": "model.losses",
    "load_run": "inference.backends",
    "Predictor": "inference.predictor",
    "Prediction": "inference.predictor",
    "read_image": "data.images",
    "read_manifest": "data.manifest",
    "read_example": "data.examples",
    "score_mask": "measures.overlap",
    "overlay": "figures.overlay",
}

__all__ = [
    "DeepSupervisionLoss",
    "HybridResNet50",
    "Prediction",
    "Predictor",
    "load_run",
    "overlay",
    "read_example",
    "read_image",
    "read_manifest",
    "score_mask",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'bus_smp' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"bus_smp.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
