"""ImageNet weights of encoders: where smp and timm have them, getting them, and writing them as a file for a computer without internet."""

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
from segmentation_models_pytorch.encoders import encoders, get_encoder
from torch import nn

from bus_smp.errors import CheckpointError
from bus_smp.system.files import replacing

# It reports the classifier, which no encoder has, as unexpected.
logging.getLogger("timm.models._builder").setLevel(logging.ERROR)

RANDOM_WEIGHTS = "start from random weights: --set model.encoder_weights=null"


@dataclass(frozen=True)
class Source:
    """Where a library has the ImageNet weights of an encoder.

    Attributes:
        repository: on the hub; empty where ``url`` is an ordinary address.
        revision: of the repository; None is the newest.
        file: name of the file.
        url: of the file.
        tag: the name of the weights in smp, None in timm.
    """

    repository: str
    revision: str | None
    file: str
    url: str
    tag: str | None

    def __str__(self) -> str:
        if not self.repository:
            return self.url
        return f"{self.file} of {self.repository}{f', revision {self.revision}' if self.revision else ''}"


def find_source(name: str) -> Source:
    """Where smp or timm would take the ImageNet weights of the encoder ``name`` from. Nothing is downloaded.

    Raises:
        CheckpointError: if there are none.
    """
    from huggingface_hub import hf_hub_url

    if name.startswith("tu-"):
        found = timm.get_pretrained_cfg(name.removeprefix("tu-"))
        if found is not None and found.hf_hub_id:
            repository, _, revision = str(found.hf_hub_id).partition("@")
            tag, file = None, str(found.hf_hub_filename or "model.safetensors")
        elif found is not None and found.url:
            return Source("", None, str(found.url).rpartition("/")[2], str(found.url), None)
        else:
            raise CheckpointError(f"timm has no weights for {name}", hint=RANDOM_WEIGHTS)
    else:
        known = encoders[name]["pretrained_settings"]
        tag = next((key for key in known if key.startswith("imagenet")), None)
        if tag is None:
            raise CheckpointError(
                f"there are no ImageNet weights for {name} (smp has {', '.join(known)})", hint=RANDOM_WEIGHTS
            )
        repository, revision = known[tag]["repo_id"], known[tag]["revision"]
        file = "model.safetensors"
    return Source(
        repository, revision or None, file, hf_hub_url(repository, file, revision=revision or None), tag
    )


def download_encoder(name: str) -> nn.Module:
    """Return the encoder with its ImageNet weights, from the cache of the hub or from the internet.

    Raises:
        CheckpointError: naming the file and how to bring it here, if it cannot be had.
    """
    from huggingface_hub import constants, try_to_load_from_cache
    from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

    source = find_source(name)
    try:
        cached = source.repository and try_to_load_from_cache(
            source.repository, source.file, revision=source.revision
        )
        if source.repository and not isinstance(cached, str):
            # Asked once here, because a download without a network retries for half a minute.
            get_session().head(constants.ENDPOINT, timeout=10)
        return get_encoder(name, weights=source.tag or True)
    except Exception as error:  # of several libraries, by the version of the hub's client
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"the ImageNet weights of {name} could not be downloaded ({reason}); they are {source}",
            hint=f"on a computer with internet: bus-smp fetch-weights --encoder {name} (or open {source.url}), copy the "
            f"file here, then --set model.encoder_weights=path/to/file; or {RANDOM_WEIGHTS}",
        ) from error


def fetch_weights(name: str, path: Path) -> tuple[Source, str]:
    """Download the ImageNet weights of an encoder and write them as ``model.encoder_weights`` takes them.

    Args:
        path: a ``.safetensors`` file; one that is there is kept if it holds the same bytes.

    Returns:
        Where they come from, and the SHA-256 of the file written; the same for the same weights on every computer.

    Raises:
        CheckpointError: as ``download_encoder``, or if ``path`` holds something else.
    """
    from safetensors.torch import save

    state: dict[str, Any] = download_encoder(name).state_dict()
    data = save({key: value.contiguous() for key, value in state.items()})
    if path.exists() and (not path.is_file() or path.read_bytes() != data):
        raise CheckpointError(
            f"{path}: exists and holds something else", hint="write to another file: --to FILE"
        )
    with replacing(path) as temporary:
        temporary.write_bytes(data)
    return find_source(name), hashlib.sha256(data).hexdigest()
