"""The manifest: one CSV row per image, and the proof that no split leaks into another.

Everything after it (training, evaluation, reports) knows manifests only. In memory a manifest's
frame has the columns ``COLUMNS``: text, except ``patient_known`` (bool) and ``width``, ``height``,
``fold`` (Int64, <NA> where empty). Further columns are kept, as text. On disk it is CSV (UTF-8,
LF, sorted by dataset and image_id, ``true``/``false``, no cell that a spreadsheet would run) with a sidecar
``<stem>.json`` that records the data sets' root folders, relative to the sidecar, and how the manifest was made.

A table is checked once, where it enters: ``read_manifest`` and ``combine`` check, and ``write_manifest`` checks a
table that was made in memory. Everything that receives a ``Manifest`` from them trusts it.

A path may not be absolute or climb with ``..``, so a manifest cannot name a file outside its
root. Links are followed: a root, a folder or an image may be a link that the user has set, and a
manifest cannot set one. The sidecar names the root unless ``--root`` does. The files below it are only ever
decoded as images, so no other file's content can be seen through a manifest.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pandas as pd

import bus_smp
from bus_smp.data.manifest_checks import CLIMBING, COLUMNS, CONTROL, as_text, check, check_text, find_divided
from bus_smp.data.manifest_csv import header_names, read_cells, to_csv
from bus_smp.data.splits import SPLITS
from bus_smp.errors import ManifestError
from bus_smp.system.files import open_regular, replacing
from bus_smp.text import counted, did_you_mean

__all__ = [
    "COLUMNS", "SPLITS", "Manifest", "check", "combine", "list_manifests", "manifest_hash", "manifest_path",
    "read_manifest", "write_manifest",
]  # fmt: skip

_INTEGERS = ("fold", "width", "height")

# Problems that one error spells out; nobody reads more.
_LISTED = 10


@dataclass(frozen=True, eq=False)
class Manifest:
    """A table of images, the folders its paths start from, and how it was made.

    Attributes:
        frame: one row per image, columns as the module describes, sorted by dataset and image_id; not to be changed.
        roots: data set -> folder that its ``image`` and ``masks`` are relative to.
        about: the rest of the sidecar (options, audit, version, ...), plain JSON values.
        checked: whether ``frame`` was checked when it entered; one made in memory is checked before it is written.
    """

    frame: pd.DataFrame
    roots: dict[str, Path]
    about: dict = field(default_factory=dict)
    checked: bool = False

    @property
    def datasets(self) -> list[str]:
        """Names of the data sets in the table, sorted."""
        return sorted(self.frame["dataset"].unique())

    @cached_property
    def csv(self) -> bytes:
        """The CSV that ``write_manifest`` writes."""
        return _frame_csv(self.frame)

    @cached_property
    def sha256(self) -> str:
        """``manifest_hash`` of the table."""
        return hashlib.sha256(self.csv).hexdigest()

    def used(self, split: str | None = None) -> pd.DataFrame:
        """Rows that are not excluded, of one split or of all; index 0..n-1, order as in ``frame``."""
        if split is not None and split not in SPLITS:
            raise ValueError(f"split {split!r} is none of {', '.join(SPLITS)}")
        keep = self.frame["excluded"] == ""
        if split is not None:
            keep &= self.frame["split"] == split
        return self.frame[keep].reset_index(drop=True)

    def find_learnt(self, rows: pd.DataFrame, split: str) -> pd.Series:
        """Which ``rows`` of a test or validation split a training on this manifest has learnt from, bool (rows,).

        Validation images choose the epoch: they count for a test split. A group or the same pixels are enough.
        """
        used = self.used()
        used = used[used["split"].isin(("train", "val") if split == "test" else ("train",))]
        return rows["group_id"].isin(used["group_id"]) | rows["sha256"].isin(set(used["sha256"]) - {""})

    def at(self, root: Path | Mapping[str, Path] | None) -> "Manifest":
        """The same rows with their images in other folders; ``root`` as for ``read_manifest``."""
        if root is None:
            return self
        moved = root if isinstance(root, Mapping) else dict.fromkeys(self.roots, root)
        roots = {name: Path(moved.get(name, folder)).expanduser() for name, folder in self.roots.items()}
        return Manifest(self.frame, roots, self.about)

    def require_images(self, path: Path) -> None:
        """Refuse to go on where a folder of images is missing.

        Args:
            path: of the manifest, to be named.

        Raises:
            ManifestError: naming every folder that is missing.
        """
        gone = [
            f"{name}: folder {folder} is not there"
            for name, folder in self.roots.items()
            if not folder.is_dir()
        ]
        _raise(str(path), gone, "say where the images are: --root FOLDER")

    def image_path(self, row: pd.Series | Mapping | tuple) -> Path:
        """File of the row's image; ``row`` comes from ``iloc``, ``to_dict`` or ``itertuples``.

        Raises:
            ManifestError: if the path is empty or leaves the root, or the data set has no root.
        """
        return self._inside(row, _cell(row, "image"))

    def mask_paths(self, row: pd.Series | Mapping | tuple) -> list[Path]:
        """Files of the row's masks, none for an image without a mask; errors as ``image_path``."""
        masks = _cell(row, "masks")
        return [self._inside(row, mask) for mask in masks.split("|")] if masks else []

    def _inside(self, row: pd.Series | Mapping | tuple, relative: str) -> Path:
        dataset = _cell(row, "dataset")
        if dataset not in self.roots:
            raise ManifestError(
                f"no folder is recorded for the data set {dataset}", hint="give it with --root FOLDER"
            )
        if not relative or re.search(f"{CLIMBING}|{CONTROL}", relative):
            raise ManifestError(
                f"{dataset}/{_cell(row, 'image_id')}: path {relative!r} does not stay inside {self.roots[dataset]}"
            )
        return self.roots[dataset] / relative


