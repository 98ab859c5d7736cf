"""Predicting a user's own files: masks and overlays to look at, one table row per image."""

import contextlib
import math
import os
import re
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pandas as pd

from bus_smp.classes import LESIONS
from bus_smp.data.dicom import EXTRA, NotUltrasoundError, View, has_extra, is_dicom, read_dicom, split_address
from bus_smp.data.dicom import list_views as list_dicom_views
from bus_smp.data.images import (
    FORMATS,
    IMAGE_SUFFIXES,
    declared_pixels,
    looks_like_mask,
    read_picture,
    write_mask,
    write_png,
)
from bus_smp.data.sources._tree import key
from bus_smp.errors import DataError, ImageError
from bus_smp.figures.overlay import draw_uncertainty, overlay
from bus_smp.measures.shape import SHAPES, lesion_shape
from bus_smp.measures.uncertainty import UNCERTAINTIES
from bus_smp.statistics.metrics import IMAGE_COLUMNS
from bus_smp.system.files import explained, open_regular, remove_leftovers, replacing, short_name
from bus_smp.system.locks import hold_lock
from bus_smp.text import counted, harmless_table, printable

if TYPE_CHECKING:
    from bus_smp.inference.predictor import Prediction, Predictor, Prepared

COLUMNS = (
    "file", "width", "height", "decision", "decision_rule", "malignant_score",
    *UNCERTAINTIES, *(f"{lesion.name}_area_{unit}" for unit in ("px", "mm2") for lesion in LESIONS),
    "region", "pixel_mm_x", "pixel_mm_y", "mm_source", "mask", "overlay", "computed_in", "error",
)  # fmt: skip
TABLE = "predictions.csv"

# Files with these endings are taken for images that a fault in them must be reported of. Others are, if they begin
# like an image.
SUFFIXES = (*IMAGE_SUFFIXES, ".webp", ".gif", ".jfif", ".jpe", ".dib")

_MASK, _OVERLAY, _UNSURE = "_predicted.png", "_overlay.png", "_uncertainty.png"
# Older versions called their masks so.
_RESULTS = (_MASK, _OVERLAY, _UNSURE, "_mask.png")

# What the name of a truth mask, or of its folder, contains.
_MASK_WORDS = re.compile(r"mask|gt|truth|label|seg|annot|tumou?r|lesion|roi|other\d")

# An image with more pixels is read by itself, as the largest takes half a gigabyte on its way, and its overlay is drawn on
# a copy with about so many pixels; the mask has the image's own size.
_LARGE = 4_000_000

_MASKS_LEFT = "masks by their few colours, no scans; --include-masks predicts them"

Say = Callable[[str], object]
# The files that are not predicted, by reason.
_LeftOut = defaultdict[str, list[Path]]


def find_images(
    inputs: Sequence[Path], skip: Path | None = None, say: Say = lambda text: None
) -> list[tuple[Path, str]]:
    """List the image files of ``inputs`` with the name each result gets, in natural path order.

    Args:
        inputs: files (any suffix) and folders (files that have the suffix of an image or begin like one, in
            sub-folders too).
        skip: a folder that is not searched: where the results go.
        say: receives one line for each kind of files that are left out, with their number and the reason.

    Returns:
        (file, name) pairs; the name is the path below the given folder, so results never collide.

    Raises:
        DataError: if an input does not exist, or there is no image in any of them.
    """
    missing = [str(path) for path in inputs if not path.exists() and not is_dicom(path)]
    if missing:
        raise DataError(f"no such file or folder: {', '.join(missing)}")
    found: dict[Path, str] = {}
    left_out: _LeftOut = defaultdict(list)
    for given in inputs:
        for path in _files(given, skip, left_out) if given.is_dir() else (given,):
            if reason := _why_not(path, named=path == given):
                left_out[reason].append(path)
            else:
                found.setdefault(path, path.relative_to(given).as_posix() if given.is_dir() else _name(given))
    lines = _describe_left_out(left_out)
    if not found:
        raise DataError(
            "\n".join([f"no image in {', '.join(map(str, inputs))}", *lines]),
            hint=f"images are {', '.join(FORMATS)} and DICOM files",
        )
    for line in lines:
        say(line)
    return _distinct(found)


