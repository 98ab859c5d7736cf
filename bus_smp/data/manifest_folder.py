"""The folder of manifests: new ones are compared with those in it, and replace only manifests."""

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from bus_smp.data.audit import AuditedFolder, Progress, fingerprint_files, no_progress
from bus_smp.data.copies import ComparedImage, proven_label
from bus_smp.data.make_manifests import SplitPlan, make_manifests
from bus_smp.data.manifest import (
    Manifest,
    list_manifests,
    looks_like_manifest,
    looks_like_sidecar,
    read_manifest,
    write_manifest,
)
from bus_smp.data.near_duplicates.store import write_fingerprints
from bus_smp.data.rows import Policy
from bus_smp.errors import ManifestError


@dataclass(frozen=True)
class WrittenManifest:
    """A manifest, its file, and how that file changed: "new", "unchanged" or "replaced: ..."."""

    manifest: Manifest
    path: Path
    change: str


def create_manifests(
    folders: Sequence[AuditedFolder],
    out: Path,
    policy: Policy,
    plan: SplitPlan,
    own_table: Path | None = None,
    progress: Progress = no_progress,
) -> list[WrittenManifest]:
    """Make a manifest of each data set and write it to ``out/<data set>.csv``.

    Args:
        own_table: the table that the data sets were read from, which is never overwritten.

    Raises:
        ManifestError: if a file would be overwritten that is neither a manifest nor a sidecar; and as
            ``make_manifests`` and ``write_manifest`` do.
    """
    paths = {folder.dataset: out / f"{folder.dataset}.csv" for folder in folders}
    for path in paths.values():
        _refuse_overwriting(path, own_table)
    earlier, notes = fingerprint_earlier(out, list(paths), progress)
    written = []
    for manifest in make_manifests(folders, policy, plan, earlier, notes, progress):
        path = paths[manifest.datasets[0]]
        written.append(WrittenManifest(manifest, path, _write(manifest, path)))
    for one in folders:
        # for crosseval, which compares a target with the training data
        found = {image.sha256: image.fingerprint for image in one.images if image.fingerprint is not None}
        write_fingerprints(out, one.dataset, found)
    return written


def fingerprint_earlier(
    folder: Path, making: Sequence[str], progress: Progress = no_progress
) -> tuple[list[ComparedImage], list[str]]:
    """Fingerprints of the images of the manifests in ``folder``, without the data sets ``making``.

    Returns:
        the images, and a sentence for each manifest that could not be compared, wholly or in part.
    """
    images, notes = [], []
    for path in list_manifests(folder):
        try:
            manifest = read_manifest(path, images=False)
        except ManifestError as error:
            if path.stem not in making:
                notes.append(f"not compared with {path.name}: {error.what.splitlines()[0]}")
            continue
        table = manifest.frame[~manifest.frame["dataset"].isin(making) & (manifest.frame["image"] != "")]
        rows = table[table["sha256"] != ""].to_dict("records")
        if not rows:
            continue
        paths = [manifest.image_path(row) for row in rows]
        found = fingerprint_files(paths, progress, f"{path.stem} (to compare)")
        for row, seen in zip(rows, found, strict=True):
            if seen is not None:
                fold = "" if pd.isna(row["fold"]) else str(row["fold"])
                place = (row["split"], fold) if row["split"] else None
                label = proven_label(row["label"], row["flags"].split("|"))
                images.append(
                    ComparedImage(row["dataset"], row["image_id"], label, row["group_id"], *seen, place=place)
                )
        if missing := found.count(None):
            notes.append(
                f"not compared with {missing} of {len(found)} images of {path.name}: they cannot be read"
            )
    return images, notes


def _refuse_overwriting(path: Path, own_table: Path | None) -> None:
    """Refuse to replace a file of the manifest's or its sidecar's name that is neither."""
    hint = "choose another folder with --out"
    if own_table is not None:
        hint += ", or another name with --name"
        if path.resolve() == own_table.resolve():
            raise ManifestError(f"{path}: is your own table and would be overwritten", hint=hint)
    for file, is_ours, kind in (
        (path, looks_like_manifest, "manifest"),
        (path.with_suffix(".json"), looks_like_sidecar, "manifest's sidecar"),
    ):
        if os.path.lexists(file) and not is_ours(file):
            raise ManifestError(
                f"{file}: exists and is not a {kind}; it would be overwritten",
                hint=f"move it elsewhere, or {hint}",
            )


def _write(manifest: Manifest, path: Path) -> str:
    """Write, and say in words how the file changed."""
    before = _read_rows(path)
    write_manifest(manifest, path)
    after = _read_rows(path)
    if not before:
        return "new"
    differing = sum(before.get(key) != after.get(key) for key in {**before, **after})
    return f"replaced: {differing} rows differ" if differing else "unchanged"


def _read_rows(path: Path) -> dict[tuple, tuple]:
    """Rows of an existing manifest by (dataset, image id), whatever is in them; {} where there is no file."""
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        return {
            (row.get("dataset"), row.get("image_id")): tuple(row.values()) for row in csv.DictReader(file)
        }
