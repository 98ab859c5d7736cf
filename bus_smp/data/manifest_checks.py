"""What a manifest must be: its columns, its cells as text, and the proof that no split leaks."""

import re
from collections.abc import Callable, Collection, Iterable
from functools import cached_property

import numpy as np
import pandas as pd

from bus_smp.classes import LABELS
from bus_smp.data.images import MASK_FORMATS
from bus_smp.data.splits import SPLITS

COLUMNS = (
    "dataset", "image_id", "patient_id", "patient_known", "group_id", "label", "split", "fold", "image",
    "masks", "mask_format", "width", "height", "sha256", "phash", "flags", "excluded",
)  # fmt: skip

# The side of a pixel in mm that breast ultrasound can have. Only a manifest that knows it has the column pixel_mm.
LEAST_PIXEL_MM, MOST_PIXEL_MM = 0.02, 0.5

# A path that could leave its root: absolute (POSIX, drive, UNC), with a backslash, or with a part "..".
CLIMBING = r"^/|^[A-Za-z]:|\\|(?:^|/)\.\.(?:/|$)"
CONTROL = r"[\x00-\x1f\x7f]"

_IDS = ("dataset", "image_id", "patient_id", "group_id")
_HASHES = ("sha256", "phash")


def as_text(frame: pd.DataFrame) -> pd.DataFrame:
    """The cells as they stand in the CSV; missing values become empty, 224.0 becomes 224.

    Checking, hashing and writing all start from this one text. Its dtype is object: plain Python
    strings, which for 100,000 rows are several times faster to check than pandas' ``str``.
    """
    return pd.DataFrame({column: pd.Series(_texts(frame[column]), dtype=object) for column in frame.columns})


def _texts(cells: pd.Series) -> np.ndarray | list[str]:
    if isinstance(cells.dtype, pd.StringDtype):
        return cells.to_numpy(dtype=object, na_value="")
    if cells.dtype != object:  # numbers: few different ones, each written once
        codes, values = pd.factorize(cells)
        return np.array([*map(_cell_text, values.astype(object)), ""], dtype=object)[codes]
    values = cells.to_numpy()
    return values if set(map(type, values)) <= {str} else [_cell_text(value) for value in values]


def _cell_text(value: object) -> str:
    if isinstance(value, str):
        return value
    if value is None or value is pd.NA or value != value:
        return ""
    if isinstance(value, (bool, np.bool_)):
        return "true" if value else "false"
    if isinstance(value, (float, np.floating)) and float(value).is_integer():
        return str(int(value))
    return str(value)


def is_pixel_mm(text: str) -> bool:
    """Can this be the side of a pixel in mm? An image shows 2 to 10 cm on some hundred pixels: else the unit is another."""
    try:
        return LEAST_PIXEL_MM <= float(text) <= MOST_PIXEL_MM
    except ValueError:
        return False


def check(frame: pd.DataFrame) -> list[str]:
    """Every reason why ``frame`` is not a manifest to train or evaluate with; none: empty list.

    Proven when the list is empty: all columns present; one row per (dataset, image_id); no
    group, no image file and no picture (sha256 of pixels) in two splits or two folds; no patient
    in two groups; known labels, splits and mask formats; a lesion image has a mask; relative
    paths that do not climb; a possible ``pixel_mm`` where there is one; used rows have patient, group, split, image and size, and excluded
    rows have neither split nor fold.

    Args:
        frame: as in ``Manifest.frame``, or the same as text. Rows are counted from 2, as a
            spreadsheet counts them.
    """
    missing = [column for column in COLUMNS if column not in frame.columns]
    if missing:
        return [f"no column {', '.join(missing)}; found {', '.join(map(str, frame.columns))}"]
    return text_problems(as_text(frame), np.arange(2, len(frame) + 2))


class _Column:
    """Cells of a column as numbers of the different texts among them: a text is looked at once, however often it is there."""

    def __init__(self, cells: pd.Series):
        codes, values = pd.factorize(cells)
        self.codes = codes.astype(np.int32)
        self.values: list[str] = values.tolist()

    def where(self, wrong: Callable[[str], object]) -> np.ndarray:
        """Bool (rows,): the cells whose text is ``wrong``."""
        found = np.fromiter(map(bool, map(wrong, self.values)), bool, len(self.values))
        return found[self.codes] if found.any() else np.zeros(len(self.codes), bool)

    def within(self, allowed: Collection[str]) -> np.ndarray:
        """Bool (rows,): the cells whose text is one of ``allowed``."""
        return self.where(set(allowed).__contains__)

    @cached_property
    def filled(self) -> np.ndarray:
        """Bool (rows,): the cells that are not empty."""
        return ~self.within({""})


