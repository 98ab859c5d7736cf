"""The known data sets, one module each: the folder is the registry.

A source module holds ``NAME``, ``TITLE``, ``LAYOUT``, ``CITE``, ``LICENCE``, ``URL``, ``OFFICIAL_TEST`` and two functions:
``looks_like(folder)``, a cheap test that this very folder is the data set, and ``records(root)``,
which yields one ``Record`` per image in natural order without decoding images.
"""

import importlib
import pkgutil
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from bus_smp.data.exclusions import Problem
from bus_smp.data.sources._tree import entries, names
from bus_smp.errors import DataError

# Also one volume of several.
_ARCHIVE = re.compile(r"\.(zip|rar|7z|tar|tgz|tbz2?|txz|(tar|zip)\.\w+|7z\.\d+|z\d\d)$", re.IGNORECASE)
MAX_DEPTH = 4  # folders below the given one; zip inside zip inside a download folder is three


@dataclass(frozen=True)
class Record:
    """One image of a data set as its files and tables describe it, before any pixel is read.

    Paths are posix and relative to the data set's root; ``image`` is "" where there is no image
    file. ``label`` is normal, benign or malignant, and "" only where it is unknown, in which case
    ``problems`` says why. ``problems`` lists what speaks against using the image, the most important first.
    ``split`` is train, val or test where a table or the folders give it, else "". ``official_split`` is "test" or
    "train" where the authors published a split, else "". ``pixel_mm``: side of a pixel in mm as text,
    "" where it is not known. ``normalised_id``: the patient's id without differences in spelling, "" where ids are used as they are written.
    """

    image_id: str
    image: str
    masks: tuple[str, ...]
    mask_format: str
    label: str
    patient_id: str
    patient_known: bool = True
    flags: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()
    split: str = ""
    official_split: str = ""
    pixel_mm: str = ""
    normalised_id: str = ""


def source_names() -> list[str]:
    """Names of the known data sets, as typed on the command line ("bus-uclm")."""
    found = (module.name for module in pkgutil.iter_modules(__path__))
    return sorted(name.replace("_", "-") for name in found if not name.startswith("_"))


def load_source(name: str) -> ModuleType:
    """Return the source module called ``name`` ("bus-uclm", in any case, also "bus_uclm").

    Raises:
        DataError: if there is none.
    """
    known = name.strip().lower().replace("_", "-")
    if known not in source_names():
        raise DataError(f"unknown data set {name!r}", hint=f"known data sets: {', '.join(source_names())}")
    return importlib.import_module(f"{__name__}.{known.replace('-', '_')}")


def _below(folder: Path) -> Iterator[list[Path]]:
    """Yield the folders at depth 0, 1, ... MAX_DEPTH; the caller removes those not to descend into."""
    level, seen = [folder], {folder.resolve()}
    for _ in range(MAX_DEPTH + 1):
        yield level
        below = [child for parent in level for child in entries(parent) if child.is_dir()]
        level = []
        for child in below:
            if child.resolve() not in seen:  # a link to a folder already visited is no second data set
                seen.add(child.resolve())
                level.append(child)


def existing_folder(folder: Path) -> Path:
    """``folder`` as a path.

    Raises:
        DataError: if there is none, or an archive has the name.
    """
    folder = Path(folder)
    if folder.is_dir():
        return folder
    if folder.is_file():
        kind = "an archive" if _ARCHIVE.search(folder.name) else "a file"
        raise DataError(
            f"{folder}: is {kind}, not a folder", hint="unpack it and name the folder it unpacks to"
        )
    raise DataError(
        f"{folder}: no such folder", hint="name the data set's folder, or one above it, with --root"
    )


def find_root(source: ModuleType, folder: Path) -> Path:
    """Find the data set's own folder: ``folder`` itself or one up to ``MAX_DEPTH`` below it.

    Raises:
        DataError: if there is none, or more than one equally near.
    """
    folder = existing_folder(folder)
    for level in _below(folder):
        found = [candidate for candidate in level if source.looks_like(candidate)]
        if len(found) > 1:
            raise DataError(
                f"{folder}: {len(found)} folders below it look like {source.TITLE}: {', '.join(map(str, found))}",
                hint=f'name the one to use: bus-smp make-manifest --dataset {source.NAME} --root "{found[0]}"',
            )
        if found:
            return found[0]
    absolute = folder.resolve()
    if source.looks_like(absolute.parent):
        hint = f'its parent does: bus-smp make-manifest --dataset {source.NAME} --root "{absolute.parent}"'
    elif others := find_known(folder):
        module, root = others[0]
        hint = f'found {module.TITLE} instead: bus-smp make-manifest --dataset {module.NAME} --root "{root}"'
    elif archives := packed(folder):
        hint = f"if it is in {archives[0]}, unpack that; then run the same command again"
    else:
        hint = (
            f"download it from {source.URL}, then: bus-smp make-manifest --dataset {source.NAME} --root DIR; "
            f'your own images in any layout: bus-smp make-manifest --folder "{folder}"'
        )
    raise DataError(
        f"{folder}: neither it nor a folder below it looks like {source.TITLE}; "
        f"expected {source.LAYOUT}; found {names(folder)}",
        hint=hint,
    )


def packed(folder: Path) -> list[Path]:
    """Archives in ``folder`` or below it, the nearest first."""
    levels = _below(existing_folder(folder))
    return [
        path
        for level in levels
        for parent in level
        for path in entries(parent)
        if _ARCHIVE.search(path.name) and path.is_file()
    ]


def find_known(folder: Path) -> list[tuple[ModuleType, Path]]:
    """All known data sets in ``folder`` or up to ``MAX_DEPTH`` below it, as (source module, root).

    The nearest come first. A data set that is there twice is listed twice.
    """
    modules = [load_source(name) for name in source_names()]
    found = []
    for level in _below(existing_folder(folder)):
        for candidate in list(level):
            matches = [module for module in modules if module.looks_like(candidate)]
            found += [(module, candidate) for module in matches]
            if matches:
                level.remove(candidate)
    return found
