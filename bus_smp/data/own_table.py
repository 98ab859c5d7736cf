"""A user's own table: which image has which masks, label and patient. Its rows become records like those of any data set."""

import difflib
import os
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from bus_smp.classes import parse_label
from bus_smp.data.audit import AuditedFolder, Progress, audit_folder, no_progress
from bus_smp.data.dicom import split_address
from bus_smp.data.images import IMAGE_SUFFIXES, MASK_FORMATS
from bus_smp.data.limits import LEAST_PIXEL_MM, MOST_PIXEL_MM, is_pixel_mm
from bus_smp.data.manifest import record_root
from bus_smp.data.mask_doubts import NO_ANSWERS, MaskAnswers
from bus_smp.data.sources import Record
from bus_smp.data.sources._tree import key, natural_key, stem_of
from bus_smp.data.splits import parse_split
from bus_smp.data.tables import read_sheets
from bus_smp.errors import DataError, ManifestError
from bus_smp.text import counted, restored

REQUIRED = ("image", "masks", "label", "patient_id")
OPTIONAL = ("split", "mask_format", "dataset", "image_id", "flags", "pixel_mm")
_LISTED = 20

# What stands in the cell for masks of an image without lesion.
_NOTHING = {"", "-", "na", "n/a", "nan", "none"}
# Files among which the one that a wrong path means is looked for.
_MOST_FILES = 20_000

# What people call these columns, apart from capitals, spaces and signs. Others are named with --columns.
_USUAL = {
    "image": ("images", "image_file", "image_path", "image_name", "image_filename", "filename", "file"),
    "masks": ("mask", "mask_file", "mask_path", "mask_name", "mask_filename", "segmentation"),
    "label": ("labels", "class", "diagnosis", "pathology"),
    "patient_id": ("patient", "patient_no", "patient_number", "patient_name", "patient_code", "pid", "case", "case_id", "subject", "subject_id"),
    "split": ("subset",),
}  # fmt: skip


@dataclass(frozen=True)
class Words:
    """A table's own words. columns: name used here -> the table's, "" for none. labels: word -> label."""

    columns: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)


def audit_own_table(
    path: Path,
    root: Path | None,
    name: str | None,
    out: Path,
    progress: Progress = no_progress,
    announce: Callable[[str], object] = lambda text: None,
    words: Words | None = None,
    answers: MaskAnswers = NO_ANSWERS,
) -> list[AuditedFolder]:
    """Read the table and audit the images of each data set in it; further arguments as in ``read_own_table``.

    Args:
        out: folder of the manifests, which must be able to record the images' folder.
        answers: what the user says about masks in doubt.

    Raises:
        ManifestError: if the name of the images' folder is not UTF-8; and as ``read_own_table`` does.
    """
    records = read_own_table(path, root, name, words, announce)
    folder = _image_folder(path, root)
    record_root(folder, out)
    return [
        audit_folder(
            dataset, own, folder, progress, answers,
            split_given="the table gives" if all(record.split for record in own) else "",
            about={"name": dataset, "title": dataset},
        )
        for dataset, own in records.items()
    ]  # fmt: skip


def _image_folder(path: Path, root: Path | None) -> Path:
    return Path(root) if root is not None else Path(path).parent