def text_problems(text: pd.DataFrame, lines: np.ndarray) -> list[str]:
    """``check`` for cells from ``as_text``; ``lines`` is the line number of each row, to name it."""
    if text.empty:
        return ["no image is listed"]
    problems: list[str] = []
    dataset, image_id = text["dataset"].to_numpy(), text["image_id"].to_numpy()
    columns = {name: _Column(text[name]) for name in text.columns}

    def refuse(column: str, wrong: np.ndarray, why: str) -> None:
        cells = text[column].to_numpy()
        for i in np.flatnonzero(wrong):
            problems.append(
                f"row {lines[i]} ({dataset[i]}/{image_id[i]}), column {column}: {cells[i]!r} {why}"
            )

    used = ~columns["excluded"].filled
    for column in text.columns.difference(_HASHES, sort=False):
        if _has_control(columns[column].values):
            wrong = columns[column].where(re.compile(CONTROL).search)
            refuse(column, wrong, "has a line break or another control character")
    for column in _IDS:
        refuse(
            column, columns[column].where(lambda cell: cell != cell.strip()), "begins or ends with a space"
        )
    named = columns["dataset"].where(re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*").fullmatch)
    refuse("dataset", ~named, "is not a name of letters, digits and . _ -")
    refuse("image_id", ~columns["image_id"].filled, "is empty")
    pairs = columns["dataset"].codes.astype(np.int64) * len(text) + columns["image_id"].codes
    refuse("image_id", pd.Series(pairs).duplicated().to_numpy(), "has an earlier row already")
    for column in ("patient_id", "group_id", "image"):
        refuse(column, used & ~columns[column].filled, "is empty in a row that is used")

    refuse("patient_known", ~columns["patient_known"].within({"true", "false"}), "is neither true nor false")
    for column, allowed in (("label", LABELS), ("split", SPLITS)):
        wrong = ~columns[column].within(allowed) & (used | columns[column].filled)
        refuse(column, wrong, f"is none of {', '.join(allowed)}")
    refuse("split", ~used & columns["split"].filled, "is set in an excluded row; leave it empty")
    number = columns["fold"].where(re.compile(r"[0-9]{1,4}").fullmatch)
    refuse("fold", columns["fold"].filled & ~number, "is not a whole number from 0")
    refuse("fold", ~used & columns["fold"].filled, "is set in an excluded row; leave it empty")

    climbing = re.compile(CLIMBING).search
    hexadecimal = re.compile(r"[0-9a-f]*").fullmatch
    climbs = "is absolute, has a backslash, or climbs with .."
    if _may_climb(columns["image"].values):
        refuse("image", columns["image"].where(climbing), climbs)
    has_mask = columns["masks"].filled
    if _may_climb(columns["masks"].values):
        refuse("masks", columns["masks"].where(lambda cell: any(map(climbing, cell.split("|")))), climbs)
    broken = columns["masks"].where(lambda cell: "|" in cell and "" in cell.split("|"))
    refuse("masks", broken, "has an empty part between its |")
    lesion = used & columns["label"].within(LABELS[1:])
    refuse(
        "masks", lesion & ~has_mask, "is empty, but the image has a lesion; exclude the row or give its mask"
    )
    wrong = ~columns["mask_format"].within(MASK_FORMATS) & (has_mask | columns["mask_format"].filled)
    refuse("mask_format", wrong, f"is none of {', '.join(MASK_FORMATS)}")

    for column in ("width", "height"):
        size = columns[column].where(re.compile(r"[1-9][0-9]{0,6}").fullmatch)
        refuse(
            column,
            ~size & (used | columns[column].filled),
            "is not a size in pixels (a whole number above 0)",
        )
    if "pixel_mm" in columns:
        wrong = columns["pixel_mm"].filled & ~columns["pixel_mm"].where(is_pixel_mm)
        refuse(
            "pixel_mm", wrong, f"is not the side of a pixel in mm ({LEAST_PIXEL_MM:g} to {MOST_PIXEL_MM:g})"
        )
    for column in _HASHES:
        wrong = columns[column].where(lambda cell: cell and not (len(cell) == 64 and hexadecimal(cell)))
        refuse(column, wrong, "is not 64 hexadecimal digits")
    return problems + _torn(text, columns, used)


def _has_control(values: Iterable[str]) -> bool:
    """One look at all their bytes, 50 times faster than a search in each."""
    codes = np.frombuffer("".join(values).encode("utf-8", "surrogatepass"), np.uint8)
    return bool(((codes < 32) | (codes == 127)).any())


def _may_climb(values: Iterable[str]) -> bool:
    """Whether any of the paths, or lists of paths with |, could match ``CLIMBING``; mostly none, and that is seen at once."""
    text = "|" + "|".join(values)
    return any(sign in text for sign in ("|/", ":", "\\", ".."))


def _torn(text: pd.DataFrame, columns: dict[str, _Column], used: np.ndarray) -> list[str]:
    """What is divided and must not be: patients over groups; groups, files and pictures over splits and folds."""
    problems = []

    def whole(rows: np.ndarray, keys: list[str], word: str, over: str) -> None:
        rows = np.flatnonzero(rows)
        # Numbers in place of texts; keys of two columns become one number.
        thing = np.zeros(len(rows), np.int64)
        for key in keys:
            thing = thing * len(columns[key].values) + columns[key].codes[rows]
        place = columns[over].codes[rows].astype(np.int64)
        each = np.unique(thing * len(columns[over].values) + place, return_index=True)[1]
        twice = pd.Series(thing[each]).duplicated(keep=False).to_numpy()
        torn = text.iloc[np.sort(rows[each[twice]])]
        for key, parts in torn.groupby(keys, sort=True):
            cells = sorted(zip(parts[over], parts["dataset"], parts["image_id"], strict=True))
            named = ", ".join(f"{place or 'none'} ({dataset}/{image})" for place, dataset, image in cells)
            problems.append(f"{word} {'/'.join(key)} is in {len(cells)} {over}s: {named}")

    filled = {column: columns[column].filled for column in (*_IDS, "image", "sha256")}
    whole(filled["group_id"] & filled["patient_id"], ["dataset", "patient_id"], "patient", "group_id")
    for over in ("split", "fold"):
        whole(used & filled["group_id"], ["group_id"], "group", over)
        whole(used & filled["image"], ["dataset", "image"], "image file", over)
        whole(used & filled["sha256"], ["sha256"], "one picture (sha256)", over)
    return problems
