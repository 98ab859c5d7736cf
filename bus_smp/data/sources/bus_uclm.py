"""BUS-UCLM: 683 images of 38 women, normal, benign and malignant, with colour masks.

Layout: ``images/ABCD_000.png``, ``masks/ABCD_000.png`` (same names), ``INFO.csv``. The patient is the code
before the number. Copies in circulation are divided into ``train/``, ``val/`` and ``test/``, above or below these folders. Masks are RGB: black, green benign, red malignant.
``INFO.csv`` has ``Image;Resolution;Label;Doppler;Marks;Combined``. Without it, and for an image without a row
in it, the label is read from the mask (flag ``label_from_mask``), and Doppler, marks and combined are unknown.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from bus_smp.classes import LABELS, parse_label
from bus_smp.data.exclusions import Problem
from bus_smp.data.images import read_mask
from bus_smp.data.sources import Record
from bus_smp.data.sources._layout import group_files, part_folders, place_files, with_own_ids
from bus_smp.data.sources._tree import (
    is_yes,
    key,
    natural_key,
    original,
    pair_masks,
    read_table,
    relative,
    rows_by_image,
    stem_of,
    table_file,
    wrong_folder,
)
from bus_smp.errors import ImageError

NAME = "bus-uclm"
TITLE = "BUS-UCLM"
LAYOUT = "images/ABCD_000.png, masks/ABCD_000.png and INFO.csv"
CITE = "Vallez et al., BUS-UCLM: Breast ultrasound lesion segmentation dataset, Scientific Data 12:242, 2025"
LICENCE = (
    "CC BY 4.0 on Mendeley Data, CC BY-NC 4.0 in the authors' repository: check which applies to your use"
)
URL = "https://doi.org/10.17632/7fvgj4jsp7"
# the authors' own test patients
OFFICIAL_TEST = frozenset({"COPE", "ANFO", "ELCO", "CRCI", "FLKA"})

_IMAGE_NAME = re.compile(r"[A-Za-z]{4}_\d{3}\b")


def looks_like(folder: Path) -> bool:
    """True where ``folder`` itself holds images/ and masks/, also in parts, and INFO.csv or images named ABCD_000."""
    placed = place_files(folder)
    if not {"image", "mask"} <= {file.role for file in placed}:
        return False
    named = any(_IMAGE_NAME.match(file.path.name) for file in placed if file.role == "image")
    return named or bool(_tables(folder))


def records(root: Path) -> Iterator[Record]:
    """Yield every image, mask and table row of the data set, in the order of their names.

    Raises:
        DataError: if ``root`` is another folder, or INFO.csv cannot be understood.
    """
    root = Path(root)
    if not looks_like(root):
        raise wrong_folder(root, TITLE, LAYOUT, NAME)
    info = _read_info(root)
    found = []
    used = set()
    groups = group_files(place_files(root))
    pairs = [(split, pair) for (split, _), files in groups.items() for pair in pair_masks(*files)]
    for split, pair in pairs:
        name = next((n for n in (key(pair.image_id), key(original(pair.image_id))) if n in info), None)
        # The table may name the copy that took its original's place.
        if pair.image is not None and name is None:
            name = next((n for n in [key(pair.image.stem)] if n in info), None)
        flags, problems, label = list(pair.flags), list(pair.problems), ""
        if name is not None:
            used.add(name)
            row = info[name]
            flags += [flag for flag in ("doppler", "combined", "marks") if is_yes(row.get(flag, ""))]
            try:
                label = parse_label(row["label"])
            except ValueError:
                problems.append(Problem("unknown-label", f"unknown label {row['label']!r} in INFO.csv"))
        elif pair.masks:
            flags.append("label_from_mask")
            try:
                label = LABELS[int(read_mask(pair.masks, "color", "").max())]
            except ImageError as error:
                words = f"no table, and its mask cannot be read: {error.what.replace(str(root), '.')}"
                problems.append(Problem("unknown-label", words))
        else:
            problems.append(Problem("no-mask"))
        found.append(
            _record(
                pair.image_id,
                relative(pair.image, root),
                tuple(relative(m, root) for m in pair.masks),
                label,
                tuple(flags),
                tuple(problems),
                split,
            )
        )
    for name, row in info.items():
        if name not in used:
            try:
                label = parse_label(row["label"])
            except ValueError:
                label = ""
            problem = Problem("no-image", "row in INFO.csv without image")
            found.append(_record(stem_of(row["image"]), "", (), label, (), (problem,)))
    yield from sorted(with_own_ids(found), key=lambda r: natural_key(r.image_id))


def _record(
    image_id: str,
    image: str,
    masks: tuple[str, ...],
    label: str,
    flags: tuple[str, ...],
    problems: tuple[Problem, ...],
    split: str = "",
) -> Record:
    # ABCD_000 -> ABCD; the codes are capitals, so a lower-case copy of a file is the same woman.
    patient = re.sub(r"[ _-]*\d+$", "", original(image_id)).upper() or image_id
    return Record(
        image_id,
        image,
        masks,
        "color",
        label,
        patient,
        flags=flags,
        problems=problems,
        split=split,
        official_split="test" if patient in OFFICIAL_TEST else "train",
    )


def _tables(root: Path) -> list[Path]:
    """INFO.csv of ``root`` and of its parts."""
    tables = [table_file([folder], "INFO") for folder in part_folders(root)]
    return [table for table in tables if table is not None]


def _read_info(root: Path) -> dict[str, dict[str, str]]:
    """INFO.csv by image name; {} without the file."""
    rows = [row for path in _tables(root) for row in read_table(path, ("image", "label"))]
    return rows_by_image(rows, "image", "label", lambda n: key(stem_of(n)))