def _cell(row: pd.Series | Mapping | tuple, column: str) -> str:
    return getattr(row, column) if isinstance(row, tuple) else row[column]


def _with_types(text: pd.DataFrame) -> pd.DataFrame:
    """The frame that ``Manifest`` describes, from text that passed the checks."""
    frame = _in_order(text).reset_index(drop=True).astype("str")
    for column in _INTEGERS:
        frame[column] = pd.to_numeric(frame[column].where(frame[column] != "")).astype("Int64")
    frame["patient_known"] = frame["patient_known"] == "true"
    return frame


def _in_order(text: pd.DataFrame) -> pd.DataFrame:
    """COLUMNS first, rows sorted by dataset and image_id."""
    rest = [column for column in text.columns if column not in COLUMNS]
    return text[[*COLUMNS, *rest]].sort_values(["dataset", "image_id"], kind="stable")


def _frame_csv(frame: pd.DataFrame) -> bytes:
    return to_csv(_in_order(as_text(frame)))


def _raise(where: str, problems: Sequence[str], hint: str) -> None:
    if not problems:
        return
    shown = (f"{problem[:500]} ..." if len(problem) > 500 else problem for problem in problems[:_LISTED])
    listed = "".join(f"\n  {problem}" for problem in shown)
    more = f"\n  and {len(problems) - _LISTED} more" if len(problems) > _LISTED else ""
    raise ManifestError(f"{where}: {counted(len(problems), 'problem')}{listed}{more}", hint=hint)


# Reading and writing


def read_manifest(
    path: str | Path, root: Path | Mapping[str, Path] | None = None, *, images: bool = True
) -> Manifest:
    """Read a manifest and check it, with everything that ``check`` proves.

    Accepts what spreadsheets make of it: another encoding, ``;`` or tabs, CRLF, other row order, other words for true
    and false, decimal commas, a workbook.

    Args:
        path: the CSV or XLSX file; its sidecar is ``<stem>.json`` next to it.
        root: folder of the images instead of the recorded one; a mapping for several data sets.
        images: whether the root folders must exist (not so where only the table is asked).

    Raises:
        ManifestError: with all failures at once.
    """
    path = Path(path)
    text, lines, problems = read_cells(path)
    again = f"correct it, or make it again with bus-smp make-manifest (from a table of your own: --csv {path.name})"
    _raise(str(path), problems + check_text(text, lines), again)

    frame = _with_types(text)
    about = _read_sidecar(path.with_suffix(".json"))
    roots = _roots(path, frame["dataset"].unique(), about.pop("roots"), root)
    manifest = Manifest(frame, roots, about, checked=True)
    if images:
        manifest.require_images(path)
    return manifest


