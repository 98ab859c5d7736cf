"""Predicting a user's own files: masks and overlays to look at, one table row per image."""

import contextlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bus_smp.classes import BENIGN, LESIONS, MALIGNANT
from bus_smp.data.images import IMAGE_SUFFIXES, read_image, write_mask, write_png
from bus_smp.data.sources._tree import key
from bus_smp.errors import DataError, ImageError
from bus_smp.inference.batches import predict_batches
from bus_smp.inference.predictor import Prediction, Predictor, describe_computing
from bus_smp.system.files import explained, open_regular, remove_leftovers, replacing, short_name
from bus_smp.system.locks import hold_lock
from bus_smp.text import harmless_table, printable

COLUMNS = (
    "file", "width", "height", "predicted_label", "malignant_score",
    "called_malignant",
    *(f"{lesion.name}_area" for lesion in LESIONS), "mask", "overlay", "computed_in", "error",
)  # fmt: skip
TABLE = "predictions.csv"


def find_images(inputs: Sequence[Path], skip: Path | None = None) -> list[tuple[Path, str]]:
    """List the image files of ``inputs`` with the name each result gets, in natural path order.

    Args:
        inputs: files (any suffix) and folders (files with an image suffix, in sub-folders too).
        skip: a folder that is not searched: where the results go.

    Returns:
        (file, name) pairs; the name is the path below the given folder, so results never collide.

    Raises:
        DataError: if an input does not exist, or there is no image in any of them.
    """
    missing = [str(path) for path in inputs if not path.exists()]
    if missing:
        raise DataError(f"no such file or folder: {', '.join(missing)}")
    found: dict[Path, str] = {}
    for given in inputs:
        if given.is_dir():
            for path in _image_files(given, skip):
                found.setdefault(path, path.relative_to(given).as_posix())
        else:
            found.setdefault(given, given.name)
    if not found:
        raise DataError(
            f"no image in {', '.join(map(str, inputs))}",
            hint=f"images are files ending in {', '.join(IMAGE_SUFFIXES)}",
        )
    return _distinct(found)


def _image_files(folder: Path, skip: Path | None) -> Iterator[Path]:
    """The image files in a folder and below it, through links too; at the end the folders that cannot be listed."""
    entered = {os.path.realpath(place) for place in (folder, skip) if place is not None}
    closed: list[OSError] = []
    for parent, folders, files in os.walk(folder, onerror=closed.append, followlinks=True):
        here = Path(parent)
        below = [name for name in sorted(folders) if name[0] != "."]
        folders[:] = [name for name in below if os.path.realpath(here / name) not in entered]
        entered |= {os.path.realpath(here / name) for name in folders}
        yield from (
            here / name
            for name in sorted(files)
            if name[0] != "." and Path(name).suffix.lower() in IMAGE_SUFFIXES
        )
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


def check_targets(images: Sequence[tuple[Path, str]], folder: Path) -> None:
    """Refuse to write results over files that are to be read, next to them, or over files that no prediction wrote.

    What an earlier prediction wrote may be replaced: a folder is known by its ``predictions.csv``.

    Raises:
        DataError: naming the first such file. BUSI's own masks are called ``<image>_mask.png`` too.
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
    """Whether a file is a table of predictions, by its header; that of older versions has no ``computed_in``."""
    try:
        with open_regular(table) as file:
            header = file.readline(1000).decode("utf-8", "replace").strip()
    except OSError:
        return False
    return header in (",".join(COLUMNS), ",".join(name for name in COLUMNS if name != "computed_in"))


def _pictures(name: str) -> tuple[str, str]:
    """Names of the mask and the overlay of an image."""
    return f"{name}_mask.png", f"{name}_overlay.png"


def predict_files(
    predictor: Predictor,
    images: Sequence[tuple[Path, str]],
    folder: Path,
    *,
    threshold: float | None = None,
    progress: Callable[[], object] = lambda: None,
) -> pd.DataFrame:
    """Predict each file and write ``<name>_mask.png``, ``<name>_overlay.png`` and ``predictions.csv``.

    Reading, the network and writing overlap; memory does not grow with the number of images. The table is empty until
    the last image is done, so it never describes other pictures than those next to it.

    Args:
        images: from ``find_images``.
        folder: made if absent.
        threshold: the run's, of ``malignant_score``; None: none is known, and nothing is called.
        progress: called after each image.

    Returns:
        One row per image in their order, columns ``COLUMNS``: areas are shares of the image in 0..1,
        ``malignant_score`` the highest malignant probability, after temperature, and ``called_malignant`` yes, no or
        empty, by the threshold; ``computed_in`` names library, precision and device. A file that cannot be read has
        only the reason, in ``error``.

    Raises:
        DataError: if another process is predicting into this folder.
        BusSmpError: if the disk is full or the folder cannot be written to.
    """
    folder = Path(folder)

    def load(image: tuple[Path, str]) -> tuple[np.ndarray | None, str]:
        try:
            return read_image(image[0]), ""
        except ImageError as error:
            return None, error.what

    def finish(
        image: tuple[Path, str], pixels: np.ndarray | None, error: str, prediction: Prediction | None
    ) -> dict[str, Any]:
        if pixels is None or prediction is None:
            return {"error": error}
        _write_pictures(folder, image[1], pixels, prediction.mask)
        described = _describe(prediction, threshold, image[1])
        return described | {"computed_in": describe_computing(predictor.computed_in)}

    rows: list[dict[str, Any]] = []
    with _locked(folder):
        # an earlier prediction may have been killed
        if _is_ours(folder / TABLE):
            for place in {(folder / name).parent for _, name in images}:
                remove_leftovers(place)
        _write_table(folder, rows)
        for (path, _), row in zip(images, predict_batches(predictor, images, load, finish), strict=True):
            rows.append(dict.fromkeys(COLUMNS, "") | {"file": printable(str(path))} | row)
            progress()
        return _write_table(folder, rows)


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
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    with replacing(folder / TABLE) as temporary:
        harmless_table(table).to_csv(temporary, index=False, lineterminator="\n")
    return table


def _describe(prediction: Prediction, threshold: float | None, name: str) -> dict[str, Any]:
    mask, score = prediction.mask, prediction.malignant_score
    return {
        "width": mask.shape[1],
        "height": mask.shape[0],
        "predicted_label": prediction.label,
        "malignant_score": round(score, 6),
        "called_malignant": "" if threshold is None else ("yes" if score >= threshold else "no"),
        f"{BENIGN.name}_area": round(float(np.mean(mask == BENIGN.index)), 6),
        f"{MALIGNANT.name}_area": round(float(np.mean(mask == MALIGNANT.index)), 6),
        **dict(zip(("mask", "overlay"), _pictures(name), strict=True)),
    }


def _write_pictures(folder: Path, name: str, image: np.ndarray, mask: np.ndarray) -> None:
    from bus_smp.figures.overlay import overlay

    coloured, laid_over = _pictures(name)
    write_mask(folder / coloured, mask)
    write_png(folder / laid_over, overlay(image, mask))
