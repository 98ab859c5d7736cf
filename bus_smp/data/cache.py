"""Images and masks, resized once, as two memory-mapped arrays that every epoch and process shares."""

import errno
import hashlib
import json
import logging
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bus_smp.data.cache_files import ARRAYS, FORMAT, Example, is_whole, write_cache
from bus_smp.data.examples import read_example
from bus_smp.data.images import resize_image, resize_mask
from bus_smp.errors import BusSmpError, ImageError, ManifestError
from bus_smp.system.files import explained
from bus_smp.system.locks import alone
from bus_smp.system.threads import read_ahead

if TYPE_CHECKING:
    import pandas as pd

    from bus_smp.data.manifest import Manifest

_KEY_COLUMNS = ("dataset", "image_id", "sha256", "image", "masks", "mask_format", "label", "flags")

log = logging.getLogger(__name__)


class Cache:
    """Resized images and masks in the order of the rows they were made of; read-only.

    ``images`` uint8 (N, size, size, 3) RGB; ``masks`` uint8 (N, size, size) of class indices.
    Pickles as its path: another process maps the same files instead of receiving a copy.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.images, self.masks = (_mapped(self.folder / name) for name in ARRAYS)

    def __len__(self) -> int:
        return len(self.images)

    def __reduce__(self) -> tuple:
        return Cache, (self.folder,)


def _mapped(path: Path) -> np.ndarray:
    # a plain view of it: np.memmap makes each slice of itself slowly
    return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))


def open_cache(
    manifest: "Manifest",
    rows: "pd.DataFrame",
    size: int,
    folder: Path,
    progress: Callable[[int, int], None] | None = None,
) -> Cache:
    """Open the cache of ``rows`` at ``size`` below ``folder``; build it first if there is none.

    It is found by its content: any change of the rows, their order, their files or ``size`` leads to
    another one. A damaged one is built again, with a note: every byte is checked at each opening (0.2 s for 1 GB
    in memory), as training is about to read them all. A build that was killed goes on where it was, and of two
    processes that want the same cache one builds and the other waits, or takes over if the first is killed.

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
    cache = _open_valid(place, len(rows), size)
    if cache is not None:
        return cache

    need = f"the cache of {len(rows)} images needs {len(rows) * size * size * 4 / 1e6:.0f} MB"
    with explained(folder, need):
        folder.mkdir(parents=True, exist_ok=True)
        with alone(
            folder / f".{place.name}.lock",
            lambda: log.warning("%s: another process is building this cache; waiting for it", place),
        ) as locked:
            cache = _open_valid(place, len(rows), size)  # made while this process waited
            if cache is not None:
                return cache
            if place.exists():
                log.warning("%s: cache is damaged; it is built again", place)
            # without a lock, others may be at it too: each builds its own then, and nobody could go on with it
            unfinished = folder / f".{place.name}.{'unfinished' if locked else uuid.uuid4().hex[:8]}"
            try:
                _build(manifest, rows, size, unfinished, progress)
                return _publish(unfinished, place, len(rows), size)
            except BaseException as error:
                # Ctrl-C and the like are no Exception: what is there stays, as after a kill
                if not locked or isinstance(error, Exception):
                    shutil.rmtree(unfinished, ignore_errors=True)
                raise


def _build(
    manifest: "Manifest",
    rows: "pd.DataFrame",
    size: int,
    folder: Path,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Write a whole cache into ``folder``, or what is missing of it."""
    if is_whole(folder, len(rows), size):  # an earlier build was killed when all but its name was done
        return

    def prepare(row: object) -> Example:
        image, mask = read_example(manifest, row)
        return resize_image(image, size), resize_mask(mask, size)

    def examples(start: int) -> Iterator[Example]:
        if start:
            log.warning("%s: going on after %d of %d images", folder.parent, start, len(rows))
        return read_ahead(prepare, rows.iloc[start:].itertuples(index=False))

    folder.mkdir(exist_ok=True)
    names = [f"{row.dataset}/{row.image_id}" for row in rows.itertuples(index=False)]
    write_cache(folder, names, size, examples, progress)


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


def _open_valid(place: Path, count: int, size: int) -> Cache | None:
    """The cache at ``place``, or None if there is none or it is not whole."""
    return Cache(place) if is_whole(place, count, size) else None


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
            shutil.rmtree(temporary, ignore_errors=True)
            return theirs
        # Damaged. Moved aside first, so that there is never a half-deleted cache under this name.
        aside = place.with_name(f".{place.name}.{uuid.uuid4().hex[:8]}")
        try:
            place.rename(aside)
        except FileNotFoundError:
            continue  # another process has just done that
        shutil.rmtree(aside, ignore_errors=True)
    raise BusSmpError(f"{place}: other processes keep changing this cache", hint="run the same command again")
