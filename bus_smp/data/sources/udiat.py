"""UDIAT, also "Dataset B": 163 images with a lesion each, benign and malignant, with binary masks.

Two layouts are in use. Original: ``original/000001.png``, ``GT/000001.png`` and ``DatasetB.xlsx`` (or .csv) with
columns ``Image`` and ``Type``. Re-foldered ("DatasetB2"): ``Benign/NAME.png`` with masks in ``all_masks/``, and
``Malignant/NAME.png`` with masks in ``Malignant_mask/``; there the folder is the label.
110 benign and 53 malignant in the paper, 109 and 54 in some copies. No patient ids.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from bus_smp.classes import parse_label
from bus_smp.data.exclusions import Problem
from bus_smp.data.sources import Record
from bus_smp.data.sources._tree import (
    Pair,
    image_files,
    key,
    names,
    natural_key,
    original,
    pair_masks,
    read_table,
    relative,
    rows_by_image,
    stem_of,
    subfolder,
    table_file,
    wrong_folder,
)
from bus_smp.errors import DataError

NAME = "udiat"
TITLE = "UDIAT (Dataset B)"
LAYOUT = "original/, GT/ and DatasetB.xlsx, or Benign/, Malignant/, all_masks/ and Malignant_mask/"
CITE = "Yap et al., Automated breast ultrasound lesions detection using CNNs, IEEE JBHI 22(4), 2018"
LICENCE = "only with a signed release agreement of the authors; may not be passed on"
URL = "http://www2.docm.mmu.ac.uk/STAFF/m.yap/dataset.php"
OFFICIAL_TEST: frozenset[str] = frozenset()


def looks_like(folder: Path) -> bool:
    """True where ``folder`` itself has one of the two layouts."""
    return _is_original(folder) or _is_refoldered(folder)


def _is_original(folder: Path) -> bool:
    return subfolder(folder, "original") is not None and subfolder(folder, "GT") is not None


def _is_refoldered(folder: Path) -> bool:
    classes = subfolder(folder, "Benign", "Malignant")
    return classes is not None and subfolder(folder, "all_masks", "Malignant_mask") is not None


def records(root: Path) -> Iterator[Record]:
    """Yield every image, mask and table row of either layout, in the order of their names.

    Raises:
        DataError: if ``root`` is another folder, or the original layout lacks its table of labels.
    """
    root = Path(root)
    if _is_original(root):
        found = _original(root)
    elif _is_refoldered(root):
        found = _refoldered(root)
    else:
        raise wrong_folder(root, TITLE, LAYOUT, NAME)
    yield from sorted(found, key=lambda r: natural_key(r.image_id))


def _record(
    root: Path, pair: Pair, label: str, image_id: str = "", problems: tuple[Problem, ...] = ()
) -> Record:
    image_id = image_id or pair.image_id
    return Record(
        image_id,
        relative(pair.image, root),
        tuple(relative(m, root) for m in pair.masks),
        "binary",
        label,
        image_id,
        patient_known=False,
        flags=pair.flags,
        problems=(*pair.problems, *problems),
    )


def _number(name: str) -> str:
    """1, "000001" and "000001.png" are the same image; so is a copy of it."""
    stem = key(original(stem_of(name)))
    return stem.lstrip("0") or "0" if stem.isdecimal() else stem


def _mask_owner(stem: str) -> str:
    """A mask bears its image's name, in some copies with "_mask" behind it."""
    return re.sub(r"[_ -](mask|gt)(?=$| ?\()", "", stem, flags=re.IGNORECASE)


def _original(root: Path) -> Iterator[Record]:
    table = _label_table(root)
    rows = rows_by_image(read_table(table, ("image", "type")), "image", "type", _number)
    pairs = pair_masks(
        image_files(subfolder(root, "original")), image_files(subfolder(root, "GT")), mask_owner=_mask_owner
    )
    for pair in pairs:
        row = rows.get(_number(pair.image_id))
        word = row["type"] if row else ""
        problems: tuple[Problem, ...] = ()
        try:
            label = parse_label(word)
        except ValueError:
            label = ""
            words = f"unknown label {word!r} in {table.name}" if row else f"no row in {table.name}"
            problems = (Problem("unknown-label", words),)
        yield _record(root, pair, label, problems=problems)
    with_image = {_number(pair.image_id) for pair in pairs}
    for number, row in rows.items():
        if number not in with_image:
            try:
                label = parse_label(row["type"])
            except ValueError:
                label = ""
            problem = Problem("no-image", f"row in {table.name} without image")
            yield _record(root, Pair(stem_of(row["image"]), None, [], (), (problem,)), label)


def _label_table(root: Path) -> Path:
    table = table_file([root, root.absolute().parent], "DatasetB", prefix=True)
    if table is not None:
        return table
    raise DataError(
        f"{root}: DatasetB.xlsx is missing, so which lesions are benign or malignant is unknown; "
        f"found {names(root)}",
        hint="put DatasetB.xlsx (or DatasetB.csv with the columns Image,Type) from the download next to original/ and GT/",
    )


def _refoldered(root: Path) -> Iterator[Record]:
    images = {label: image_files(subfolder(root, label)) for label in ("benign", "malignant")}
    all_masks = image_files(subfolder(root, "all_masks", "Benign_mask"))
    masks = {"benign": all_masks, "malignant": image_files(subfolder(root, "Malignant_mask"))}

    def owner(path: Path) -> str:
        return key(original(_mask_owner(path.stem)))

    # In some copies all_masks/ really holds all: what belongs only to malignant images goes to
    # them where Malignant_mask/ lacks it, and is the same mask a second time where it does not.
    ids = {label: {key(original(p.stem)) for p in paths} for label, paths in images.items()}
    lacking = ids["malignant"] - ids["benign"] - {owner(p) for p in masks["malignant"]}
    masks["benign"] = [p for p in all_masks if owner(p) not in ids["malignant"] - ids["benign"]]
    masks["malignant"] = masks["malignant"] + [p for p in all_masks if owner(p) in lacking]

    # numbers start again in each folder, so the folder makes the id unique
    both = ids["benign"] & ids["malignant"]
    for label in ("benign", "malignant"):
        for pair in pair_masks(images[label], masks[label], mask_owner=_mask_owner):
            clash = key(original(pair.image_id)) in both
            yield _record(root, pair, label, f"{label} {pair.image_id}" if clash else "")
