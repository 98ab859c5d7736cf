"""BrEaST (Breast-Lesions-USG): 256 images of 256 patients, normal, benign and malignant, with binary masks.

Layout: one folder with ``case001.png``, ``case001_tumor.png`` and, for findings that are not tumours,
``case001_other1.png``; ``BrEaST-Lesions-USG-clinical-data-Dec-15-2023.xlsx`` (or .csv) in it or above it, with
``CaseID``, ``Image_filename``, ``Mask_tumor_filename``, ``Classification`` and, if wanted, ``Pixel_size``. Every file is RGBA. The other findings
are no lesions here; normal images have no tumour mask.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from bus_smp.classes import parse_label
from bus_smp.data.exclusions import Problem
from bus_smp.data.limits import is_pixel_mm
from bus_smp.data.sources import Record
from bus_smp.data.sources._tree import (
    image_files,
    is_yes,
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

NAME = "breast"
TITLE = "BrEaST"
LAYOUT = "case001.png and case001_tumor.png in one folder, BrEaST-Lesions-USG-clinical-data*.xlsx in it or above it"
CITE = "Pawlowska et al., Curated benchmark dataset for ultrasound based breast lesion analysis, Scientific Data 11:148, 2024"
LICENCE = "CC BY 4.0 at The Cancer Imaging Archive; check the terms where you downloaded it"
URL = "https://doi.org/10.7937/9WKK-Q141"
OFFICIAL_TEST: frozenset[str] = frozenset()

_IMAGE_NAME = re.compile(r"case\d+(_tumor\d*|_other\d*)?\.", re.IGNORECASE)
_MASK_NAME = re.compile(r"^(?P<image>.+)_(?P<kind>tumor|other)\d*(?P<copy> ?\(\d+\))?$", re.IGNORECASE)


def looks_like(folder: Path) -> bool:
    """True where ``folder`` itself holds images named case001.png."""
    return any(_IMAGE_NAME.match(path.name) for path in image_files(folder))


def records(root: Path) -> Iterator[Record]:
    """Yield every image, tumour mask and table row of the data set, in the order of their names.

    Raises:
        DataError: if ``root`` is another folder, or the table is missing or cannot be understood.
    """
    root = Path(root)
    if not looks_like(root):
        raise wrong_folder(root, TITLE, LAYOUT, NAME)
    parent = root.absolute().parent
    table = table_file([root, parent, parent.parent], "BrEaST-Lesions", prefix=True)
    if table is None:
        raise DataError(
            f"{root}: the table of labels is missing; found {names(root)}",
            hint="put BrEaST-Lesions-USG-clinical-data-Dec-15-2023.xlsx from the download into this folder",
        )
    rows = rows_by_image(
        read_table(table, ("image_filename", "classification")),
        "image_filename",
        "classification",
        lambda n: key(stem_of(n)),
    )

    files = image_files(root)
    listed = {key(mask): name for name, row in rows.items() for mask in _listed(row, "mask_tumor_filename")}
    others = {key(mask) for row in rows.values() for mask in _listed(row, "mask_other_filename")}
    images, tumours = [], []
    for path in files:
        named = _MASK_NAME.match(path.stem)
        if key(path.stem) in listed or (named and key(named["kind"]) == "tumor"):
            tumours.append(path)
        elif not named and key(path.stem) not in others:
            images.append(path)

    def owner(stem: str) -> str:
        named = _MASK_NAME.match(stem)
        return listed.get(key(stem)) or (named["image"] + (named["copy"] or "") if named else "")

    found = []
    used = set()
    for pair in pair_masks(images, tumours, mask_owner=owner):
        name = key(original(pair.image_id))
        used.add(name)
        row = rows.get(name)
        label, unknown = _label(row, table.name)
        missing = [
            m
            for m in _listed(row or {}, "mask_tumor_filename")
            if key(m) not in {key(p.stem) for p in pair.masks}
        ]
        problems = pair.problems
        if label == "normal" and not pair.masks:
            problems = tuple(problem for problem in problems if problem.code != "no-mask")
        elif missing:
            problems += (Problem("no-mask", f"mask {missing[0]} is missing"),)
        found.append(
            _record(
                pair.image_id,
                relative(pair.image, root),
                tuple(relative(m, root) for m in pair.masks),
                label,
                row,
                pair.flags,
                problems + unknown,
            )
        )
    for name, row in rows.items():
        if name not in used:
            label, _ = _label(row, table.name)
            found.append(
                _record(
                    stem_of(row["image_filename"]),
                    "",
                    (),
                    label,
                    row,
                    (),
                    (Problem("no-image", f"row in {table.name} without image"),),
                )
            )
    yield from sorted(found, key=lambda r: natural_key(r.image_id))


def _listed(row: dict[str, str], column: str) -> list[str]:
    """Stems of the masks that a cell of the table names; there may be several."""
    return [stem_of(part) for part in re.split(r"[&,;|\n]", row.get(column, "")) if is_yes(part)]


def _label(row: dict[str, str] | None, table: str) -> tuple[str, tuple[Problem, ...]]:
    """The label and no problem, or "" and the problem."""
    if row is None:
        return "", (Problem("unknown-label", f"no row in {table}"),)
    try:
        return parse_label(row["classification"]), ()
    except ValueError:
        return "", (Problem("unknown-label", f"unknown label {row['classification']!r} in {table}"),)


def _record(
    image_id: str,
    image: str,
    masks: tuple[str, ...],
    label: str,
    row: dict[str, str] | None,
    flags: tuple[str, ...],
    problems: tuple[Problem, ...],
) -> Record:
    patient = (row or {}).get("caseid", "") or original(image_id)  # one image per patient
    return Record(
        image_id, image, masks, "binary", label, patient,
        flags=flags, problems=problems, pixel_mm=_pixel_mm((row or {}).get("pixel_size", "")),
    )  # fmt: skip


def _pixel_mm(cell: str) -> str:
    """The table's ``Pixel_size`` in mm; "" where it is none.

    Its unit is not in the table. Only one is possible: as mm a pixel of .02 or more, as cm one of less, since a
    breast image is a few cm deep on some hundred pixels.
    """
    try:
        size = float(cell)
    except ValueError:
        return ""
    for millimetres in (size, 10 * size):
        if is_pixel_mm(str(millimetres)):
            return f"{millimetres:.6g}"
    return ""