def list_pictures(files: Sequence[tuple[Path, str]], say: Say = lambda text: None) -> list[tuple[Path, str]]:
    """List the pictures in files from ``find_images``: of DICOM clips each frame, of several panes each.

    Args:
        say: receives a line for each thing that DICOM files say of themselves, with their number.

    Returns:
        (address, name) pairs: ``clip.dcm#12`` is ``clip_frame012``. A file that cannot be read has one pair.
    """
    listed = []
    notes: Counter[str] = Counter()
    for path, name in files:
        try:
            found = read_dicom(path) if is_dicom(path) else None
        except ImageError:
            # its row gives the reason
            found = None
        if found is None or split_address(path)[0] != path:
            listed.append((path, name))
            continue
        notes.update(found.notes)
        for address, view in list_dicom_views(found):
            number = _address_name(
                view.frame if found.frames > 1 else None, view.number if len(found.panes) > 1 else None
            )
            listed.append((path.with_name(f"{path.name}{address}"), f"{name}{number}"))
    for text, count in notes.items():
        say(f"{counted(count, 'DICOM file')}: {text}")
    return listed


def _name(path: Path) -> str:
    """The file's name; that of ``clip.dcm#12`` is ``clip_frame012.dcm``."""
    file, frame, pane = split_address(path)
    return f"{file.stem}{_address_name(frame, pane)}{file.suffix}"


def _address_name(frame: int | None, pane: int | None) -> str:
    return ("" if frame is None else f"_frame{frame:03}") + ("" if pane is None else f"_pane{pane}")


def _describe_left_out(files: _LeftOut) -> list[str]:
    """One line for each reason, as ``Left out: 2 files (1 .csv, 1 .txt): no images``."""
    lines = []
    for reason, paths in sorted(files.items()):
        kinds = Counter(path.suffix.lower() or "no suffix" for path in paths)
        counts = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(5))
        some = "" if len(kinds) <= 5 else ", ..."
        lines.append(f"Left out: {counted(len(paths), 'file')} ({counts}{some}): {reason}")
    return lines


def _why_not(path: Path, named: bool) -> str:
    """Why a file is left out before its pixels are read; empty if it is not. ``named``: by the user, not found."""
    if _is_result(path):
        return "results of an earlier prediction"
    # a folder that cannot be listed gets a row with the reason, as an image that cannot be read
    if named or path.is_dir():
        return ""
    if path.name.startswith("."):
        return "hidden, the name begins with a dot"
    if path.suffix.lower() in SUFFIXES or declared_pixels(path):
        return ""
    if not is_dicom(path):
        return "no images"
    if not has_extra():
        return f"DICOM; to predict them: {EXTRA}"
    try:
        read_dicom(path)
    except NotUltrasoundError:
        return "DICOM without ultrasound images"
    except ImageError:
        # its row gives the reason
        pass
    return ""


def _is_result(path: Path) -> bool:
    return path.name.endswith(_RESULTS) and any(
        _is_ours(parent / TABLE) for parent in path.absolute().parents
    )


def _files(folder: Path, skip: Path | None, left_out: _LeftOut) -> Iterator[Path]:
    """The files in a folder and below it, through links too; at the end the folders that cannot be listed."""
    results = None if skip is None else os.path.realpath(skip)
    entered = {os.path.realpath(folder)}
    closed: list[OSError] = []
    for parent, folders, files in os.walk(folder, onerror=closed.append, followlinks=True):
        here = Path(parent)
        kept = []
        for name in sorted(folders):
            place = os.path.realpath(here / name)
            if place == results:
                left_out["the folder that the results go to"].append(here / name)
            elif name.startswith("."):
                left_out["a hidden folder, the name begins with a dot"].append(here / name)
            elif place not in entered:
                kept.append(name)
                entered.add(place)
        folders[:] = kept
        yield from (here / name for name in sorted(files))
    # each gets a row with the reason
    yield from (Path(error.filename) for error in closed)


