"""BUS-BRA: 1875 images of 1064 women from four scanners, benign and malignant, with binary masks.

Layout: ``Images/bus_0001-l.png``, ``Masks/mask_0001-l.png`` (suffix l, r or s), ``bus_data.csv`` with
``ID,Case,Histology,Pathology,BIRADS,Device,Width,Height,Side,BBOX``. The patient is ``Case``.
Copies in circulation are divided into ``train/``, ``val/`` and ``test/``. Images are grey, masks 1-bit, always of the image's size.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from bus_smp.classes import parse_label
from bus_smp.data.exclusions import Problem
from bus_smp.data.sources import Record
from bus_smp.data.sources._layout import group_files, part_folders, place_files, with_own_ids
from bus_smp.data.sources._tree import (
    key,
    names,
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
from bus_smp.errors import DataError

NAME = "bus-bra"
TITLE = "BUS-BRA"
LAYOUT = "Images/bus_0001-l.png, Masks/mask_0001-l.png and bus_data.csv"
CITE = "Gomez-Flores et al., BUS-BRA: A breast ultrasound dataset, Medical Physics 51(4), 2024"
LICENCE = "CC BY 4.0 on Zenodo; check the terms where you downloaded it"
URL = "https://doi.org/10.5281/zenodo.8231412"
OFFICIAL_TEST: frozenset[str] = frozenset()

_IMAGE_NAME = re.compile(r"bus_\d+-[a-z]\b", re.IGNORECASE)


def looks_like(folder: Path) -> bool:
    """True where ``folder`` itself holds Images/ and Masks/, and bus_data.csv or images named bus_0001-l."""
    placed = place_files(folder)
    if not {"image", "mask"} <= {file.role for file in placed}:
        return False
    named = any(_IMAGE_NAME.match(file.path.name) for file in placed if file.role == "image")
    return named or table_file([folder], "bus_data") is not None


def records(root: Path) -> Iterator[Record]:
    """Yield every image, mask and table row of the data set, in the order of their names.

    Raises:
        DataError: if ``root`` is another folder, or bus_data.csv is missing or cannot be understood.
    """
    root = Path(root)
    if not looks_like(root):
        raise wrong_folder(root, TITLE, LAYOUT, NAME)
    table = table_file(part_folders(root), "bus_data")
    if table is None:
        raise DataError(
            f"{root}: bus_data.csv is missing, so labels and patients are unknown; found {names(root)}",
            hint="put bus_data.csv from the download next to Images/ and Masks/",
        )
    rows = rows_by_image(
        read_table(table, ("id", "case", "pathology")), "id", "pathology", lambda n: key(stem_of(n))
    )
    found = []
    used = set()
    groups = group_files(place_files(root))
    for (split, _), files in groups.items():
        for pair in pair_masks(*files, mask_owner=_mask_owner):
            name = key(original(pair.image_id))
            used.add(name)
            masks = tuple(relative(m, root) for m in pair.masks)
            image = relative(pair.image, root)
            found.append(
                _record(pair.image_id, image, masks, rows.get(name), pair.flags, pair.problems, split)
            )
    found += [
        _record(
            stem_of(row["id"]), "", (), row, (), (Problem("no-image", "row in bus_data.csv without image"),)
        )
        for name, row in rows.items()
        if name not in used
    ]
    yield from sorted(with_own_ids(found), key=lambda r: natural_key(r.image_id))


def _mask_owner(stem: str) -> str:
    """ "mask_0001-l" -> "bus_0001-l"."""
    return re.sub(r"^mask_", "bus_", stem, flags=re.IGNORECASE)


def _record(
    image_id: str,
    image: str,
    masks: tuple[str, ...],
    row: dict[str, str] | None,
    flags: tuple[str, ...],
    problems: tuple[Problem, ...],
    split: str = "",
) -> Record:
    label, patient = "", row.get("case", "") if row else ""
    word = row["pathology"] if row else ""
    try:
        label = parse_label(word)
    except ValueError:
        words = f"unknown label {word!r} in bus_data.csv" if row else "no row in bus_data.csv"
        problems += (Problem("unknown-label", words),)
    if not patient:
        problems += (Problem("no-patient", "no patient (Case) in bus_data.csv"),)
    return Record(
        image_id,
        image,
        masks,
        "binary",
        label,
        patient or image_id,
        patient_known=bool(patient),
        flags=flags,
        problems=problems,
        split=split,
    )
