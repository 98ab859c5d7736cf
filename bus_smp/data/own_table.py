"""A user's own table: which image has which masks, label and patient. Its rows become records like those of any data set."""

import difflib
import os
import re
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from bus_smp.classes import parse_label
from bus_smp.data.audit import AuditedFolder, Progress, audit_folder, no_progress
from bus_smp.data.images import MASK_FORMATS
from bus_smp.data.manifest import record_root
from bus_smp.data.manifest_checks import LEAST_PIXEL_MM, MOST_PIXEL_MM, is_pixel_mm
from bus_smp.data.sources import Record
from bus_smp.data.sources._tree import natural_key, read_table
from bus_smp.errors import DataError, ManifestError

REQUIRED = ("image", "masks", "label", "patient_id")
OPTIONAL = ("split", "mask_format", "dataset", "image_id", "flags", "pixel_mm")
_LISTED = 20


def audit_own_table(
    path: Path,
    root: Path | None,
    name: str | None,
    out: Path,
    progress: Progress = no_progress,
) -> list[AuditedFolder]:
    """Read the table and audit the images of each data set in it; arguments as in ``read_own_table``.

    Args:
        out: folder of the manifests, which must be able to record the images' folder.

    Raises:
        ManifestError: if the name of the images' folder is not UTF-8; and as ``read_own_table`` does.
    """
    records = read_own_table(path, root, name)
    folder = _image_folder(path, root)
    record_root(folder, out)
    return [
        audit_folder(
            dataset, own, folder, progress,
            split_given=all(record.official_split for record in own),
            about={"name": dataset, "title": dataset},
        )
        for dataset, own in records.items()
    ]  # fmt: skip


def _image_folder(path: Path, root: Path | None) -> Path:
    return Path(root) if root is not None else Path(path).parent


def read_own_table(path: Path, root: Path | None = None, name: str | None = None) -> dict[str, list[Record]]:
    """Read a user's own table, CSV or XLSX.

    Columns ``image, masks, label, patient_id``, and if wanted ``split, mask_format, dataset,
    image_id, flags, pixel_mm``. Several masks or flags are joined by ``|``. An empty patient id makes the
    image a patient of its own, not known. Without ``image_id`` it is the file's name without
    suffix, or the path where names repeat. An empty ``mask_format`` is left to the audit. Patient ids stay as
    they are written; those that differ only in spelling get one ``normalised_id``. The split that the table
    gives becomes ``official_split``; either all rows have one or none.

    Args:
        root: folder that paths start from; default the table's own folder.
        name: of the data set where the table has no ``dataset``; default the table's file name.

    Returns:
        data set -> its records in natural order of their ids; data sets sorted by name.

    Raises:
        DataError: if the file is no table with these columns.
        ManifestError: with all faults of the rows at once.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such table", hint=f"give a CSV with the columns {', '.join(REQUIRED)}")
    root = _image_folder(path, root)
    if not root.is_dir():
        raise DataError(
            f"{root}: no such folder", hint="name the folder that the table's paths start from: --root"
        )
    cells = read_table(path, REQUIRED, "add the missing columns to the header; cells may stay empty")
    if not cells:
        raise DataError(
            f"{path}: the table has no rows", hint=f"fill in {', '.join(REQUIRED)}, one row per image"
        )
    name = name or re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).strip("-._") or "own"
    faults: list[str] = []
    rows = [_read_row(number, row, root, name, faults) for number, row in enumerate(cells, start=2)]
    _name_images(rows)
    _refuse_repeated(rows, faults)
    _refuse_half_split(rows, faults)
    if faults:
        more = f"\n  and {len(faults) - _LISTED} more" if len(faults) > _LISTED else ""
        listed = [f"{fault[:300]} ..." if len(fault) > 300 else fault for fault in faults[:_LISTED]]
        raise ManifestError(
            f"{path}: {len(faults)} faults\n  " + "\n  ".join(listed) + more,
            hint=f"correct them and run the same command again (paths start from {root}; --root names another folder)",
        )
    found = {}
    for dataset in sorted({row["dataset"] for row in rows}):
        records = [
            replace(
                row["record"],
                image_id=row["image_id"],
                patient_id=row["record"].patient_id or row["image_id"],
            )
            for row in rows
            if row["dataset"] == dataset
        ]
        found[dataset] = sorted(records, key=lambda record: natural_key(record.image_id))
    return found


def _read_row(number: int, row: dict[str, str], root: Path, name: str, faults: list[str]) -> dict:
    """One row's checked cells, and ``record``, whose image id and missing patient id are filled in last."""

    def one_of(column: str, allowed: tuple[str, ...]) -> str:
        value = row.get(column, "").lower()
        if value and value not in allowed:
            near = difflib.get_close_matches(value, allowed, 1)
            expected = f"did you mean {near[0]}?" if near else f"use one of {', '.join(allowed)}"
            faults.append(f"row {number}: {column} {row[column]!r} is unknown; {expected}")
        return value

    def relative(text: str) -> str:
        try:
            return _below(root, text)
        except ValueError as error:
            faults.append(f"row {number}: {error}")
            return text

    image, label = row.get("image", ""), ""
    if image:
        image = relative(image)
    else:
        faults.append(f"row {number}: image is empty")
    masks = tuple(relative(part.strip()) for part in row.get("masks", "").split("|") if part.strip())
    try:
        label = parse_label(row.get("label", ""))
    except ValueError as error:
        faults.append(f"row {number}: {error}")
    patient = row.get("patient_id", "")
    split = one_of("split", ("train", "val", "test"))
    mask_format = one_of("mask_format", MASK_FORMATS)
    flags = tuple(dict.fromkeys(flag.strip() for flag in row.get("flags", "").split("|") if flag.strip()))
    pixel_mm = row.get("pixel_mm", "")
    if pixel_mm and not is_pixel_mm(pixel_mm):
        faults.append(
            f"row {number}: pixel_mm {pixel_mm!r} is no side of a pixel in mm ({LEAST_PIXEL_MM:g} to {MOST_PIXEL_MM:g})"
        )
    dataset = row.get("dataset", "") or name
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", dataset):
        faults.append(f"row {number}: dataset {dataset!r} is no name; use letters, digits, . _ -")

    record = Record(
        "", image, masks, mask_format, label, patient, patient_known=bool(patient), flags=flags,
        official_split=split, pixel_mm=pixel_mm, normalised_id=_normalise_id(patient),
    )  # fmt: skip
    return {
        "number": number, "dataset": dataset, "image": image, "image_id": row.get("image_id", ""),
        "split": split, "record": record,
    }  # fmt: skip


