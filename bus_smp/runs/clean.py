"""What can be made again at any time: caches of images and fingerprints, and what killed processes left behind."""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from bus_smp.errors import TrainingError
from bus_smp.runs import layout
from bus_smp.system.files import explained, list_leftovers
from bus_smp.system.locks import hold_lock

# As ``data/cache.py`` names a cache, and one that is not finished.
_CACHE = re.compile(r"[0-9a-f]{16}|\.[0-9a-f]{16}\.[0-9a-f]{8}\.unfinished")


@dataclass(frozen=True)
class Removable:
    """Files or folders of one kind in one folder, and the bytes they take."""

    folder: Path
    kind: str
    paths: list[Path]
    size: int


def list_removable(out: Path, manifests: Path, cache: Path) -> list[Removable]:
    """Everything that may be removed; files of other names are never listed.

    Args:
        out: parent of run folders.
        manifests: folder of manifests, next to which fingerprints are kept.
        cache: folder of the resized images, as ``runtime.cache``.

    Raises:
        TrainingError: if a training is running in a folder of ``out``.
    """
    runs = sorted({path.parent for path in out.glob("*/*") if path.is_file()})
    for folder in runs:
        _refuse_running(folder)
    caches = [path for path in cache.glob("*") if _CACHE.fullmatch(path.name) and path.is_dir()]
    found = [
        (cache, "resized images", caches),
        (manifests, "fingerprints for comparing images", [*manifests.glob(".fingerprints/*.npz")]),
        *((folder, "left by a killed process", list_leftovers(folder)) for folder in (out, manifests, *runs)),
    ]
    return [
        Removable(folder, kind, sorted(paths), sum(map(_size, paths)))
        for folder, kind, paths in found
        if paths
    ]


def remove(found: Removable) -> None:
    """Delete them.

    Raises:
        BusSmpError: if the folder cannot be written to.
    """
    with explained(found.folder):
        for path in found.paths:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def _refuse_running(folder: Path) -> None:
    def refuse() -> None:
        raise TrainingError(
            f"a training is running in {folder}", hint="wait for it or stop it, then type bus-smp clean again"
        )

    # the file is there only while a training runs, or after a kill
    lock = folder / layout.LOCK
    if lock.is_file():
        with explained(folder), hold_lock(lock, refuse):
            pass


def _size(path: Path) -> int:
    parts = [path] if path.is_symlink() else [path, *path.rglob("*")]
    return sum(part.lstat().st_size for part in parts)