def read_own_table(
    path: Path,
    root: Path | None = None,
    name: str | None = None,
    words: Words | None = None,
    announce: Callable[[str], object] = lambda text: None,
) -> dict[str, list[Record]]:
    """Read a user's own table, CSV or XLSX.

    Columns ``image, masks, label, patient_id``, and if wanted ``split, mask_format, dataset,
    image_id, flags, pixel_mm``; capitals, spaces and signs in their names do not count. Several masks or flags are
    joined by ``|``; rows of one image with other masks (one row per lesion) are joined too. An empty patient id makes
    the image a patient of its own, not known. A frame of a DICOM clip is an image ``clip.dcm#12``. Without
    ``image_id`` it is the file's name without suffix, or the path where names repeat. An empty ``mask_format`` is left
    to the audit. Patient ids stay as they are written; those that differ only in spelling get one ``normalised_id``. Either all rows have a split or none.

    Args:
        root: folder that paths start from; default the table's own folder.
        name: of the data set where the table has no ``dataset``; default the table's file name.
        announce: called with a line about what was read otherwise than it is written.

    Returns:
        data set -> its records in natural order of their ids; data sets sorted by name.

    Raises:
        DataError: if the file is no table with these columns.
        ManifestError: with all faults of the rows at once.
    """
    path, words = Path(path), words or Words()
    if not path.is_file():
        raise DataError(f"{path}: no such table", hint=f"give a CSV with the columns {', '.join(REQUIRED)}")
    root = _image_folder(path, root)
    if not root.is_dir():
        raise DataError(
            f"{root}: no such folder", hint="name the folder that the table's paths start from: --root"
        )
    cells = _find_columns(path, words.columns, announce)
    if not cells:
        raise DataError(
            f"{path}: the table has no rows", hint=f"fill in {', '.join(REQUIRED)}, one row per image"
        )
    name = name or dataset_name(path.stem)
    faults = _Faults()
    rows = [_read_row(number, row, root, name, words.labels, faults) for number, row in cells]
    rows = _join_lesions(rows, faults, announce)
    _name_images(rows)
    _refuse_repeated(rows, faults)
    _refuse_half_split(rows, faults)
    unknown = [row for row in rows if not row["record"].patient_id]
    if 0 < len(unknown) < len(rows):
        announce(
            f"patient_id is empty for {counted(len(unknown), 'image')} of {len(rows)}, first row {unknown[0]['number']}: each "
            "counts as a patient of its own; where cells were merged, fill them down"
        )
    if listed := faults.listed():
        more = f"\n  and {len(listed) - _LISTED} more" if len(listed) > _LISTED else ""
        shown = [f"{fault[:300]} ..." if len(fault) > 300 else fault for fault in listed[:_LISTED]]
        raise ManifestError(
            f"{path}: {counted(len(listed), 'fault')}\n  " + "\n  ".join(shown) + more,
            hint="correct the table and run the same command again "
            f"(paths start from {root}; --root names another folder{_meant(rows, root)})",
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


def _meant(rows: Sequence[dict], root: Path) -> str:
    """Words for where below ``root`` the first image lies that is not where the table says; "" for nowhere."""
    absent = next((row["image"] for row in rows if row["image"] and not _is_file(root / row["image"])), "")
    files = (path for path in islice(root.rglob("*"), _MOST_FILES) if path.suffix.lower() in IMAGE_SUFFIXES)
    found = min(
        (p.relative_to(root).as_posix() for p in files if key(p.stem) == key(stem_of(absent))), default=""
    )
    return f"; there is {found}" if absent and found else ""


def dataset_name(text: str) -> str:
    """``text`` as the name of a data set: letters, digits and . _ - only."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._") or "own"


class _Faults:
    """What is wrong with rows; faults of one kind in many rows are one line."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str, str], list[tuple[int, str]]] = {}

    def add(self, row: int, column: str, words: str, kind: str = "") -> None:
        """``words`` says what is wrong in this row; ``kind`` (default: the words) tells faults of a column apart."""
        self._rows.setdefault((column, kind or words), []).append((row, words))

    def listed(self) -> list[str]:
        """One line for each kind of fault, in the order in which they were found."""
        return [
            f"row {rows[0][0]}: {rows[0][1]}"
            if len(rows) == 1
            else f"{column}, {len(rows)} rows, first row {rows[0][0]}: {rows[0][1]}"
            for (column, _), rows in self._rows.items()
        ]


def _find_columns(
    path: Path, columns: Mapping[str, str], announce: Callable[[str], object]
) -> list[tuple[int, dict[str, str]]]:
    """The rows below the first header that has all columns: row number, and cells by the names used here."""
    best: list[str] = []
    for rows in read_sheets(path):
        for start, (_, header) in enumerate(rows[:20]):
            names = _match_header(header, columns)
            absent = [column for column, theirs in columns.items() if not theirs]
            if not set(REQUIRED) <= {*names, *absent}:
                best = max(best, [cell for cell in header if cell], key=len)
                continue
            other = [f"{c}={header[i]}" for c, i in names.items() if _squeezed(header[i]) != _squeezed(c)]
            if unsaid := [pair for pair in other if pair.partition("=")[0] not in columns]:
                announce(f"{path.name}: columns taken as {', '.join(unsaid)} (others: --columns)")
            return [
                (number, {column: restored(row[i]) if i < len(row) else "" for column, i in names.items()})
                for number, row in rows[start + 1 :]
            ]
    missing = [column for column in REQUIRED if column not in _match_header(best, columns)]
    raise DataError(
        f"{path}: expected the columns {', '.join(REQUIRED)}; found {', '.join(best[:12]) or 'an empty table'}",
        hint=f"name yours: --columns {','.join(f'{column}=NAME' for column in missing)} "
        "(nothing after = where there is none), or add them to the header; cells may stay empty",
    )


def _match_header(header: Sequence[str], columns: Mapping[str, str]) -> dict[str, int]:
    """Column -> its place in the header: as the user names it, else by its own name, else by a usual word."""
    squeezed = [_squeezed(cell) for cell in header]
    found = {}
    for column in (*REQUIRED, *OPTIONAL):
        wanted = [columns[column]] if column in columns else [column, *_USUAL.get(column, ())]
        places = [squeezed.index(_squeezed(word)) for word in wanted if word and _squeezed(word) in squeezed]
        if places:
            found[column] = places[0]
    return found


def _squeezed(name: str) -> str:
    """A column's name without what spellings differ in: "Patient ID" and "patient_id" are one."""
    return re.sub(r"[\W_]+", "", key(name))


def _read_row(
    number: int, row: dict[str, str], root: Path, name: str, labels: Mapping[str, str], faults: _Faults
) -> dict:
    """One row's checked cells, and ``record``, whose image id and missing patient id are filled in last."""

    def relative(column: str, text: str) -> str:
        try:
            return _below(root, text, address=column == "image")
        except ValueError as error:
            faults.add(number, column, str(error), "outside" if "lies outside" in str(error) else "no file")
            return text

    image, masks = row.get("image", ""), row.get("masks", "")
    if image:
        image = relative("image", image)
    else:
        faults.add(number, "image", "image is empty")
    # A name may hold a comma or semicolon, but mostly they stand between names.
    parts = [masks] if masks and _is_file(root / masks.replace("\\", "/")) else re.split(r"[|;,\n]", masks)
    mask_paths = tuple(relative("masks", part.strip()) for part in parts if key(part) not in _NOTHING)
    word = row.get("label", "")
    label = split = ""
    try:
        label = parse_label(labels.get(key(word), word))
    except ValueError:
        words = f"unknown label {word!r}; use normal, benign or malignant, or say which it is: "
        words += f'--labels "{word}=..."'
        words = words if word else "label is empty; write normal, benign or malignant"
        faults.add(number, "label", words)
    patient = row.get("patient_id", "")
    if row.get("split"):
        try:
            split = parse_split(row["split"])
        except ValueError as error:
            faults.add(number, "split", str(error))
    mask_format = row.get("mask_format", "").lower()
    if mask_format and mask_format not in MASK_FORMATS:
        near = difflib.get_close_matches(mask_format, MASK_FORMATS, 1)
        expected = f"did you mean {near[0]}?" if near else f"use one of {', '.join(MASK_FORMATS)}"
        faults.add(number, "mask_format", f"mask_format {mask_format!r} is unknown; {expected}")
    flags = tuple(dict.fromkeys(flag.strip() for flag in row.get("flags", "").split("|") if flag.strip()))
    # A decimal comma, as Excel writes it in many countries.
    pixel_mm = re.sub(r"^(\d*),(\d+)$", r"\1.\2", row.get("pixel_mm", ""))
    if pixel_mm and not is_pixel_mm(pixel_mm):
        words = f"pixel_mm {pixel_mm!r} is no side of a pixel in mm; write a number from {LEAST_PIXEL_MM:g} to {MOST_PIXEL_MM:g}"
        faults.add(number, "pixel_mm", words, "size")
    dataset = row.get("dataset", "") or name
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", dataset):
        faults.add(number, "dataset", f"dataset {dataset!r} is no name; use letters, digits, . _ -")

    record = Record(
        "", image, mask_paths, mask_format, label, patient, patient_known=bool(patient), flags=flags,
        split=split, pixel_mm=pixel_mm, normalised_id=_normalise_id(patient),
    )  # fmt: skip
    return {
        "number": number, "dataset": dataset, "image": image, "image_id": row.get("image_id", ""), "record": record,
    }  # fmt: skip


def _join_lesions(rows: list[dict], faults: _Faults, announce: Callable[[str], object]) -> list[dict]:
    """One row per image: rows of one image that differ in their masks are its lesions."""
    first: dict[tuple[str, str], dict] = {}
    joined, kept = set(), []
    for row in rows:
        earlier = first.setdefault((row["dataset"], row["image"]), row)
        record, before = row["record"], earlier["record"]
        if earlier is row or not row["image"] or not set(record.masks) - set(before.masks):
            kept.append(row)
            continue
        joined.add((row["dataset"], row["image"]))
        for column in ("label", "patient_id", "split"):
            one, other = getattr(before, column), getattr(record, column)
            if one != other:
                words = f"image {row['image']!r} has {column} {one!r} in row {earlier['number']} and {other!r} here"
                remedy = "give each image one" if column != "label" else (
                    "give each image one, or draw lesions of both classes in one colour mask (green benign, red malignant)"
                )  # fmt: skip
                faults.add(row["number"], column, f"{words}; {remedy}", "several")
        masks = (*before.masks, *(mask for mask in record.masks if mask not in before.masks))
        earlier["record"] = replace(before, masks=masks)
    if joined:
        announce(f"{counted(len(joined), 'image')} with one row per lesion: the masks are joined")
    return kept


def _normalise_id(patient_id: str) -> str:
    """A patient's id without differences in spelling; "" for no id.

    P01, p1, "P 01" and P-1 become one, and so do 007, 7 and 7.0, and 1200 and 1.200, which Excel makes of each other. A sign between
    two numbers stays, so that 1-12 and 11-2 are two.
    """
    text = unicodedata.normalize("NFKC", patient_id).casefold()
    text = re.sub(r"^(\d+)[.,]0+$", r"\1", text.strip())
    text = re.sub(r"^(\d{1,3})[.,](\d{3})$", r"\1\2", text)
    parts = re.findall(r"\d+|[^\W\d_]+|[^\w\s\u200b\ufeff\u2010-\u2015\u2212-]", text)
    parts = [part.lstrip("0") or "0" if part.isdecimal() else part for part in parts]
    # A space counts between two numbers only.
    return re.sub(r"(?<!\d) | (?!\d)", "", " ".join(parts)) or patient_id


def _below(root: Path, text: str, address: bool = False) -> str:
    """``text`` as a posix path below ``root``; ValueError if it is elsewhere or there is no such file.

    ``address``: it may name a frame of a DICOM file.
    """
    path = Path(os.path.normpath(text.replace("\\", "/")))
    if path.is_absolute():
        for base in (Path(os.path.normpath(root.absolute())), root.resolve()):
            if path.is_relative_to(base):
                path = path.relative_to(base)
                break
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"{text} lies outside {root}")
    if not _is_file(split_address(root / path)[0] if address else root / path):
        lost = "?" in text
        why = "; Excel wrote ? for letters: save the table as 'CSV UTF-8' or .xlsx" if lost else ""
        raise ValueError(f"no file {root / path}{why}")
    return path.as_posix()


def _is_file(path: Path) -> bool:
    return os.path.isfile(path)  # noqa: PTH113 - Path.is_file raises on too long a name


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


def _refuse_repeated(rows: list[dict], faults: _Faults) -> None:
    for column in ("image", "image_id"):
        first: dict[tuple[str, str], int] = {}
        for row in rows:
            earlier = first.setdefault((row["dataset"], row[column]), row["number"])
            if row[column] and earlier != row["number"]:
                words = f"{column} {row[column]!r} stands in row {earlier} too"
                faults.add(row["number"], column, words, "repeated")
        if faults.listed():
            # the same image twice has the same id twice: one fault
            return


def _refuse_half_split(rows: list[dict], faults: _Faults) -> None:
    empty = [row["number"] for row in rows if not row["record"].split]
    if len(empty) < len(rows):
        for number in empty:
            faults.add(number, "split", "split is empty, but given in other rows; give all or none")
