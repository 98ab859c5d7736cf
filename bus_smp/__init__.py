"""Breast-ultrasound segmentation: leak-free manifests, a hybrid ResNet-50, honest evaluation.

Research software, not for clinical use.

Predict
    load                  the network of a trained run: ``bus_smp.load("outputs/bus-uclm")``
    Predictor             what ``load`` returns: ``predict`` takes a path, an array, or a list of them
    Prediction            what ``predict`` returns: ``mask``, ``label``, ``score``, ``overlay()``
    read_image            an image file as an array
    overlay               a mask drawn on its image

Data and scores
    read_manifest         a manifest as a pandas table
    read_example          image and true mask of one of its rows
    score_mask            Dice and other overlaps of a predicted mask with the true one

Train your own way
    HybridResNet50        the network, a torch module
    DeepSupervisionLoss   its loss, over all heads

Each name is imported when it is first used: ``import bus_smp`` takes no time. ``help(bus_smp.load)`` explains one.
Everything else is the command line, ``bus-smp --help``.
"""

import importlib
import typing

if typing.TYPE_CHECKING:
    from bus_smp.data.examples import read_example as read_example
    from bus_smp.data.images import read_image as read_image
    from bus_smp.data.manifest import read_manifest as read_manifest
    from bus_smp.figures.overlay import overlay as overlay
    from bus_smp.inference.backends import load as load
    from bus_smp.inference.predictor import Prediction as Prediction
    from bus_smp.inference.predictor import Predictor as Predictor
    from bus_smp.measures.overlap import score_mask as score_mask
    from bus_smp.model.hybrid import HybridResNet50 as HybridResNet50
    from bus_smp.model.losses import DeepSupervisionLoss as DeepSupervisionLoss

__version__ = "0.1.0"

# No ``__all__``: help() would print each of them with all that it inherits.
_MODULES = {
    "load": "inference.backends",
    "Predictor": "inference.predictor",
    "Prediction": "inference.predictor",
    "read_image": "data.images",
    "overlay": "figures.overlay",
    "read_manifest": "data.manifest",
    "read_example": "data.examples",
    "score_mask": "measures.overlap",
    "HybridResNet50": "model.hybrid",
    "DeepSupervisionLoss": "model.losses",
}


def __getattr__(name: str) -> typing.Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'bus_smp' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"bus_smp.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
