"""What a manifest must be: its columns, its cells as text, and the proof that no split leaks."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from bus_smp.classes import LABELS
from bus_smp.data.images import MASK_FORMATS
from bus_smp.data.limits import LEAST_PIXEL_MM, MOST_PIXEL_MM, is_pixel_mm
from bus_smp.data.splits import SPLITS

COLUMNS = (
    "dataset", "image_id", "patient_id", "patient_known", "group_id", "label", "split", "fold", "image",
    "masks", "mask_format", "width", "height", "sha256", "phash", "flags", "excluded",
)  # fmt: skip

# A path that could leave its root: absolute (POSIX, drive, UNC), with a backslash, or with a part "..".
CLIMBING = r"^/|^[A-Za-z]:|\\|(?:^|/)\.\.(?:/|$)"
CONTROL = r"[\x00-\x1f\x7f]"

_IDS = ("dataset", "image_id", "patient_id", "group_id")
_HASHES = ("sha256", "phash")


def as_text(frame: pd.DataFrame) -> pd.DataFrame:
    """The cells as they stand in the CSV (dtype object); missing values become empty, 224.0 becomes 224."""
    return pd.DataFrame(
        {column: pd.Series(map(_cell_text, frame[column].tolist()), dtype=object) for column in frame.columns}
    )


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


def check(frame: pd.DataFrame) -> list[str]:
    """Every reason why ``frame`` is not a manifest to train or evaluate with; an empty list if it is one.

    An empty list proves: all columns are present; one row per (dataset, image_id); no group, no image file and
    no picture (sha256 of pixels) is in two splits or two folds; no patient is in two groups; labels, splits and
    mask formats are known; a lesion image has a mask; paths are relative and do not climb; ``pixel_mm`` is
    possible where there is one; used rows have patient, group, split, image and size; excluded rows have
    neither split nor fold.

    Args:
        frame: as in ``Manifest.frame``, or the same as text. Rows are counted from 2, as a spreadsheet does.
    """
    return check_text(as_text(frame), range(2, len(frame) + 2))


def check_text(text: pd.DataFrame, lines: Sequence[int]) -> list[str]:
    """``check`` for cells that are text; ``lines`` is the line number of each row, which problems name."""
    missing = [column for column in COLUMNS if column not in text.columns]
    if missing:
        return [f"no column {', '.join(missing)}; found {', '.join(map(str, text.columns))}"]
    if text.empty:
        return ["no image is listed"]
    text = text.reset_index(drop=True)
    filled = text != ""
    used = ~filled["excluded"]
    problems: list[str] = []

    def refuse(column: str, wrong: pd.Series, why: str) -> None:
        for i in np.flatnonzero(wrong):
            row = f"row {lines[int(i)]} ({text.at[i, 'dataset']}/{text.at[i, 'image_id']})"
            problems.append(f"{row}, column {column}: {text.at[i, column]!r} {why}")

    for column in text.columns.difference(_HASHES, sort=False):
        refuse(column, text[column].str.contains(CONTROL), "has a line break or another control character")
    for column in _IDS:
        refuse(column, text[column] != text[column].str.strip(), "begins or ends with a space")
    named = text["dataset"].str.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*")
    refuse("dataset", ~named, "is not a name of letters, digits and . _ -")
    refuse("image_id", ~filled["image_id"], "is empty")
    refuse("image_id", text.duplicated(["dataset", "image_id"]), "has an earlier row already")
    for column in ("patient_id", "group_id", "image"):
        refuse(column, used & ~filled[column], "is empty in a row that is used")

    refuse("patient_known", ~text["patient_known"].isin(["true", "false"]), "is neither true nor false")
    for column, allowed in (("label", LABELS), ("split", SPLITS)):
        wrong = ~text[column].isin(allowed) & (used | filled[column])
        refuse(column, wrong, f"is none of {', '.join(allowed)}")
    refuse("split", ~used & filled["split"], "is set in an excluded row; leave it empty")
    number = text["fold"].str.fullmatch("[0-9]{1,4}")
    refuse("fold", filled["fold"] & ~number, "is not a whole number from 0")
    refuse("fold", ~used & filled["fold"], "is set in an excluded row; leave it empty")

    climbs = "is absolute, has a backslash, or climbs with .."
    refuse("image", text["image"].str.contains(CLIMBING), climbs)
    # Each part of a list counts from its beginning.
    first = CLIMBING.replace("^", r"(?:^|\|)").replace("$", r"\||$")
    refuse("masks", text["masks"].str.contains(first), climbs)
    broken = text["masks"].str.contains(r"^\||\|\||\|$")
    refuse("masks", broken, "has an empty part between its |")
    lesion = used & text["label"].isin(LABELS[1:])
    why = "is empty, but the image has a lesion; exclude the row or give its mask"
    refuse("masks", lesion & ~filled["masks"], why)
    wrong = ~text["mask_format"].isin(MASK_FORMATS) & (filled["masks"] | filled["mask_format"])
    refuse("mask_format", wrong, f"is none of {', '.join(MASK_FORMATS)}")

    for column in ("width", "height"):
        size = text[column].str.fullmatch("[1-9][0-9]{0,6}")
        refuse(column, ~size & (used | filled[column]), "is not a size in pixels (a whole number above 0)")
    if "pixel_mm" in text.columns:
        wrong = filled["pixel_mm"] & ~text["pixel_mm"].map(is_pixel_mm).astype(bool)
        why = f"is not the side of a pixel in mm ({LEAST_PIXEL_MM:g} to {MOST_PIXEL_MM:g})"
        refuse("pixel_mm", wrong, why)
    for column in _HASHES:
        wrong = filled[column] & ~text[column].str.fullmatch("[0-9a-f]{64}")
        refuse(column, wrong, "is not 64 hexadecimal digits")
    return problems + find_divided(text)


def find_divided(text: pd.DataFrame) -> list[str]:
    """What is divided and must not be: patients over groups; groups, files and pictures over splits and folds.

    Args:
        text: cells from ``as_text``, index 0..n-1.
    """
    filled = text != ""
    used = ~filled["excluded"]
    problems = []

    def refuse(rows: pd.Series, keys: list[str], word: str, over: str) -> None:
        places = text[rows].groupby(keys, sort=False)[over].transform("nunique")
        # One image of each place is named.
        divided = text.loc[places.index[places > 1]].drop_duplicates([*keys, over])
        for key, parts in divided.groupby(keys, sort=True):
            cells = sorted(zip(parts[over], parts["dataset"], parts["image_id"], strict=True))
            named = ", ".join(f"{place or 'none'} ({dataset}/{image})" for place, dataset, image in cells)
            problems.append(f"{word} {'/'.join(key)} is in {len(cells)} {over}s: {named}")

    refuse(filled["group_id"] & filled["patient_id"], ["dataset", "patient_id"], "patient", "group_id")
    for over in ("split", "fold"):
        refuse(used & filled["group_id"], ["group_id"], "group", over)
        refuse(used & filled["image"], ["dataset", "image"], "image file", over)
        refuse(used & filled["sha256"], ["sha256"], "one picture (sha256)", over)
    return problems
