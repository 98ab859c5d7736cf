"""What a table of timings was made with."""

import contextlib
from collections.abc import Sequence
from importlib import metadata
from typing import Any

from bus_smp.benchmark.plan import Plan
from bus_smp.system.engine import Engine
from bus_smp.system.environment import describe_environment

# Beside those that every result depends on.
_PACKAGES = ("onnx", "onnxruntime", "openvino")


def describe(plan: Plan, images: str, overrides: Sequence[str]) -> dict[str, Any]:
    """Hardware, versions and options as JSON values, without host name, user name or path."""
    settings = {
        key: value
        for key, value in plan.settings.flat().items()
        if key.split(".")[0] in ("augment", "model", "train")
        or key in ("data.size", "runtime.workers", "runtime.device")
    }
    changed = [text for text in overrides if text.partition("=")[0].strip() in settings]
    return {
        **describe_machine(plan.engine),
        "images": images,
        "options": ", ".join([f"repeats {plan.repeats}", *changed]),
        "settings": settings | {"model.encoder_weights": None},  # those that are timed are random, or a run's
    }


def describe_machine(engine: Engine) -> dict[str, Any]:
    """``environment`` as in a run folder, and ``packages``: versions of the other backends that are installed."""
    packages = {}
    for name in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            packages[name] = metadata.version(name)
    return {"environment": describe_environment(engine), "packages": packages}
