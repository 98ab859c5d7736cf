"""What a manifest must be: its columns, its cells as text, and the proof that no split leaks."""

import re

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
    text = {}
    for column in frame.columns:
        cells = frame[column]
        if isinstance(cells.dtype, pd.StringDtype):
            cells = cells.to_numpy(dtype=object, na_value="")
        else:
            cells = [_cell_text(value) for value in cells.to_numpy(dtype=object)]
        text[column] = pd.Series(cells, dtype=object)
    return pd.DataFrame(text)


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


def text_problems(text: pd.DataFrame, lines: np.ndarray) -> list[str]:
    """``check`` for cells from ``as_text``; ``lines`` is the line number of each row, to name it."""
    if text.empty:
        return ["no image is listed"]
    problems: list[str] = []
    dataset, image_id = text["dataset"].to_numpy(), text["image_id"].to_numpy()

    def refuse(column: str, wrong: pd.Series, why: str) -> None:
        cells = text[column].to_numpy()
        for i in np.flatnonzero(wrong):
            problems.append(
                f"row {lines[i]} ({dataset[i]}/{image_id[i]}), column {column}: {cells[i]!r} {why}"
            )

    used = text["excluded"] == ""
    for column in text.columns.difference(_HASHES, sort=False):
        if re.search(CONTROL, "".join(text[column])):  # one search over all is 20 times faster than one each
            refuse(
                column, text[column].str.contains(CONTROL), "has a line break or another control character"
            )
    for column in _IDS:
        refuse(column, text[column] != text[column].str.strip(), "begins or ends with a space")
    named = text["dataset"].str.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*")
    refuse("dataset", ~named, "is not a name of letters, digits and . _ -")
    refuse("image_id", text["image_id"] == "", "is empty")
    refuse("image_id", text.duplicated(["dataset", "image_id"]), "has an earlier row already")
    for column in ("patient_id", "group_id", "image"):
        refuse(column, used & (text[column] == ""), "is empty in a row that is used")

    refuse("patient_known", ~text["patient_known"].isin(["true", "false"]), "is neither true nor false")
    for column, allowed in (("label", LABELS), ("split", SPLITS)):
        wrong = ~text[column].isin(allowed) & (used | (text[column] != ""))
        refuse(column, wrong, f"is none of {', '.join(allowed)}")
    refuse("split", ~used & (text["split"] != ""), "is set in an excluded row; leave it empty")
    refuse(
        "fold",
        (text["fold"] != "") & ~text["fold"].str.fullmatch(r"[0-9]{1,4}"),
        "is not a whole number from 0",
    )
    refuse("fold", ~used & (text["fold"] != ""), "is set in an excluded row; leave it empty")

    refuse("image", text["image"].str.contains(CLIMBING), "is absolute, has a backslash, or climbs with ..")
    has_mask = text["masks"] != ""
    paths = text["masks"].str.split("|").explode()
    climbs = paths.str.contains(CLIMBING).groupby(level=0).any()
    refuse("masks", climbs, "is absolute, has a backslash, or climbs with ..")
    refuse("masks", has_mask & (paths == "").groupby(level=0).any(), "has an empty part between its |")
    lesion = used & text["label"].isin(LABELS[1:])
    refuse(
        "masks", lesion & ~has_mask, "is empty, but the image has a lesion; exclude the row or give its mask"
    )
    wrong = ~text["mask_format"].isin(MASK_FORMATS) & (has_mask | (text["mask_format"] != ""))
    refuse("mask_format", wrong, f"is none of {', '.join(MASK_FORMATS)}")

    for column in ("width", "height"):
        wrong = ~text[column].str.fullmatch(r"[1-9][0-9]{0,6}") & (used | (text[column] != ""))
        refuse(column, wrong, "is not a size in pixels (a whole number above 0)")
    if "pixel_mm" in text:
        wrong = (text["pixel_mm"] != "") & ~text["pixel_mm"].map(is_pixel_mm)
        refuse(
            "pixel_mm", wrong, f"is not the side of a pixel in mm ({LEAST_PIXEL_MM:g} to {MOST_PIXEL_MM:g})"
        )
    for column in _HASHES:
        wrong = (text[column] != "") & ~text[column].str.fullmatch(r"[0-9a-f]{64}")
        refuse(column, wrong, "is not 64 hexadecimal digits")
    return problems + _torn(text, used)


def _torn(text: pd.DataFrame, used: pd.Series) -> list[str]:
    """What is divided and must not be: patients over groups; groups, files and pictures over splits and folds."""
    problems = []
    codes = pd.DataFrame({c: pd.factorize(text[c])[0] for c in (*_IDS, "image", "sha256", "split", "fold")})

    def whole(rows: pd.Series, keys: list[str], word: str, over: str) -> None:
        places = codes.loc[rows, [*keys, over]].drop_duplicates()
        torn = text.loc[places.index[places.duplicated(keys, keep=False)]]
        for key, parts in torn.groupby(keys, sort=True):
            cells = sorted(zip(parts[over], parts["dataset"], parts["image_id"], strict=True))
            named = ", ".join(f"{place or 'none'} ({dataset}/{image})" for place, dataset, image in cells)
            problems.append(f"{word} {'/'.join(key)} is in {len(cells)} {over}s: {named}")

    whole(
        (text["group_id"] != "") & (text["patient_id"] != ""),
        ["dataset", "patient_id"],
        "patient",
        "group_id",
    )
    for over in ("split", "fold"):
        whole(used & (text["group_id"] != ""), ["group_id"], "group", over)
        whole(used & (text["image"] != ""), ["dataset", "image"], "image file", over)
        whole(used & (text["sha256"] != ""), ["sha256"], "one picture (sha256)", over)
    return problems
