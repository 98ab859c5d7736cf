"""Draft the table of a folder of images and masks that no source knows; the user checks it and fills it in."""

import codecs
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from bus_smp.classes import LABELS, parse_label
from bus_smp.data.audit import guess_mask_format
from bus_smp.data.images import IMAGE_SUFFIXES, read_mask
from bus_smp.data.manifest_csv import to_csv
from bus_smp.data.sources import existing_folder, packed
from bus_smp.data.sources._layout import LaidOut, Layout, is_nnunet, read_layout
from bus_smp.data.sources._tree import LITTER, key, relative
from bus_smp.data.splits import SPLITS
from bus_smp.errors import DataError, ImageError
from bus_smp.system.files import replacing
from bus_smp.text import shortened

# Files that hold images or annotations and are not read.
_ANNOTATIONS = {".nii", ".nii.gz", ".nrrd", ".mha", ".mhd", ".dcm", ".json", ".xml"}

# How masks are read whose numbers 1 and 2 mean these labels.
_FORMS: dict[tuple[str, ...], str] = {
    ("benign", "malignant"): "index",
    ("malignant", "benign"): "swapped-index",
}

# Folders that divide a set otherwise than by patients.
_PARTS = re.compile(r"(fold|part|batch|group|set|class|bi[ _-]?rads)[ _-]?\d*[abc]?$", re.IGNORECASE)
# So few folders are rather classes or sources than patients; no split can be made of fewer than three patients.
_FEWEST_PATIENTS = 4

# Files and patients that a sentence names.
_NAMED = 4


@dataclass(frozen=True)
class Draft:
    """A drafted table. lines: what was understood. lacks_labels: cells of it are to be filled in."""

    lines: list[str]
    lacks_labels: bool


def write_draft(folder: Path, path: Path, labels: Mapping[str, str] | None = None) -> Draft:
    """Write a table of the images in ``folder`` as their folders and names describe them.

    Labels come from folders, then file names, then masks that show a class (colours, nnU-Net's numbers, nothing
    marked); patients from the folders that say nothing else. What nothing says is an empty cell.

    Args:
        path: of the table, which must not be there; its paths start from ``folder``.
        labels: the user's words for labels, in small letters.

    Raises:
        DataError: if the folder holds no image, or a file is at ``path``.
    """
    folder = existing_folder(folder)
    if path.exists():
        raise DataError(f"{path}: exists and would be overwritten", hint="choose another name with --name")
    layout = read_layout(folder, labels)
    if not layout.images:
        raise DataError(
            f"{folder}: no image ({', '.join(IMAGE_SUFFIXES)}) in it or below it; {_rest(folder) or 'it is empty'}",
            hint="name the folder that holds images and masks: bus-smp make-manifest --folder DIR",
        )
    classes, lines = _nnunet_classes(folder)
    has_split = all(image.split for image in layout.images)
    rows = [_row(image, folder, classes) for image in layout.images]
    # Before the table is written, which may lie in the folder.
    left = _rest(folder)
    few = {row["patient_id"] for row in rows} - {""}
    if len(few) < _FEWEST_PATIENTS:
        rows = [{**row, "patient_id": ""} for row in rows]
        if few and any(not row["label"] for row in rows):
            words = ",".join(f"{name}=..." for name in sorted(few))
            lines.append(
                f"{len(few)} folders are too few for patients; if they are labels, delete {path} and draft it again with "
                f'--labels "{words}"'
            )
    unused = ([] if has_split else ["split"]) + ([] if classes else ["mask_format"])
    with replacing(path) as temporary:
        # Excel takes a file without this mark for its own encoding.
        temporary.write_bytes(codecs.BOM_UTF8 + to_csv(pd.DataFrame(rows).drop(columns=unused)))
    lines = [*_describe(layout, rows, has_split), *lines, *([left] if left else [])]
    return Draft(lines, any(not row["label"] for row in rows))


def _row(image: LaidOut, folder: Path, classes: Mapping[int, str]) -> dict[str, str]:
    return {
        "image": relative(image.image, folder),
        "masks": "|".join(relative(mask, folder) for mask in image.masks),
        "label": image.label or _label_of_masks(image.masks, classes),
        # The first folder: a patient's examinations lie below it.
        "patient_id": next((name for name in image.rest if not _PARTS.match(name)), ""),
        "split": image.split,
        "mask_format": _FORMS.get(tuple(classes.values()), "") if image.masks else "",
    }


