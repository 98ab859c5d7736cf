"""Images and masks, resized once, as two memory-mapped arrays that every epoch and process shares."""

import errno
import hashlib
import json
import logging
import os
import shutil
import uuid
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bus_smp.data.examples import read_example
from bus_smp.data.images import resize_image, resize_mask
from bus_smp.errors import BusSmpError, ImageError, ManifestError
from bus_smp.files import explained
from bus_smp.threads import read_ahead

if TYPE_CHECKING:
    import pandas as pd

    from bus_smp.data.manifest import Manifest

# Part of every key: raise it when reading or resizing changes, and old caches are no longer found.
FORMAT = 1

_KEY_COLUMNS = ("dataset", "image_id", "sha256", "image", "masks", "mask_format", "label", "flags")

log = logging.getLogger(__name__)


class Cache:
    """Resized images and masks in the order of the rows they were made of; read-only.

    ``images`` uint8 (N, size, size, 3) RGB; ``masks`` uint8 (N, size, size) of class indices.
    Pickles as its path: another process maps the same files instead of receiving a copy.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.images = np.load(self.folder / "images.npy", mmap_mode="r", allow_pickle=False)
        self.masks = np.load(self.folder / "masks.npy", mmap_mode="r", allow_pickle=False)

    def __len__(self) -> int:
        return len(self.images)

    def __reduce__(self) -> tuple:
        return Cache, (self.folder,)


def open_cache(
    manifest: "Manifest",
    rows: "pd.DataFrame",
    size: int,
    folder: Path,
    progress: Callable[[int, int], None] | None = None,
) -> Cache:
    """Open the cache of ``rows`` at ``size`` below ``folder``; build it first if there is none.

    It is found by its content: any change of the rows, their order, their files or ``size`` leads to
    another one. A damaged one is built again, with a note. Two processes may do this at once.

    Args:
        manifest: where the rows' files lie.
        rows: rows of ``manifest.frame``, none of them excluded.
        size: side of the square, in pixels.
        folder: caches live in sub-folders of it; they are never deleted here.
        progress: called with (images done, images in all) while building.

    Raises:
        ImageError: a file is missing, unreadable, or its mask does not fit.
        ManifestError: there are no rows, or an image is not the one the manifest was made of.
        BusSmpError: the disk is full or ``folder`` cannot be written to; nothing is left behind.
    """
    if len(rows) == 0:
        raise ManifestError("no images to prepare: the selection of the manifest is empty")
    folder = Path(folder)
    place = folder / _key(manifest, rows, size)
    if place.exists():
        cache = _open_valid(place, len(rows), size)
        if cache is not None:
            return cache
        log.warning("%s: cache is damaged; it is built again", place)
    temporary = folder / f".{place.name}.{uuid.uuid4().hex[:8]}"
    need = f"the cache of {len(rows)} images needs {len(rows) * size * size * 4 / 1e6:.0f} MB"
    try:
        with explained(folder, need):
            temporary.mkdir(parents=True)
            _build(manifest, rows, size, temporary, progress)
            return _publish(temporary, place, len(rows), size)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _key(manifest: "Manifest", rows: "pd.DataFrame", size: int) -> str:
    """16 hex digits that stand for everything the cache's bytes depend on."""
    digest = hashlib.sha256(f"{FORMAT}:{size}\n".encode())
    for row in rows.itertuples(index=False):
        columns = [str(getattr(row, column)) for column in _KEY_COLUMNS]
        files = [_stamp(path) for path in (manifest.image_path(row), *manifest.mask_paths(row))]
        digest.update(json.dumps([columns, files]).encode() + b"\n")
    return digest.hexdigest()[:16]


def _stamp(path: Path) -> tuple[int, int]:
    """Size and time of change, because hashing every file at every start would be slow.

    A file that was only touched costs a second build; one that was changed is noticed.
    """
    try:
        stat = path.stat()
    except OSError as error:
        raise ImageError(
            f"{path}: {error.strerror}", hint="is the data set where the manifest says?"
        ) from None
    return stat.st_size, stat.st_mtime_ns


def _build(
    manifest: "Manifest",
    rows: "pd.DataFrame",
    size: int,
    folder: Path,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Write images.npy, masks.npy and, last, index.json. Plain writes, because a full disk kills a mapped writer."""

    def prepare(row: object) -> tuple[np.ndarray, np.ndarray]:
        image, mask = read_example(manifest, row)
        return resize_image(image, size), resize_mask(mask, size)

    with (folder / "images.npy").open("wb") as images, (folder / "masks.npy").open("wb") as masks:
        for file, shape in ((images, (len(rows), size, size, 3)), (masks, (len(rows), size, size))):
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
        for done, (image, mask) in enumerate(read_ahead(prepare, rows.itertuples(index=False)), start=1):
            images.write(np.ascontiguousarray(image))
            masks.write(np.ascontiguousarray(mask))
            if progress is not None:
                progress(done, len(rows))
        for file in (images, masks):
            file.flush()
            os.fsync(file.fileno())
    index = {
        "format": FORMAT,
        "size": size,
        "images": [f"{row.dataset}/{row.image_id}" for row in rows.itertuples(index=False)],
        "crc32": {name: _crc32(folder / name) for name in ("images.npy", "masks.npy")},
    }
    with (folder / "index.json").open("wb") as file:
        file.write(json.dumps(index, indent=1).encode())
        file.flush()
        os.fsync(file.fileno())


def _crc32(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            value = zlib.crc32(block, value)
    return value


def _open_valid(place: Path, count: int, size: int) -> Cache | None:
    """The cache at ``place``, or None if it is not whole."""
    try:
        index = json.loads((place / "index.json").read_bytes())
        if any(_crc32(place / name) != index["crc32"][name] for name in ("images.npy", "masks.npy")):
            return None
        cache = Cache(place)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    fits = cache.images.shape == (count, size, size, 3) and cache.masks.shape == (count, size, size)
    return cache if fits else None


def _publish(temporary: Path, place: Path, count: int, size: int) -> Cache:
    """Give the finished cache its name, unless another process was faster: then use theirs."""
    for _ in range(10):
        try:
            temporary.rename(place)
            return Cache(place)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        theirs = _open_valid(place, count, size)
        if theirs is not None:
            return theirs
        # Damaged. Moved aside first, so that there is never a half-deleted cache under this name.
        aside = place.with_name(f".{place.name}.{uuid.uuid4().hex[:8]}")
        try:
            place.rename(aside)
        except FileNotFoundError:
            continue  # another process has just done that
        shutil.rmtree(aside, ignore_errors=True)
    raise BusSmpError(f"{place}: other processes keep changing this cache", hint="run the same command again")