def _read_sidecar(path: Path) -> dict:
    """The sidecar's JSON object with ``roots`` a dict of texts; empty where there is no sidecar."""
    try:
        with open_regular(path) as file:
            about = json.loads(file.read().decode("utf-8-sig"))
        json.dumps(about, ensure_ascii=False).encode()  # fails on half a character, which JSON can spell
        if not isinstance(about, dict):
            raise ValueError("not an object")
        roots = about.setdefault("roots", {})
        if not isinstance(roots, dict) or not all(isinstance(r, str) and r for r in roots.values()):
            raise ValueError("roots must give a folder for each data set")
    except FileNotFoundError:
        return {"roots": {}}
    except (ValueError, OSError, RecursionError) as error:
        raise ManifestError(
            f"{path}: cannot be read as the manifest's sidecar ({error})",
            hint="delete it and make the manifest again with bus-smp make-manifest",
        ) from None
    return about


def _roots(
    path: Path, datasets: Sequence[str], recorded: Mapping[str, str], given: Path | Mapping[str, Path] | None
) -> dict[str, Path]:
    """Folder of each data set: the one given, else the one recorded, else the CSV's own."""
    folder = path.parent.resolve()
    roots = {}
    for dataset in sorted(datasets):
        chosen = given.get(dataset) if isinstance(given, Mapping) else given
        if chosen is None:
            # Recorded paths climb at their beginning only, and folder holds no link: lexical is right.
            roots[dataset] = Path(os.path.normpath(folder / recorded.get(dataset, ".")))
        else:
            roots[dataset] = Path(chosen).expanduser()
    return roots


def manifest_hash(frame: pd.DataFrame) -> str:
    """sha256 (64 hex digits) of the CSV that ``write_manifest`` writes for ``frame``, in whatever order its rows are."""
    return hashlib.sha256(_frame_csv(frame)).hexdigest()