def _distinct(found: dict[Path, str]) -> list[tuple[Path, str]]:
    """Name each file without its suffix; where two names would be the same (scan.png, scan.jpg), keep the suffix."""
    names = [_writable(name) for name in found.values()]
    stems = [_writable(str(Path(name).with_suffix(""))) for name in found.values()]
    folded = [key(stem) for stem in stems]
    alike = Counter(folded)
    named: list[tuple[Path, str]] = []
    taken: set[str] = set()
    for path, name, stem, one in zip(found, names, stems, folded, strict=True):
        chosen = stem if alike[one] == 1 else name
        number = 2
        while key(chosen) in taken:
            chosen, number = f"{name}-{number}", number + 1
        taken.add(key(chosen))
        named.append((path, chosen))
    return named


def _writable(name: str) -> str:
    """The name for the results of an image: printable, and short enough to add ``_overlay.png``."""
    place, _, last = printable(name).rpartition("/")
    return f"{place}/{short_name(last, 200)}" if place else short_name(last, 200)


def is_mask(path: Path, pixels: np.ndarray) -> bool:
    """Whether a file holds a mask, not a scan, by its pixels (``read_image``) and by its name and folder."""
    return looks_like_mask(pixels, is_called_mask(path))


def is_called_mask(path: Path) -> bool:
    """Whether the name of a file or of its folder is that of a mask."""
    return bool(_MASK_WORDS.search(f"{path.resolve().parent.name}/{path.stem}".lower()))


def check_targets(images: Sequence[tuple[Path, str]], folder: Path) -> None:
    """Refuse to write results over files that are to be read, next to them, or over files that no prediction wrote.

    What an earlier prediction wrote may be replaced: a folder is known by its ``predictions.csv``.

    Raises:
        DataError: naming the first such file.
    """
    there = Path(folder).resolve()
    # realpath: resolve raises on a link to itself
    mixed = [path for path, name in images if Path(os.path.realpath(path)).parent == (there / name).parent]
    if mixed:
        raise DataError(
            f"{folder}: results would be mixed with the images they are made from ({mixed[0].name})",
            hint="choose another folder with --to",
        )
    table = Path(folder) / TABLE
    if _is_ours(table):
        return
    pictures = (Path(folder) / file for _, name in images for file in _pictures(name))
    taken = next((path for path in (table, *pictures) if os.path.lexists(path)), None)
    if taken is not None:
        raise DataError(
            f"{taken}: would be replaced, and no earlier prediction wrote it",
            hint="choose another folder with --to",
        )


def _is_ours(table: Path) -> bool:
    """Whether a file is a table of predictions, of this version or an older one, by its header."""
    try:
        with open_regular(table) as file:
            header = file.readline(1000).decode("utf-8", "replace").strip().split(",")
    except OSError:
        return False
    return header[:3] == list(COLUMNS[:3]) and {"malignant_score", "mask", "overlay", "error"} <= set(header)


def _pictures(name: str) -> tuple[str, str, str]:
    """Names of the mask, the overlay and the uncertainty of an image. No data set calls its true masks so."""
    return f"{name}{_MASK}", f"{name}{_OVERLAY}", f"{name}{_UNSURE}"


