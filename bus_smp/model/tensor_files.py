"""Files of tensors that PyTorch writes (``.pth``, ``last.ckpt``), read so that they can neither run code nor fill the memory.

PyTorch's own format holds a pickle. ``weights_only=True`` lets it build only tensors, numbers, texts and
containers; what the file then takes in memory is bounded here, before it is read.
"""

import os
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from bus_smp.errors import CheckpointError
from bus_smp.system.files import open_regular

# Of a file; the state of the largest ResNet takes 1 GB.
MOST_BYTES = 8_000_000_000
# Of everything that is no tensor: names, shapes, numbers; 64 bytes in memory for each at worst.
_MOST_PICKLE = 8_000_000


def load_tensors(path: Path, device: str | torch.device = "cpu") -> Any:
    """Read what ``torch.save`` wrote.

    Raises:
        FileNotFoundError: if there is no such file.
        CheckpointError: if it is damaged, too large, would unpack to more than it is, or holds anything but
            dense tensors, numbers, texts and containers.
    """
    try:
        with open_regular(path) as file:
            _refuse_large(path, file)
            # The file's checksums were compared above: PyTorch does not.
            content = torch.load(file, map_location=device, weights_only=True)
        odd = next((value for value in _leaves(content) if not _is_plain(value)), None)
    except (FileNotFoundError, CheckpointError):
        raise
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror or error})") from None
    except Exception as error:  # torch's reader raises many types on damaged bytes
        # its text is not shown: it advises to let the file run code
        raise CheckpointError(
            f"{path} cannot be read as tensors: it is damaged or something else ({type(error).__name__})"
        ) from None
    if odd is not None:
        raise CheckpointError(
            f"{path}: holds something else than dense tensors and numbers ({type(odd).__name__})"
        )
    return content


def _refuse_large(path: Path, file: BinaryIO) -> None:
    size = os.fstat(file.fileno()).st_size
    if size > MOST_BYTES:
        raise CheckpointError(f"{path}: {size / 1e9:.0f} GB is more than the weights of any known network")
    # the format before PyTorch 1.6, in which size and content are the same
    if not zipfile.is_zipfile(file):
        file.seek(0)
        return
    with zipfile.ZipFile(file) as parts:
        entries = parts.infolist()
        packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
        if packed or sum(entry.file_size for entry in entries) > size:
            raise CheckpointError(f"{path}: would unpack to more than it is; PyTorch writes no such file")
        if sum(entry.file_size for entry in entries if entry.filename.endswith(".pkl")) > _MOST_PICKLE:
            raise CheckpointError(f"{path}: holds more names and numbers than any known network has")
        if damaged := parts.testzip():
            raise CheckpointError(f"{path}: is damaged: the checksum of {damaged} is wrong")
    file.seek(0)


def _leaves(content: Any) -> Iterator[Any]:
    """Yield the values in nested containers; a container that holds itself, or is there twice, is entered once."""
    waiting, entered = [content], set()
    while waiting:
        value = waiting.pop()
        if not isinstance(value, Mapping | list | tuple | set):
            yield value
        elif id(value) not in entered:
            entered.add(id(value))
            waiting += [*value.keys(), *value.values()] if isinstance(value, Mapping) else value


def _is_plain(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return (
            type(value) in (torch.Tensor, torch.nn.Parameter)
            and value.layout == torch.strided
            and not (value.is_meta or value.is_quantized or value.is_complex())
        )
    return value is None or isinstance(value, bool | int | float | str | bytes | torch.Size)