def _normalise_id(patient_id: str) -> str:
    """A patient's id without differences in spelling; "" for no id.

    P01, p1, "P 01" and P-1 become one, and so do 007, 7 and 7.0, which Excel makes of each other. A sign between
    two numbers stays, so that 1-12 and 11-2 are two.
    """
    text = unicodedata.normalize("NFKC", patient_id).casefold()
    text = re.sub(r"^(\d+)[.,]0+$", r"\1", text.strip())
    parts = re.findall(r"\d+|[^\W\d_]+|[^\w\s\u200b\ufeff\u2010-\u2015\u2212-]", text)
    parts = [part.lstrip("0") or "0" if part.isdecimal() else part for part in parts]
    # A space counts between two numbers only.
    return re.sub(r"(?<!\d) | (?!\d)", "", " ".join(parts)) or patient_id


def _below(root: Path, text: str) -> str:
    """``text`` as a posix path below ``root``; ValueError if it is elsewhere or there is no such file."""
    path = Path(os.path.normpath(text.replace("\\", "/")))
    if path.is_absolute():
        for base in (Path(os.path.normpath(root.absolute())), root.resolve()):
            if path.is_relative_to(base):
                path = path.relative_to(base)
                break
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"{text} lies outside {root}")
    if not os.path.isfile(root / path):  # noqa: PTH113 - Path.is_file raises on too long a name
        raise ValueError(f"no file {root / path}")
    return path.as_posix()


def _name_images(rows: list[dict]) -> None:
    """The shortest kind of name that is unique in its data set: file name, path, path with suffix."""
    kinds: tuple[Callable[[Path], str], ...] = (
        lambda p: p.stem,
        lambda p: p.as_posix().removesuffix(p.suffix),
        lambda p: p.as_posix(),
    )
    for dataset in {row["dataset"] for row in rows}:
        unnamed = [row for row in rows if row["dataset"] == dataset and row["image"] and not row["image_id"]]
        taken = {row["image_id"] for row in rows if row["dataset"] == dataset}
        images = {row["image"] for row in unnamed}
        for kind in kinds:
            names = {image: kind(Path(image)) for image in images}
            if len(set(names.values()) - taken) == len(images):
                break
        for row in unnamed:
            row["image_id"] = names[row["image"]]


def _refuse_repeated(rows: list[dict], faults: list[str]) -> None:
    for column in ("image", "image_id"):
        first: dict[tuple[str, str], int] = {}
        for row in rows:
            earlier = first.setdefault((row["dataset"], row[column]), row["number"])
            if row[column] and earlier != row["number"]:
                faults.append(f"row {row['number']}: {column} {row[column]!r} stands in row {earlier} too")
        if faults:
            # the same image twice has the same id twice: one fault
            return


def _refuse_half_split(rows: list[dict], faults: list[str]) -> None:
    empty = [row["number"] for row in rows if not row["split"]]
    if empty and len(empty) < len(rows):
        listed = ", ".join(map(str, empty[:10])) + (", ..." if len(empty) > 10 else "")
        faults.append(f"split is empty in rows {listed}, but given in others; give all or none")
