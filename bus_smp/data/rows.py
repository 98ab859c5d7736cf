"""From audited data sets to the rows of their manifests: here, and only here, images are excluded."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from bus_smp.data.audit import FLAGS, AuditedFolder, AuditedImage, Progress, no_progress
from bus_smp.data.copies import ComparedImage, Copies, Place, find_copies, patient_group
from bus_smp.data.exclusions import Problem
from bus_smp.data.manifest import COLUMNS
from bus_smp.errors import ConfigError, DataError

# Images that a reason names; the rest is counted.
NAMED = 10


@dataclass(frozen=True)
class Policy:
    """What to do with what the audit finds.

    on_mismatch: mask of another size than its image: ``exclude`` the row, ``resize`` the mask when
        it is read (nearest), or ``error``.
    duplicates: ``drop`` uses the first image of each cluster of copies; ``group`` uses all, unless
        their labels contradict each other; ``keep`` uses even those. None chooses ``group`` for a
        data set with patient ids and ``drop`` for one without. Copies share a group under all three.
    exclude: flags whose rows are not used.
    """

    on_mismatch: str = "exclude"
    duplicates: str | None = None
    exclude: tuple[str, ...] = ()


@dataclass(frozen=True)
class DatasetRows:
    """The rows of one data set, before they are split.

    frame: the manifest's columns, rows in natural order, ``split`` and ``fold`` still empty.
    duplicates: the policy for copies that was applied.
    pairs: (image, other image, "exact" | "near", correlation) of this data set's images; an image
        of another data set is written <dataset>/<id>.
    earlier_places: group id -> (split, fold) that manifests made earlier give it.
    others: data sets, sorted, that hold copies of this one's images.
    """

    folder: AuditedFolder
    frame: pd.DataFrame
    duplicates: str
    pairs: list[tuple[str, str, str, float]]
    earlier_places: dict[str, Place]
    others: list[str]


def make_rows(
    folders: Sequence[AuditedFolder],
    policy: Policy,
    earlier: Sequence[ComparedImage] = (),
    progress: Progress = no_progress,
) -> list[DatasetRows]:
    """Compare the images with each other and with ``earlier``, form groups, and exclude what cannot be used.

    Raises:
        DataError: under ``on_mismatch="error"``, naming every image.
        ConfigError: if ``policy.exclude`` names a flag that does not exist.
    """
    _refuse_mismatches(folders, policy)
    _refuse_unknown_flags(folders, policy)
    copies = find_copies(folders, earlier, progress)
    duplicates = [policy.duplicates or default_duplicates(folder) for folder in folders]
    flags, excluded = _exclude(folders, policy, duplicates, copies)

    found = []
    for i, folder in enumerate(folders):
        rows = [
            _make_row(folder, image, copies.groups, flags[i, j], excluded[i, j])
            for j, image in enumerate(folder.images)
        ]
        has_pixel_mm = any(image.record.pixel_mm for image in folder.images)
        frame = pd.DataFrame(rows, columns=[*COLUMNS, *(["pixel_mm"] if has_pixel_mm else [])])
        frame = frame.astype(dict.fromkeys(("fold", "width", "height"), "Int64"))
        own = [
            (copies.images[a], copies.images[b], kind, correlation)
            for a, b, kind, correlation in copies.pairs
            if folder.dataset in (copies.images[a].dataset, copies.images[b].dataset)
        ]
        pairs = [
            (a.seen_from(folder.dataset), b.seen_from(folder.dataset), kind, correlation)
            for a, b, kind, correlation in own
        ]
        places = {
            group: copies.earlier_places[group]
            for group in set(frame["group_id"]) & set(copies.earlier_places)
        }
        others = {image.dataset for pair in own for image in pair[:2]} - {folder.dataset}
        found.append(DatasetRows(folder, frame, duplicates[i], pairs, places, sorted(others)))
    return found


def default_duplicates(folder: AuditedFolder) -> str:
    """``group`` where patients are known, because their frames resemble each other; else ``drop``."""
    return "group" if any(image.record.patient_known for image in folder.images) else "drop"


def _exclude(
    folders: Sequence[AuditedFolder], policy: Policy, duplicates: Sequence[str], copies: Copies
) -> tuple[dict[tuple[int, int], list[str]], dict[tuple[int, int], Problem | None]]:
    """Flags, and the problem that excludes or None, of each image by (folder, image)."""
    images = {(i, j): image for i, folder in enumerate(folders) for j, image in enumerate(folder.images)}
    waived = {"size-mismatch"} if policy.on_mismatch == "resize" else set()
    flags = {index: list(image.flags) for index, image in images.items()}
    excluded = {
        index: next((problem for problem in image.problems if problem.code not in waived), None)
        for index, image in images.items()
    }
    for a, b, _, _ in copies.pairs:
        for one, other in ((a, b), (b, a)):
            if (index := copies.images[one].index) is not None:
                flags[index].append(f"duplicate:{copies.images[other].seen_from(copies.images[one].dataset)}")
    for cluster in copies.clusters:
        _exclude_conflicts(cluster, duplicates, flags, excluded)
    for index, image in images.items():
        names = [flag.partition(":")[0] for flag in flags[index]]
        unwanted = next((flag for flag in policy.exclude if flag in names), None)
        if copies.groups[patient_group(folders[index[0]], image)] in copies.torn:
            words = "same patient as images in different splits of other manifests"
            excluded[index] = excluded[index] or Problem("shared-group", words)
        elif unwanted:
            excluded[index] = excluded[index] or Problem("flagged", f"--exclude {unwanted}")
    for cluster in copies.clusters:
        _exclude_copies(cluster, duplicates, excluded)
    return flags, excluded


def _exclude_conflicts(
    cluster: list[ComparedImage],
    duplicates: Sequence[str],
    flags: dict[tuple[int, int], list[str]],
    excluded: dict[tuple[int, int], Problem | None],
) -> None:
    """One picture under several labels: at least one label is wrong, and nobody knows which."""
    if len({image.label for image in cluster} - {""}) < 2:
        return
    # The first of them, and one of each label.
    shown: list[ComparedImage] = []
    for image in cluster:
        if len(shown) <= NAMED or image.label not in {other.label for other in shown}:
            shown.append(image)
    for image in cluster:
        if image.index is None:
            continue
        flags[image.index].append("label_conflict")
        if duplicates[image.index[0]] != "keep" and not excluded[image.index]:
            others = [
                f"{o.seen_from(image.dataset)} ({o.label or 'label in doubt'})"
                for o in shown
                if o is not image
            ]
            if more := len(cluster) - 1 - len(others):
                others.append(f"{more} more")
            words = f"labelled {image.label or 'in doubt'}, same picture as {', '.join(others)}"
            excluded[image.index] = Problem("label-conflict", words)


def _exclude_copies(
    cluster: list[ComparedImage],
    duplicates: Sequence[str],
    excluded: dict[tuple[int, int], Problem | None],
) -> None:
    """Under ``drop``, keep the first image of each data set, in natural order, that nothing else excludes."""
    kept: dict[int, ComparedImage] = {}
    for image in cluster:
        if image.index is None or duplicates[image.index[0]] != "drop" or excluded[image.index]:
            continue
        first = kept.setdefault(image.index[0], image)
        if first is not image:
            code = "duplicate" if image.sha256 == first.sha256 else "near-duplicate"
            excluded[image.index] = Problem(code, f"of {first.image_id}")


def _make_row(
    folder: AuditedFolder,
    image: AuditedImage,
    groups: dict[str, str],
    flags: list[str],
    excluded: Problem | None,
) -> dict:
    record = image.record
    return {
        "dataset": folder.dataset,
        "image_id": record.image_id,
        "patient_id": record.patient_id or record.image_id,
        "patient_known": record.patient_known,
        "group_id": groups[patient_group(folder, image)],
        "label": record.label,
        "split": "",
        "fold": None,
        "image": record.image,
        "masks": "|".join(record.masks),
        "mask_format": image.mask_format if record.masks else "",
        "width": image.width or None,
        "height": image.height or None,
        "sha256": image.sha256,
        "phash": image.fingerprint.phash if image.fingerprint else "",
        "flags": "|".join(dict.fromkeys(flags)),
        "excluded": str(excluded) if excluded else "",
        "pixel_mm": record.pixel_mm,
    }


def _refuse_mismatches(folders: Sequence[AuditedFolder], policy: Policy) -> None:
    found = [
        f"{folder.dataset}/{image.record.image_id}"
        for folder in folders
        for image in folder.images
        if any(problem.code == "size-mismatch" for problem in image.problems)
    ]
    if policy.on_mismatch == "error" and found:
        raise DataError(
            f"{len(found)} masks are of another size than their image: {', '.join(found)}",
            hint="correct the files, or use --on-mismatch exclude (leaves them out) or resize (stretches the mask)",
        )


def _refuse_unknown_flags(folders: Sequence[AuditedFolder], policy: Policy) -> None:
    present = {
        flag.partition(":")[0] for folder in folders for image in folder.images for flag in image.flags
    }
    unknown = [flag for flag in policy.exclude if flag not in FLAGS and flag not in present]
    if unknown:
        raise ConfigError(
            f"--exclude {', '.join(unknown)}: no such flag",
            hint=f"flags are {', '.join(sorted({*FLAGS, *present}))}",
        )
