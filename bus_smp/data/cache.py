"""Images and masks, resized once, as two memory-mapped arrays that every epoch and process shares.

``images.npy`` and ``masks.npy`` are plain arrays. ``index.json`` holds a CRC-32 of each of the two files. A cache is
built in a hidden folder and gets its name when it is whole.
"""

import errno
import hashlib
import io
import json
import logging
import os
import shutil
import uuid
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bus_smp.data.dicom import split_address
from bus_smp.data.examples import read_example
from bus_smp.data.geometry import Geometry
from bus_smp.errors import BusSmpError, ImageError, ManifestError
from bus_smp.system.files import explained
from bus_smp.system.locks import hold_lock
from bus_smp.system.threads import read_ahead

if TYPE_CHECKING:
    import pandas as pd

    from bus_smp.data.manifest import Manifest

# Part of every cache's key. Raise it when reading, resizing or the files change: older caches are not found any more.
_FORMAT = 3

_ARRAYS = ("images.npy", "masks.npy")
_KEY_COLUMNS = ("dataset", "image_id", "sha256", "image", "masks", "mask_format", "label", "flags")

log = logging.getLogger(__name__)


class Cache:
    """Resized images and masks in the order of the rows they were made of; read-only.

    ``images`` uint8 (N, size, size, 3) RGB; ``masks`` uint8 (N, size, size) of class indices, ``IGNORED`` in padding.
    Pickles as its path: another process maps the same files instead of receiving a copy.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.images, self.masks = (_mapped(self.folder / name) for name in _ARRAYS)

    def __len__(self) -> int:
        return len(self.images)

    def __reduce__(self) -> tuple:
        return Cache, (self.folder,)


def _mapped(path: Path) -> np.ndarray:
    # A plain view of the map, because slicing an np.memmap is slow.
    return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))


def open_cache(
    manifest: "Manifest",
    rows: "pd.DataFrame",
    geometry: Geometry,
    folder: Path,
    progress: Callable[[int, int], None] | None = None,
) -> Cache:
    """Open the cache of ``rows`` on the grid of ``geometry`` below ``folder``; build it first if there is none.

    It is found by its content: any change of the rows, their order, their files or ``geometry`` leads to
    another one. Every byte is checked at each opening, as training is about to read them all; a damaged cache is
    built again, with a note. Of two processes that want the same cache one builds and the other waits, or takes
    over if the first is killed.

    Args:
        manifest: where the rows' files lie.
        rows: rows of ``manifest.frame``, none of them excluded.
        geometry: of the network.
        folder: caches live in sub-folders of it; whole ones are never deleted here.
        progress: called with (images done, images in all) while building.

    Raises:
        ImageError: a file is missing, unreadable, or its mask does not fit.
        ManifestError: there are no rows, or an image is not the one the manifest was made of.
        BusSmpError: the disk is full or ``folder`` cannot be written to; nothing is left behind.
    """
    if len(rows) == 0:
        raise ManifestError("no images to prepare: the selection of the manifest is empty")
    folder = Path(folder)
    place, size = folder / _key(manifest, rows, geometry), geometry.size
    if is_whole(place):
        return Cache(place)

    need = f"the cache of {len(rows)} images needs {len(rows) * size * size * 4 / 1e6:.0f} MB"
    with explained(folder, need):
        folder.mkdir(parents=True, exist_ok=True)
        with hold_lock(
            folder / f".{place.name}.lock",
            lambda: log.warning("%s: another process is building this cache; waiting for it", place),
        ) as locked:
            # Another process may have built it while this one waited.
            if is_whole(place):
                return Cache(place)
            if place.exists():
                log.warning("%s: cache is damaged; it is built again", place)
            if locked:
                # Left by a process that was killed. Without a lock another process may be at work on it.
                for left in folder.glob(f".{place.name}.*.unfinished"):
                    shutil.rmtree(left, ignore_errors=True)
            unfinished = folder / f".{place.name}.{uuid.uuid4().hex[:8]}.unfinished"
            try:
                _build(manifest, rows, geometry, unfinished, progress)
                _publish(unfinished, place)
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)
            return Cache(place)


def is_whole(folder: Path) -> bool:
    """Whether every byte of a cache is as it was written. Reads all of it, in two threads."""
    try:
        noted = json.loads((folder / "index.json").read_bytes())["crc32"]
        with ThreadPoolExecutor(2) as pool:
            found = pool.map(_checksum, [folder / name for name in _ARRAYS])
            return [noted[name] for name in _ARRAYS] == list(found)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _checksum(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            crc = zlib.crc32(block, crc)
    return crc


def _build(
    manifest: "Manifest",
    rows: "pd.DataFrame",
    geometry: Geometry,
    folder: Path,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Write a whole cache into a new ``folder``. Plain writes, because a full disk kills a writer of a map."""

    def prepare(row: object) -> tuple[np.ndarray, np.ndarray]:
        image, mask = read_example(manifest, row)
        return geometry.image(image), geometry.mask(mask)

    folder.mkdir()
    size = geometry.size
    examples = read_ahead(prepare, rows.itertuples(index=False))
    shapes = (len(rows), size, size, 3), (len(rows), size, size)
    crc32 = [0, 0]
    with (folder / _ARRAYS[0]).open("wb") as images, (folder / _ARRAYS[1]).open("wb") as masks:

        def write(*parts: bytes | memoryview) -> None:
            for k, (file, part) in enumerate(zip((images, masks), parts, strict=True)):
                file.write(part)
                crc32[k] = zlib.crc32(part, crc32[k])

        write(*map(_header, shapes))
        for done, example in enumerate(examples, start=1):
            write(*(np.ascontiguousarray(part).data.cast("B") for part in example))
            if progress is not None:
                progress(done, len(rows))
        for file in (images, masks):
            file.flush()
            os.fsync(file.fileno())
    names = [f"{row.dataset}/{row.image_id}" for row in rows.itertuples(index=False)]
    index = {"size": size, "images": names, "crc32": dict(zip(_ARRAYS, crc32, strict=True))}
    with (folder / "index.json").open("wb") as file:
        file.write(json.dumps(index).encode())
        file.flush()
        os.fsync(file.fileno())


def _header(shape: tuple[int, ...]) -> bytes:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return header.getvalue()


def _key(manifest: "Manifest", rows: "pd.DataFrame", geometry: Geometry) -> str:
    """16 hex digits that stand for everything the cache's bytes depend on."""
    # the plain one by its size, as earlier versions wrote it
    form = geometry.size if geometry == Geometry(geometry.size) else geometry
    digest = hashlib.sha256(f"{_FORMAT}:{form}\n".encode())
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
        stat = split_address(path)[0].stat()
    except OSError as error:
        raise ImageError(
            f"{path}: {error.strerror}", hint="is the data set in the folder that the manifest records?"
        ) from None
    return stat.st_size, stat.st_mtime_ns


def _publish(unfinished: Path, place: Path) -> None:
    """Give the finished cache its name. Without locks another process may have been faster: then theirs is used."""
    for _ in range(10):
        try:
            unfinished.rename(place)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        if is_whole(place):
            return
        # Damaged. It is moved aside first, so that there is never a half-deleted cache under this name.
        aside = place.with_name(f".{place.name}.{uuid.uuid4().hex[:8]}.unfinished")
        try:
            place.rename(aside)
        except FileNotFoundError:
            # Another process has just done that.
            continue
        shutil.rmtree(aside, ignore_errors=True)
    raise BusSmpError(f"{place}: other processes keep changing this cache", hint="run the same command again")
