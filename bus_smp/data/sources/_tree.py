"""Reading raw trees as people really have them: any case, OS litter, copies, tables from Excel."""

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bus_smp.data.exclusions import Problem
from bus_smp.data.images import IMAGE_SUFFIXES
from bus_smp.data.tables import WORKBOOKS, read_sheets
from bus_smp.errors import DataError

LITTER = {"thumbs.db", "desktop.ini", "__macosx"}
_COPY = re.compile(r"(?: ?\(\d+\)| - copy(?: \(\d+\))?)$", re.IGNORECASE)
_NO = {"", "no", "n", "false", "0", "-", "none", "na", "n/a", "nan"}


def key(name: str) -> str:
    """Names equal on one operating system or another: case and Unicode composition do not count."""
    return unicodedata.normalize("NFC", name.strip()).casefold()


def natural_key(name: str) -> tuple:
    """Sort key under which "benign (2)" comes before "benign (10)", on every file system."""
    parts = re.split(r"([0-9]+)", key(name))
    return tuple((int(p), p) if i % 2 else (0, p) for i, p in enumerate(parts)), name


def entries(folder: Path) -> list[Path]:
    """The folder's entries in natural order, without hidden files and OS litter; [] if unreadable."""
    try:
        found = [p for p in folder.iterdir() if not p.name.startswith(".") and key(p.name) not in LITTER]
    except OSError:
        return []
    return sorted(found, key=lambda p: natural_key(p.name))


def names(folder: Path, most: int = 6) -> str:
    """The first few entries, for error messages."""
    found = [p.name + ("/" if p.is_dir() else "") for p in entries(folder)]
    rest = f", ... ({len(found)} entries)" if len(found) > most else ""
    return (", ".join(found[:most]) + rest) or "nothing"


def subfolder(folder: Path, *wanted: str) -> Path | None:
    """The subfolder of one of these names, whatever its case; the first name found wins."""
    found = {key(p.name): p for p in reversed(entries(folder)) if p.is_dir()}
    return next((found[key(name)] for name in wanted if key(name) in found), None)


def image_files(folder: Path | None) -> list[Path]:
    """Files with an image's suffix, in natural order; [] for None.

    Broken links, pipes and the like are listed too: reading them fails with the reason, so none is lost silently.
    """
    if folder is None:
        return []
    return [p for p in entries(folder) if p.suffix.lower() in IMAGE_SUFFIXES and not p.is_dir()]


def table_file(folders: Sequence[Path], stem: str, prefix: bool = False) -> Path | None:
    """The first .xlsx or .csv file called ``stem`` (copies and any case too) in these folders."""
    for folder in folders:
        # The original before its copies.
        for path in sorted(entries(folder), key=lambda p: p.stem != original(p.stem)):
            name = key(original(path.stem))
            fits = name.startswith(key(stem)) if prefix else name == key(stem)
            if fits and path.suffix.lower() in (*WORKBOOKS, ".csv"):
                return path
    return None


def stem_of(name: str) -> str:
    """A file name in a table without folder and image suffix."""
    name = unicodedata.normalize("NFC", name.strip()).replace("\\", "/").rpartition("/")[2]
    suffix = next((s for s in IMAGE_SUFFIXES if name.lower().endswith(s)), "")
    return name[: len(name) - len(suffix)].strip()


def original(stem: str) -> str:
    """The name without a copy's mark: "SIBA_001 (1)" -> "SIBA_001"."""
    return _COPY.sub("", unicodedata.normalize("NFC", stem))


def is_yes(value: str) -> bool:
    """Yes, Y, true, 1, ...: everything that does not say no, so that a stray value is flagged."""
    return key(value) not in _NO


def wrong_folder(folder: Path, title: str, layout: str, name: str) -> DataError:
    """The error for a folder that is not the data set."""
    return DataError(
        f"{folder}: is not the {title} folder; expected {layout}; found {names(folder)}",
        hint=f"name the right one: bus-smp make-manifest --dataset {name} --root DIR",
    )


def rows_by_image(
    rows: Sequence[dict[str, str]], column: str, label: str, name: Callable[[str], str]
) -> dict[str, dict[str, str]]:
    """A table's rows by the image that ``column`` names, under ``name`` of it; rows that name none are left out.

    Of several rows for one image the first counts; where they disagree on the column ``label``, it
    holds both words, which no reader takes for a label.
    """
    found: dict[str, dict[str, str]] = {}
    for row in rows:
        row = {**row, column: row.get(column, ""), label: row.get(label, "")}
        if row[column]:
            first = found.setdefault(name(row[column]), row)
            if key(first[label]) != key(row[label]):
                first[label] = f"{first[label]} / {row[label]}"
    return found


