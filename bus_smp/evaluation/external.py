"""The check behind the word "external": training has seen no image of the target, in any form.

Four comparisons of the used rows of both manifests: names of data sets, groups, pixels (sha256), and
near-duplicates. For the last, a 256-bit dHash of the whole image finds candidates, and the registered correlation
of their speckle (``data/near_duplicates``) decides, because some different images have similar hashes.

Not found: copies that are mirrored, rotated, framed or strongly cropped, because their dHash is far from the
original's. ``make-manifest`` finds all of these except rotated ones, if the manifests of both data sets are made
in one folder: the images then share a group, which is refused here.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from bus_smp.data.images import pixel_sha256, read_image
from bus_smp.data.manifest import Manifest, list_manifests, read_manifest
from bus_smp.data.near_duplicates.search import Fingerprint, find_near_duplicates, fingerprint
from bus_smp.errors import BusSmpError, EvaluationError, ImageError
from bus_smp.system.threads import read_ahead

HASH_BITS = 256
# Bits. Of the 177 images of BUSI that are near-duplicates of kept ones, 87 are found within 20 bits and 162
# within 50, every pair a true one; images of BUS-UCLM and BUSI, and of two patients of BUS-UCLM, differ in 70.
NEAR = 50

# Images compared at once: 64 MB.
_BLOCK = 4096


def check_external(training: Manifest, target: Manifest) -> None:
    """Refuse a target that shares anything with the training data.

    All splits of the training manifest count: a data set whose test split was held back is still the
    same hospital, scanner and annotator.

    Raises:
        EvaluationError: naming the shared data sets, groups, pictures or near-duplicates; or if this cannot be
            verified, because images have no hash, or a candidate for a near-duplicate cannot be read.
    """
    shared = sorted(set(training.datasets) & set(target.datasets))
    if shared:
        raise EvaluationError(
            f"{', '.join(shared)} was used in training this run, so it is no external test",
            hint="score the run on its own test split instead: bus-smp evaluate",
        )
    seen, new = training.used(), target.used()
    for column in ("sha256", "phash"):
        unproven = [
            name for name, rows in (("training", seen), ("target", new)) if (rows[column] == "").any()
        ]
        if unproven:
            raise EvaluationError(
                f"the {' and the '.join(unproven)} manifest has images without {column}: they cannot be compared",
                hint="make it with bus-smp make-manifest (from your own table: --csv)",
            )
    for column, things in (("group_id", "groups"), ("sha256", "pictures")):
        common = set(seen[column]) & set(new[column])
        if common:
            images = new.loc[new[column].isin(common), "image_id"]
            raise EvaluationError(
                f"{len(common)} {things} of {', '.join(target.datasets)} were used in training this run "
                f"(images {', '.join(images[:3])}{', ...' if len(images) > 3 else ''})",
                hint="a target that overlaps with the training data is no external test; choose another",
            )
    _check_near_duplicates(training, seen, target, new)


def read_external(
    training: Manifest,
    folder: Path,
    root: Path | Mapping[str, Path] | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> dict[Path, Manifest]:
    """Every manifest of ``folder`` that passes ``check_external``; the reason for each other one goes to ``say``.

    Their folders of images need not exist, as in ``read_manifest(..., images=False)``.

    Raises:
        EvaluationError: if there is none.
    """
    found = {}
    for path in list_manifests(folder):
        try:
            manifest = read_manifest(path, root, images=False)
            check_external(training, manifest)
            found[path] = manifest
        except BusSmpError as error:
            say(f"Not scored: {path}: {error.what.splitlines()[0]}")
    if not found:
        raise EvaluationError(
            f"{folder} holds no manifest that this run can be tested on",
            hint="make one: bus-smp make-manifest --dataset NAME --root FOLDER",
        )
    return found


def near_pairs(first: Sequence[str], second: Sequence[str], most: int = NEAR) -> np.ndarray:
    """Every pair of dHashes (64 hex digits) that differ in at most ``most`` bits.

    Memory grows with the number of pairs found, not with the lengths.

    Returns:
        int64 (pairs, 2): index into ``first``, index into ``second``; sorted.
    """
    found = [np.empty((0, 2), np.int64)]
    for top in range(0, len(first), _BLOCK):
        rows = _signs(first[top : top + _BLOCK])
        for left in range(0, len(second), _BLOCK):
            # the product of two sign vectors is the number of equal bits minus that of different bits
            product = rows @ _signs(second[left : left + _BLOCK]).T
            found.append(np.argwhere(product >= HASH_BITS - 2 * most) + (top, left))
    pairs = np.concatenate(found)
    return pairs[np.lexsort(pairs.T[::-1])]


def _signs(hashes: Sequence[str]) -> np.ndarray:
    """Bits of the hashes as float32 (N, 256) of -1 and 1; sums of so few are exact."""
    octets = np.frombuffer(bytes.fromhex("".join(hashes)), np.uint8)
    return np.unpackbits(octets).reshape(-1, HASH_BITS).astype(np.float32) * 2 - 1


def _check_near_duplicates(
    training: Manifest, seen: pd.DataFrame, target: Manifest, new: pd.DataFrame
) -> None:
    candidates: dict[int, list[int]] = defaultdict(list)
    for theirs, ours in near_pairs(list(new["phash"]), list(seen["phash"])):
        candidates[theirs].append(ours)
    if not candidates:
        return
    seen_rows, new_rows = seen.to_dict("records"), new.to_dict("records")

    def copied_from(image: int) -> Mapping | ImageError | None:
        """The training row that an image of the target repeats, None, or the error if that cannot be verified."""
        try:
            own = _fingerprint(target, new_rows[image])
            for row in map(seen_rows.__getitem__, candidates[image]):
                if find_near_duplicates([own, _fingerprint(training, row)]):
                    return row
        except ImageError as error:
            return error
        return None

    outcomes = dict(zip(candidates, read_ahead(copied_from, candidates), strict=True))
    names = ", ".join(target.datasets)
    copies = [
        f"{new_rows[image]['image_id']} is {row['dataset']} {row['image_id']}"
        for image, row in outcomes.items()
        if isinstance(row, Mapping)
    ]
    if copies:
        raise EvaluationError(
            f"{len(copies)} near-duplicates of images of {names} were used in training this run "
            f"({', '.join(copies[:3])}{', ...' if len(copies) > 3 else ''})",
            hint="exclude these rows in the target's manifest (write why into `excluded`, empty `split` and `fold`), or "
            "choose another target; make-manifest of both data sets into one folder flags all of them",
        )
    unread = [error for error in outcomes.values() if isinstance(error, ImageError)]
    if unread:
        raise EvaluationError(
            f"{len(unread)} images of {names} may be near-duplicates of images used in training this run, "
            f"and it cannot be verified: {unread[0].what}",
            hint=unread[0].hint,
        )


def _fingerprint(manifest: Manifest, row: Mapping) -> Fingerprint:
    """The fingerprint of a row's image.

    Raises:
        ImageError: if it cannot be read, or has other pixels than when the manifest was made.
    """
    where = f"say where the images are: --root {row['dataset']}=FOLDER"
    try:
        image = read_image(manifest.image_path(row))
    except BusSmpError as error:
        raise ImageError(error.what, hint=where) from None
    if pixel_sha256(image) != row["sha256"]:
        raise ImageError(
            f"{manifest.image_path(row)}: the image has changed since the manifest was made", hint=where
        )
    return fingerprint(image)
