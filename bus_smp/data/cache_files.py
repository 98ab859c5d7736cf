"""The files of a cache: written image by image, so that a build that was killed goes on, and checked image by image.

``images.npy`` and ``masks.npy`` are plain arrays. ``index.json`` is written last and holds a CRC-32 of each image
and of each mask; while a cache is being built, ``done`` holds those of the finished ones.
"""

import contextlib
import io
import itertools
import json
import os
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

# Part of every cache's key: raise it when reading, resizing or these files change, and old caches are no longer found.
FORMAT = 2

ARRAYS = ("images.npy", "masks.npy")
_DONE = "done"
_ENTRY = struct.Struct("<2I")  # CRC-32 of the image and of the mask
_BLOCK = 256  # images that one thread checks at a time

Example = tuple[np.ndarray, np.ndarray]


def _layout(count: int, size: int) -> list[tuple[str, bytes, int]]:
    """Name, header, and bytes of one element of each array."""
    parts = []
    for name, shape in zip(ARRAYS, ((count, size, size, 3), (count, size, size)), strict=True):
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
        parts.append((name, header.getvalue(), int(np.prod(shape[1:]))))
    return parts


def write_cache(
    folder: Path,
    names: Sequence[str],
    size: int,
    examples: Callable[[int], Iterator[Example]],
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write a cache into ``folder``, which is empty or holds a part of this very cache.

    Plain writes, because a full disk kills a mapped writer. Two processes that write the same cache into the same
    folder write the same bytes to the same places.

    Args:
        names: of the images, in their order.
        size: side of the images.
        examples: gives images uint8 (size, size, 3) and masks uint8 (size, size), from the given one on.
        progress: called with (images done, images in all) for each new one.

    Raises:
        OSError: if the disk is full; and what ``examples`` raises.
    """
    layout = _layout(len(names), size)
    checks = _finished(folder, layout)
    files = [_open(folder / name) for name in (*ARRAYS, _DONE)]
    with files[0], files[1], files[2]:
        for file, (_, header, step) in zip(files[:2], layout, strict=True):
            _write(file, header)
            file.seek(len(header) + len(checks) * step)
        files[2].seek(len(checks) * _ENTRY.size)
        for example in examples(len(checks)):
            parts = [np.ascontiguousarray(part).data.cast("B") for part in example]
            for file, part in zip(files[:2], parts, strict=True):
                _write(file, part)
            checks.append(tuple(map(zlib.crc32, parts)))
            _write(files[2], _ENTRY.pack(*checks[-1]))
            if progress is not None:
                progress(len(checks), len(names))
        for file in files[:2]:
            os.fsync(file.fileno())
    sums = dict(zip(ARRAYS, zip(*checks, strict=True), strict=True))
    index = {"format": FORMAT, "size": size, "images": list(names), "crc32": sums}
    with (folder / "index.json").open("wb") as file:
        file.write(json.dumps(index).encode())
        file.flush()
        os.fsync(file.fileno())
    (folder / _DONE).unlink()


def is_whole(folder: Path, count: int, size: int) -> bool:
    """Is every byte of this cache as it was written? Reads all of it, on two cores."""
    try:
        sums = json.loads((folder / "index.json").read_bytes())["crc32"]
        layout = _layout(count, size)
        if any(
            len(sums[name]) != count or (folder / name).stat().st_size != len(header) + count * step
            for name, header, step in layout
        ):
            return False
        for name, header, _ in layout:
            with (folder / name).open("rb") as file:
                if file.read(len(header)) != header:
                    return False
        blocks = [(part, start) for part in layout for start in range(0, count, _BLOCK)]

        def fits(block: tuple[tuple[str, bytes, int], int]) -> bool:
            (name, header, step), start = block
            noted = sums[name][start : start + _BLOCK]
            found = _checks(folder / name, len(header), step, start)
            return list(itertools.islice(found, len(noted))) == noted

        with ThreadPoolExecutor(2) as pool:  # a CRC leaves Python's lock
            return all(pool.map(fits, blocks))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _finished(folder: Path, layout: list[tuple[str, bytes, int]]) -> list[tuple[int, int]]:
    """Checks of the images that an earlier build has finished; after a power cut, not all that it noted are there."""
    good: list[tuple[int, int]] = []
    with contextlib.suppress(OSError):  # most often: there are no such files
        noted = (folder / _DONE).read_bytes()
        entries = _ENTRY.iter_unpack(noted[: len(noted) // _ENTRY.size * _ENTRY.size])
        images, masks = (_checks(folder / name, len(header), step) for name, header, step in layout)
        for entry, found in zip(entries, zip(images, masks, strict=False), strict=False):
            if entry != found:
                break
            good.append(entry)
    return good


def _checks(path: Path, header: int, step: int, start: int = 0) -> Iterator[int]:
    """CRC-32 of each element of an array's file, from ``start`` to the last whole one."""
    buffer = bytearray(step)
    with path.open("rb", buffering=0) as file:
        file.seek(header + start * step)
        while file.readinto(buffer) == step:
            yield zlib.crc32(buffer)


def _open(path: Path) -> io.FileIO:
    """For writing anywhere, keeping what is there. Unbuffered: what was written stays when the process is killed."""
    return io.FileIO(os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666), "r+")


def _write(file: io.FileIO, data: bytes | memoryview) -> None:
    data = memoryview(data)
    while data:
        data = data[file.write(data) :]