def read_table(
    path: Path, columns: Sequence[str], remedy: str = "restore the table as it was downloaded"
) -> list[dict[str, str]]:
    """Read a .csv or .xlsx table.

    CSV may have a BOM, any line ends, and ";", "," or tab between cells. Lines above the header
    are skipped. Column names are lower-cased and stripped, cells are stripped text; whole numbers
    have no ".0".

    Args:
        columns: lower-case names that must be there.
        remedy: what to do where they are not.

    Raises:
        DataError: if the file cannot be read or has no such columns.
    """
    sheets = read_sheets(path)
    for rows in sheets:
        for start, (_, header) in enumerate(rows[:20]):
            found = [key(cell) for cell in header]
            if all(column in found for column in columns):
                return [dict(reversed(list(zip(found, row, strict=False)))) for _, row in rows[start + 1 :]]
    first = max((rows[0][1] for rows in sheets if rows), key=len, default=[])
    raise DataError(
        f"{path}: expected the columns {', '.join(columns)}; found {', '.join(first[:12]) or 'an empty table'}",
        hint=remedy,
    )


@dataclass
class Pair:
    """An image with the masks that belong to it by name; ``image`` None for masks without image."""

    image_id: str
    image: Path | None
    masks: list[Path]
    flags: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()


def pair_masks(
    images: Sequence[Path],
    masks: Sequence[Path],
    image_name: Callable[[str], str] = original,
    mask_owner: Callable[[str], str] = lambda stem: stem,
) -> list[Pair]:
    """Pair image and mask files by name; every file given ends up in exactly one pair.

    A copy next to its original gets the problem ``copy``; a copy without its original is used under the
    original's name. The same holds for masks.

    Args:
        image_name: an image's stem without a copy's mark.
        mask_owner: a mask's stem -> the stem of its image, copy's mark kept.
    """
    groups: dict[str, list[Path]] = {}
    for path in images:
        groups.setdefault(key(image_name(path.stem)), []).append(path)
    owned: dict[str, list[Path]] = {}
    for path in masks:
        owned.setdefault(key(mask_owner(path.stem)), []).append(path)

    pairs: dict[str, Pair] = {}
    for name, files in groups.items():
        # The original first; .png before other suffixes.
        files.sort(
            key=lambda p: (key(p.stem) != name, IMAGE_SUFFIXES.index(p.suffix.lower()), natural_key(p.name))
        )
        main, *copies = files
        own = owned.pop(name, None) or owned.pop(key(main.stem), [])
        flags = () if key(main.stem) == name else ("copy",)
        pairs[name] = Pair(image_name(main.stem), main, own, flags)
        for copy in copies:
            copy_id = key(copy.stem) if key(copy.stem) not in pairs else key(copy.name)
            pairs[copy_id] = Pair(
                unicodedata.normalize("NFC", copy.stem if copy_id == key(copy.stem) else copy.name),
                copy,
                owned.pop(key(copy.stem), []),
                ("copy",),
                (Problem("copy", f"copy of {main.name}"),),
            )
    for owner, files in owned.items():
        pair = pairs.get(key(image_name(owner)))
        if pair is None:
            stem = unicodedata.normalize("NFC", mask_owner(files[0].stem))
            pairs[owner] = Pair(stem, None, files, (), (Problem("no-image", "mask without image"),))
        elif not pair.masks:
            pair.masks = files
        else:
            stem = unicodedata.normalize("NFC", mask_owner(files[0].stem))
            pairs[owner] = Pair(
                stem, None, files, ("copy",), (Problem("copy", f"copy of mask {pair.masks[0].name}"),)
            )
    for pair in pairs.values():
        pair.image_id = pair.image_id.strip()  # as ``key`` compares them
        if not pair.masks and not pair.problems:
            pair.problems = (Problem("no-mask"),)
    return sorted(pairs.values(), key=lambda p: natural_key(p.image_id))


def relative(path: Path | None, root: Path) -> str:
    """Posix path below ``root``; "" for None."""
    return "" if path is None else path.relative_to(root).as_posix()
