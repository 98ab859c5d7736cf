"""A plain state dict of the network without auxiliary heads, for those who build the model themselves."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from bus_smp.errors import CheckpointError
from bus_smp.inference.formats.contract import as_json, readable
from bus_smp.model.encoders import compare_weights
from bus_smp.model.hybrid import HybridResNet50
from bus_smp.model.tensor_files import load_tensors
from bus_smp.system.files import replacing


def write_pth(model: HybridResNet50, path: Path, about: Mapping[str, Any]) -> None:
    """Write a hybrid model without its auxiliary heads as a plain dict, all or nothing.

    ``torch.load(path, weights_only=True)`` gives ``{"about": ..., "state_dict": ...}``: ``state_dict`` fits
    ``HybridResNet50(**about["model"])``, which takes normalised images and returns one tensor.

    Args:
        about: JSON values with ``model``, the constructor's arguments.
    """
    described = json.loads(as_json(about))
    described["model"] |= {"deep_supervision": False, "encoder_weights": None}
    heads = tuple(f"heads.{number}." for number in range(1, len(model.heads)))
    state = {
        name: value.detach().cpu().contiguous()
        for name, value in model.state_dict().items()
        if not name.startswith(heads or "\0")
    }
    buffer = io.BytesIO()
    torch.save({"about": described, "state_dict": state}, buffer)
    with replacing(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def load_pth(path: Path) -> tuple[HybridResNet50, dict[str, Any]]:
    """The model in a file of ``write_pth``, in evaluation mode, and its ``about``. Nothing in the file is executed.

    Raises:
        CheckpointError: if the file is missing, damaged or something else.
    """
    with readable(path):
        content = load_tensors(path)
        about, state = content["about"], content["state_dict"]
        model = HybridResNet50(**about["model"])
    if problems := compare_weights(model.state_dict(), state):
        raise CheckpointError(f"{path}: the weights do not fit the model it describes: {problems}")
    model.load_state_dict(state)
    return model.eval(), about