def _label_of_masks(masks: Sequence[Path], classes: Mapping[int, str]) -> str:
    """The worst class that the masks show; "" where their values name none, or they cannot be read."""
    if not masks:
        return ""
    try:
        form = _FORMS.get(tuple(classes.values())) or guess_mask_format(masks)
        worst = int(read_mask(masks, form, "benign").max())
    except ImageError:
        return ""
    if form == "binary" and worst:
        return classes.get(1, "")
    # Numbers mean classes only where dataset.json says so.
    return LABELS[worst] if form != "index" or classes or not worst else ""


def _nnunet_classes(folder: Path) -> tuple[dict[int, str], list[str]]:
    """Number -> label of nnU-Net's dataset.json; none where they cannot be used, and then the reason."""
    if not is_nnunet(folder) or not (folder / "dataset.json").is_file():
        return {}, []
    try:
        given = json.loads((folder / "dataset.json").read_text(encoding="utf-8-sig"))["labels"]
        # Version 2 has name: number, version 1 number: name.
        pairs = given.items() if all(map(str.isdecimal, given)) else [(v, k) for k, v in given.items()]
        found = {int(number): parse_label(name) for number, name in sorted(pairs) if int(number)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}, ["dataset.json: names no benign and malignant for the numbers in the masks; fill in label"]
    if [*found] == [1] or ([*found] == [1, 2] and tuple(found.values()) in _FORMS):
        return found, []
    listed = ", ".join(f"{number} {label}" for number, label in found.items())
    return {}, [
        f"dataset.json: numbers {listed}; only 1 and 2, benign and malignant, are read; fill in label"
    ]


def _describe(layout: Layout, rows: Sequence[Mapping[str, str]], has_split: bool) -> list[str]:
    masks = [len(image.masks) for image in layout.images]
    several = sum(count > 1 for count in masks)
    lines = [
        f"images: {len(masks)}; with a mask {sum(map(bool, masks))}"
        + (f", {several} of them with several" if several else "")
        + f"; without {masks.count(0)}"
    ]
    if layout.unmatched:
        lines.append(f"masks that fit no image, or several, by name: {_some(layout.unmatched)}")
    if layout.left_out:
        lines.append(f"further channels, not read: {_some(layout.left_out)}")
    counts = Counter(row["label"] for row in rows)
    known = ", ".join(f"{counts[label]} {label}" for label in LABELS if counts[label])
    lines.append(f"label: {known or 'none known'}" + (f"; {counts['']} to fill in" if counts[""] else ""))
    patients = sorted({row["patient_id"] for row in rows} - {""})
    if patients:
        lines.append(
            f"patient_id: {len(patients)} from the folders ({shortened(patients, _NAMED)}): check that these are patients"
        )
    else:
        lines.append("patient_id: empty; fill it in where you know it, else no split is patient-level")
    if has_split:
        splits = Counter(row["split"] for row in rows)
        lines.append(
            "split: " + ", ".join(f"{splits[s]} {s}" for s in SPLITS if splits[s]) + ", from the folders"
        )
    return lines


def _some(paths: Sequence[Path]) -> str:
    return f"{len(paths)} ({shortened([path.name for path in paths], _NAMED)})"


def _rest(folder: Path) -> str:
    """A sentence on files that are no images; "" where there are none."""
    kinds: Counter[str] = Counter()
    for path in folder.rglob("*"):
        litter = any(part[0] == "." or key(part) in LITTER for part in path.relative_to(folder).parts)
        if path.is_file() and not litter and path.suffix.lower() not in IMAGE_SUFFIXES:
            double = path.name.lower().endswith(".nii.gz")
            kinds[".nii.gz" if double else path.suffix.lower() or "(no suffix)"] += 1
    if not kinds:
        return ""
    return (
        "not read: "
        + ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
        + _remedy(folder, kinds)
    )


def _remedy(folder: Path, kinds: Iterable[str]) -> str:
    """What to do with files that hold images or annotations and are not read; "" where none does."""
    if archives := packed(folder):
        return f"; unpack {archives[0]}, then run the same command again"
    if _ANNOTATIONS.isdisjoint(kinds):
        return ""
    return "; to export images and masks as PNG see docs/annotation.md"
