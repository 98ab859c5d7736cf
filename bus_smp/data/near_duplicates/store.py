"""Fingerprints kept on disk, so that each image is read for the comparison only once.

``<folder>/.fingerprints/<data set>.npz``. An entry is found by the sha256 of the image's pixels, so that it is never out of
date, wherever the image lies. The files are a cache: they may be deleted, and one that is damaged counts as missing.
"""

import zipfile
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from bus_smp.data.near_duplicates.search import Fingerprint
from bus_smp.errors import BusSmpError
from bus_smp.system.files import replacing

# Raise it when ``fingerprint`` changes: older files are not read any more.
_FORMAT = 1
_NAMES = ("sha256", "phash", "width", "points", "descriptors", "thumbnails", "ends")


def read_fingerprints(folder: Path, dataset: str) -> dict[str, Fingerprint]:
    """Fingerprints that ``write_fingerprints`` wrote, by the sha256 of the pixels; none where there is no whole file."""
    try:
        with np.load(_place(folder, dataset), allow_pickle=False) as file:
            names, hashes, widths, points, descriptors, thumbnails, ends = (file[name] for name in _NAMES)
            parts = list(pairwise([(0, 0), *ends.tolist()]))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return {}
    return {
        str(name): Fingerprint(
            str(phash), int(width), points[a:b], descriptors[a:b], thumbnails[c:d].tobytes()
        )
        for name, phash, width, ((a, c), (b, d)) in zip(names, hashes, widths, parts, strict=True)
    }


def write_fingerprints(folder: Path, dataset: str, found: Mapping[str, Fingerprint]) -> None:
    """Add fingerprints, by the sha256 of the pixels, to those of a data set; a folder that cannot be written to stays as it is."""
    kept = read_fingerprints(folder, dataset)
    if not found or found.keys() <= kept.keys():
        return
    kept |= found
    prints = list(kept.values())
    sizes = [(len(one.points), len(one.thumbnail)) for one in prints]
    arrays: dict[str, Any] = {
        "sha256": np.array(list(kept)),
        "phash": np.array([one.phash for one in prints]),
        "width": np.array([one.width for one in prints]),
        "points": np.concatenate([one.points for one in prints]),
        "descriptors": np.concatenate([one.descriptors for one in prints]),
        "thumbnails": np.frombuffer(b"".join(one.thumbnail for one in prints), np.uint8),
        "ends": np.cumsum(sizes, axis=0),
    }
    try:
        with replacing(_place(folder, dataset), durable=False) as temporary:
            np.savez(temporary, **arrays)
    except BusSmpError:
        # it costs the reading of the images again, and nothing else
        return


def _place(folder: Path, dataset: str) -> Path:
    return Path(folder) / ".fingerprints" / f"{dataset}-{_FORMAT}.npz"