def write_manifest(manifest: Manifest, path: Path) -> Path:
    """Write ``path`` (CSV) and its sidecar, each all or nothing, the same bytes for the same manifest.

    On any error both are as they were.

    Raises:
        ManifestError: if ``check`` finds a problem in a table made in memory, a root's name is not UTF-8, or a
            folder has one of the two names.
        BusSmpError: if the disk is full or the folder cannot be written to.
    """
    path = Path(path)
    sidecar = path.with_suffix(".json")
    if not manifest.checked:
        _raise(
            f"{path} was not written", check(manifest.frame), "correct the table, then run the command again"
        )
    for file in (path, sidecar):
        if file.is_dir():
            raise ManifestError(
                f"{file}: cannot be written (is a folder)", hint="move it elsewhere, or choose another place"
            )
    roots = {dataset: record_root(root, path.parent) for dataset, root in manifest.roots.items()}
    about = {"version": bus_smp.__version__, **manifest.about, "roots": roots}
    text = json.dumps(about, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    # Both are on the disk before either takes its name: rows with the sidecar of another manifest would look right.
    with replacing(sidecar) as new_sidecar, replacing(path) as new_rows:
        with new_sidecar.open("wb") as stream:
            stream.write(text.encode("utf-8"))
            stream.flush()
            os.fsync(stream.fileno())
        new_rows.write_bytes(manifest.csv)
    return path


def record_root(root: Path, folder: Path) -> str:
    """A data set's root as the sidecar of a manifest in ``folder`` records it: relative where that is possible.

    Raises:
        ManifestError: if the name cannot stand in a file of UTF-8.
    """
    try:
        recorded = Path(os.path.relpath(root, Path(folder).resolve())).as_posix()
    except ValueError:  # another drive on Windows
        recorded = Path(root).absolute().as_posix()
    try:
        recorded.encode("utf-8")
    except UnicodeEncodeError:
        raise ManifestError(
            f"{root}: the folder's name is not UTF-8 and cannot be recorded in a manifest",
            hint="rename it; if the name looks right elsewhere, use a locale of UTF-8: export LC_ALL=C.UTF-8 PYTHONUTF8=1",
        ) from None
    return recorded


def looks_like_manifest(path: Path) -> bool:
    """Whether the file has a manifest's header, whatever its rows are."""
    try:
        with open_regular(path) as file:
            first = file.readline(1 << 16).decode("utf-8-sig", errors="replace")
    except OSError:
        return False
    return set(COLUMNS) <= set(header_names(first))


def looks_like_sidecar(path: Path) -> bool:
    """Whether the file is a JSON object with ``roots``."""
    try:
        with open_regular(path) as file:
            about = json.loads(file.read().decode("utf-8-sig"))
    except (ValueError, OSError, RecursionError):
        return False
    return isinstance(about, dict) and "roots" in about


# Several manifests


def combine(manifests: Sequence[Manifest]) -> Manifest:
    """One manifest of several, for training on them together; ``dataset`` tells their rows apart.

    A group id that names its data set (``<dataset>:<patient>``) may stand in several manifests:
    it is then one group, merged for images found in both. It must lie in one split everywhere.

    Raises:
        ManifestError: if a data set comes twice, a shared group id names no data set, or a
            group or a picture lies in different splits.
    """
    if not manifests:
        raise ManifestError("no manifest to train on", hint="name at least one: --data bus-uclm")
    if len(manifests) == 1:
        return manifests[0]
    names = [name for manifest in manifests for name in manifest.datasets]
    where = f"the manifests of {', '.join(names)} together"
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ManifestError(
            f"the data set {', '.join(twice)} is listed twice", hint="name each data set once"
        )

    text = pd.concat([as_text(m.frame) for m in manifests], ignore_index=True).fillna("")
    grouped = text.loc[text["group_id"] != "", ["dataset", "group_id"]].drop_duplicates()
    shared = grouped.loc[grouped.duplicated("group_id"), "group_id"].unique()
    again = (
        "make them again in one run, which keeps shared groups in one split: bus-smp make-manifest "
        + " ".join(f"--dataset {name}" for name in names)
    )
    unnamed = [
        f"group {group} is in several data sets but names none (<dataset>:<patient>)"
        for group in sorted(shared)
        if ":" not in group
    ]
    _raise(where, unnamed, again)
    # Each of them was checked where it was read; only what they share is new.
    problems = find_divided(text) if all(m.checked for m in manifests) else check(text)
    _raise(where, problems, again)
    roots = {name: root for manifest in manifests for name, root in manifest.roots.items()}
    about = {"combined": {"+".join(m.datasets): m.about for m in manifests}}
    return Manifest(_with_types(text), roots, about, checked=True)


def list_manifests(folder: Path) -> list[Path]:
    """The manifests (``*.csv``) of a folder, sorted by name; none if the folder is not there."""
    return sorted(path for path in Path(folder).glob("*.csv") if path.is_file() and path.name[0] != ".")


def manifest_path(name_or_path: str | Path, folder: Path) -> Path:
    """File of a manifest: a path to a CSV or XLSX as it is, a name like ``busi`` as ``folder/busi.csv``.

    Raises:
        ManifestError: if there is no such file; lists those that are there.
    """
    given = str(name_or_path)
    is_path = given.lower().endswith((".csv", ".xlsx")) or "/" in given or os.sep in given
    path = Path(given) if is_path else Path(folder) / f"{given}.csv"
    if path.is_file():
        return path
    present = [manifest.stem for manifest in list_manifests(folder)]
    found = f"{folder} has {', '.join(present)}" if present else f"{folder} has none"
    near = did_you_mean(path.stem, present)
    hint = f"{near} " if near else ""
    make = "bus-smp make-manifest" if is_path else f"bus-smp make-manifest --dataset {given}"
    raise ManifestError(f"{path}: no such manifest; {found}", hint=f"{hint}make it with: {make}")