def predict_files(
    predictor: "Predictor",
    images: Sequence[tuple[Path, str]],
    folder: Path,
    *,
    include_masks: bool = True,
    uncertainty: bool = False,
    pixel_mm: float | None = None,
    say: Say = lambda text: None,
    progress: Callable[[], object] = lambda: None,
) -> pd.DataFrame:
    """Predict each file and write its mask, its overlay and ``predictions.csv``.

    Reading, the network and writing overlap; memory does not grow with the number of images. The table is empty until
    the last image is done, so it never describes other pictures than those next to it.

    Args:
        images: from ``list_pictures``.
        folder: made if absent.
        include_masks: False leaves out pictures that look like masks (``looks_like_mask``).
        uncertainty: also draw ``Prediction.uncertainty_map`` of each image.
        pixel_mm: side of a pixel in mm, where it is known and the same in all images that do not say it themselves.
        say: receives a line with the number of files that were left out.
        progress: called after each image.

    Returns:
        One row per image in their order, columns ``COLUMNS``: ``decision`` is the ``label`` of the ``Prediction``,
        areas are pixels of the mask (and mm2), ``malignant_score`` is the highest malignant probability after
        temperature; ``UNCERTAINTIES``, larger is less sure; ``IMAGE_COLUMNS`` and shapes
        only of a run with such heads; ``computed_in`` names library, precision and device. A file that cannot be read has only the
        reason, in ``error``.

    Raises:
        DataError: if another process is predicting into this folder.
        BusSmpError: if the disk is full or the folder cannot be written to.
    """
    # torch comes with them, and finding files needs none
    from bus_smp.inference.batches import predict_batches
    from bus_smp.inference.predictor import describe_computing

    folder = Path(folder)
    alone = threading.Lock()

    def load(image: tuple[Path, str]) -> tuple["np.ndarray | Prepared | None", Any]:
        path = image[0]
        large = declared_pixels(path) > _LARGE
        try:
            with alone if large else contextlib.nullcontext():
                picture = read_picture(path)
                pixels = picture.pixels
                # a clip may begin with a black frame
                if not include_masks and picture.view is None and is_mask(path, pixels):
                    return None, None
                if not large:
                    return pixels, (picture.view, None)
                share = (_LARGE / declared_pixels(path)) ** 0.5
                shrunk = cv2.resize(pixels, None, fx=share, fy=share, interpolation=cv2.INTER_AREA)
                return predictor.prepare(pixels), (picture.view, shrunk)
        except ImageError as error:
            return None, f"{error.what}; {error.hint}" if error.hint else error.what

    def finish(
        image: tuple[Path, str], pixels: np.ndarray | None, known: Any, prediction: "Prediction | None"
    ) -> dict[str, Any] | None:
        if prediction is None:
            return None if known is None else {"error": known}
        view, shrunk = known
        # of a large image only a smaller copy is there
        pixels = shrunk if pixels is None else pixels
        _write_pictures(folder, image[1], pixels, prediction.mask)
        unsure = folder / _pictures(image[1])[2]
        # that of an earlier prediction belongs to another mask
        unsure.unlink(missing_ok=True)
        if uncertainty:
            write_png(unsure, draw_uncertainty(pixels, prediction.uncertainty_map))
        described = _describe(prediction, image[1], view, pixel_mm)
        return described | {"computed_in": describe_computing(predictor.computed_in)}

    rows: list[dict[str, Any]] = []
    left_out: _LeftOut = defaultdict(list)
    with _locked(folder):
        # an earlier prediction may have been killed
        if _is_ours(folder / TABLE):
            for place in {(folder / name).parent for _, name in images}:
                remove_leftovers(place)
        _write_table(folder, rows)
        for (path, _), row in zip(images, predict_batches(predictor, images, load, finish), strict=True):
            if row is None:
                left_out[_MASKS_LEFT].append(path)
            else:
                rows.append(dict.fromkeys(COLUMNS, "") | {"file": printable(str(path))} | row)
            progress()
        table = _write_table(folder, rows)
    for line in _describe_left_out(left_out):
        say(line)
    return table


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder for this process: two at once would leave one table for the pictures of both."""

    def refuse() -> None:
        raise DataError(
            f"{folder}: another bus-smp predict is writing to it",
            hint="choose another folder with --to, or wait until it is done",
        )

    with contextlib.ExitStack() as stack:
        with explained(folder):
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(hold_lock(folder / ".lock", refuse))
        yield


def _write_table(folder: Path, rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    # those of the heads of the whole image are there only where the run has such heads
    columns = dict.fromkeys((*COLUMNS, *(name for row in rows for name in row)))
    table = pd.DataFrame(
        [{name: row.get(name, "") for name in columns} for row in rows], columns=list(columns)
    )
    with replacing(folder / TABLE) as temporary:
        harmless_table(table).to_csv(temporary, index=False, lineterminator="\n")
    return table


# Width and height of a pixel in mm.
_Size = tuple[float, float] | None


def _size_of(view: View | None, pixel_mm: float | None) -> tuple[_Size, str]:
    """The size of a pixel and where it comes from, or why it is not known."""
    size, source = (None, "") if pixel_mm is None else ((pixel_mm, pixel_mm), "--pixel-mm")
    # of several files, the user's number may be that of one
    if view is not None and (view.pane.pixel_mm is not None or size is None):
        return view.pane.pixel_mm, view.pane.source if view.pane.pixel_mm else f"none: {view.pane.source}"
    return size, source


def _describe_size(mask: np.ndarray, view: View | None, size: _Size) -> dict[str, Any]:
    """Areas in pixels and in mm2, and where the mask lies in a DICOM frame."""
    areas = {lesion.name: int(np.count_nonzero(mask == lesion.index)) for lesion in LESIONS}
    described: dict[str, Any] = {f"{key}_area_px": area for key, area in areas.items()}
    if view is not None:
        described["region"] = " ".join(map(str, view.pane.box))
    if size is not None:
        described |= {f"{key}_area_mm2": round(area * size[0] * size[1], 3) for key, area in areas.items()}
        described |= {"pixel_mm_x": round(size[0], 6), "pixel_mm_y": round(size[1], 6)}
    return described


def _describe(
    prediction: "Prediction", name: str, view: View | None, pixel_mm: float | None
) -> dict[str, Any]:
    from bus_smp.inference.predictor import label_rule

    mask = prediction.mask
    size, source = _size_of(view, pixel_mm)
    return {
        "width": mask.shape[1],
        "height": mask.shape[0],
        "decision": prediction.label,
        "decision_rule": label_rule(prediction.rules),
        "malignant_score": round(prediction.score, 6),
        **{key: round(value, 6) for key, value in prediction.uncertainty.items() if not math.isnan(value)},
        **dict(zip(("mask", "overlay"), _pictures(name), strict=False)),
        **_describe_size(mask, view, size),
        "mm_source": source,
        **_describe_heads(prediction, size),
    }


def _describe_heads(prediction: "Prediction", size: _Size) -> dict[str, float]:
    """What the heads of the whole image say, and next to it the same of the mask."""
    described = {}
    if prediction.image_probabilities is not None:
        described = dict(zip(IMAGE_COLUMNS, map(float, prediction.image_probabilities), strict=True))
    if prediction.head_shape is not None:
        for whose, shape in (("head", prediction.head_shape), ("mask", lesion_shape(prediction.mask))):
            area = shape["area"]
            known = {} if size is None else {f"area_mm2_{whose}": area * size[0] * size[1]}
            described |= {f"area_px_{whose}": area, **known}
            described |= {f"{name}_{whose}": shape[name] for name in SHAPES if name != "area"}
    return {name: round(value, 6) for name, value in described.items()}


def _write_pictures(folder: Path, name: str, image: np.ndarray, mask: np.ndarray) -> None:
    coloured, laid_over, _ = _pictures(name)
    write_mask(folder / coloured, mask)
    height, width = image.shape[:2]
    # the same size, unless the image was shrunk
    drawn = cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    write_png(folder / laid_over, overlay(image, drawn, legend=True))
