"""Read every file of a data set once and record what is found.

What follows from the findings is decided elsewhere: ``rows.py`` excludes images, ``copies.py`` forms groups.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from bus_smp.classes import LABELS
from bus_smp.data.exclusions import Problem
from bus_smp.data.images import image_size, pixel_sha256, read_image, read_mask
from bus_smp.data.manifest import record_root
from bus_smp.data.manifest_checks import CLIMBING
from bus_smp.data.near_duplicates.search import Fingerprint, fingerprint
from bus_smp.data.sources import Record, find_known, find_root, load_source, packed, source_names
from bus_smp.data.sources._tree import natural_key
from bus_smp.errors import DataError, ImageError
from bus_smp.system.threads import read_ahead
from bus_smp.text import printable

# Decoding, resizing and hashing leave the interpreter lock; more threads than this only queue.
THREADS = 4

# What a flag means, in the order in which a report lists them. The flag `duplicate:<id>` carries a name.
FLAGS = {
    "unreadable": "files that cannot be read",
    "no_mask": "images without mask",
    "no_image": "masks (or table rows) without image",
    "size_mismatch": "masks of another size than their image",
    "mask_colours": "masks with unlisted colours or values",
    "label_mismatch": "labels that contradict the mask",
    "empty_mask": "lesion labels with an empty mask",
    "full_mask": "masks that mark every pixel",
    "several_masks": "images with several masks, OR-ed",
    "copy": "download copies such as ' (1).png'",
    "label_from_mask": "labels taken from the mask, because no table has them",
    "label_conflict": "same picture under different labels",
    "duplicate": "images with a duplicate",
    "doppler": "colour Doppler overlays",
    "combined": "two pictures side by side",
    "marks": "calipers or text drawn into the image",
}

Progress = Callable[[Iterable, int, str], Iterable]


@dataclass(frozen=True)
class AuditedImage:
    """One record after all its files were decoded.

    ``width``, ``height`` in pixels, 0 where there is no readable image. ``sha256`` of the decoded pixels.
    ``problems``: those of the record, then those found here; the first that the policy does not waive excludes
    the image.
    """

    record: Record
    mask_format: str = ""
    width: int = 0
    height: int = 0
    sha256: str = ""
    fingerprint: Fingerprint | None = None
    flags: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True)
class AuditedFolder:
    """All images of one data set, in natural order of their ids.

    ``split_given``: what gives every image its split ("the table", "the folders"); "" for nothing. ``about``: title, licence and so on, for the sidecar.
    """

    dataset: str
    root: Path
    images: list[AuditedImage]
    split_given: str = ""
    about: dict = field(default_factory=dict)


def no_progress(items: Iterable, total: int, text: str) -> Iterable:
    """Show no progress: the items as they are."""
    return items


def audit_folder(
    dataset: str, records: Iterable[Record], root: Path, progress: Progress = no_progress, **facts: Any
) -> AuditedFolder:
    """Decode every image and mask of ``records`` once, in a few threads.

    The result does not depend on the order of ``records``. ``facts``: further fields of the result.

    Raises:
        DataError: what the source raises while it lists the records.
    """
    ordered = sorted(records, key=lambda r: (natural_key(r.image_id), r.image, r.masks))
    images = read_ahead(lambda record: _audit_record(record, root), ordered, threads=THREADS)
    return AuditedFolder(dataset, root, list(progress(images, len(ordered), dataset)), **facts)


def audit_known(
    names: Sequence[str],
    root: Path,
    out: Path,
    progress: Progress = no_progress,
    announce: Callable[[str], object] = lambda text: None,
) -> list[AuditedFolder]:
    """Find and audit known data sets in ``root`` or below it.

    Args:
        names: the data sets to find; none for all that are there.
        out: folder of the manifests, which must be able to record the data sets' folders.
        announce: called with a line for each data set that is found.

    Raises:
        DataError: if none is found, a named one is missing, or one is there twice.
        ManifestError: if the name of a folder is not UTF-8.
    """
    if names:
        sources = {source.NAME: source for source in map(load_source, names)}
        found = [(source, find_root(source, root)) for source in sources.values()]
    else:
        found = find_known(root)
    if not found:
        archives = packed(root)
        raise DataError(
            f"{root}: no known data set in it or below it ({', '.join(source_names())})",
            hint=f"unpack {archives[0]}, then run the same command again"
            if archives
            else "name the folder with --root DIR, or describe your own images in a table: --csv FILE",
        )
    # A folder that cannot be recorded is refused now, not after all images were read.
    for _, place in found:
        record_root(place, out)
    audited = []
    for source, place in found:
        places = [str(other_place) for other, other_place in found if other is source]
        if len(places) > 1:
            raise DataError(
                f"{root}: {source.TITLE} is there {len(places)} times: {', '.join(places)}",
                hint=f'name the one to use: bus-smp make-manifest --dataset {source.NAME} --root "{places[0]}"',
            )
        announce(f"{source.TITLE}: {place}")
        about = {
            "name": source.NAME, "title": source.TITLE, "cite": source.CITE,
            "licence": source.LICENCE, "url": source.URL,
        }  # fmt: skip
        audited.append(audit_folder(source.NAME, source.records(place), place, progress, about=about))
    return audited


def fingerprint_files(
    paths: list[Path], progress: Progress = no_progress, text: str = ""
) -> list[tuple[str, Fingerprint] | None]:
    """Pixel sha256 and fingerprint of image files; None for a file that cannot be read."""

    def one(path: Path) -> tuple[str, Fingerprint] | None:
        try:
            image = read_image(path)
        except ImageError:
            return None
        return pixel_sha256(image), fingerprint(image)

    return list(progress(read_ahead(one, paths, threads=THREADS), len(paths), text))


def _audit_record(record: Record, root: Path) -> AuditedImage:
    if wrong := [name for name in (record.image, *record.masks) if not _can_be_listed(name)]:
        # The row is kept without paths: a path in a manifest must name a file exactly.
        listed = replace(record, image="", masks=(), mask_format="", image_id=printable(record.image_id))
        listed = replace(listed, patient_id=printable(record.patient_id))
        words = f"the name {printable(wrong[0])} cannot stand in a manifest; rename the file"
        image = AuditedImage(listed, flags=record.flags, problems=record.problems)
        return _found(image, "unreadable", Problem("unreadable", words))
    image = AuditedImage(record, mask_format=record.mask_format, flags=record.flags, problems=record.problems)
    needs_mask = record.label != "normal" or any(problem.code == "no-mask" for problem in record.problems)
    if not record.image:
        image = _found(image, "no_image", Problem("no-image", "mask without image"))
    elif not record.masks and needs_mask:
        image = _found(image, "no_mask", Problem("no-mask"))
    if len(record.masks) > 1:
        image = _found(image, "several_masks")
    if record.image:
        try:
            pixels = read_image(root / record.image)
        except ImageError as error:
            image = _found(image, "unreadable", Problem("unreadable", _named(error, root, record.image)))
        else:
            image = replace(
                image,
                height=pixels.shape[0],
                width=pixels.shape[1],
                sha256=pixel_sha256(pixels),
                fingerprint=fingerprint(pixels),
            )
    return _audit_masks(image, root)


def _can_be_listed(name: str) -> bool:
    return printable(name) == name and "|" not in name and not re.search(CLIMBING, name)


def _audit_masks(image: AuditedImage, root: Path) -> AuditedImage:
    record = image.record
    paths = [root / mask for mask in record.masks]
    # the worst class that any mask marks
    worst = 0
    full = False
    sizes = []
    if not image.mask_format:
        try:
            image = replace(image, mask_format=guess_mask_format(paths))
        except ImageError as error:
            problem = Problem("unreadable", _named(error, root, *record.masks))
            return _found(image, "unreadable", problem)
    for path in paths:
        try:
            # A lesion on a normal image is a finding here, not an error.
            label = "benign" if record.label not in LABELS[1:] else record.label
            mask = read_mask([path], image.mask_format, label)
        except ImageError as error:
            words = _named(error, root, *record.masks)
            if _decodes(path):
                image = _found(image, "mask_colours", Problem("mask-colours", words))
            else:
                image = _found(image, "unreadable", Problem("unreadable", words))
            continue
        sizes.append(mask.shape)
        full = full or bool(mask.all())
        worst = max(worst, int(mask.max(initial=0)))
    # What cannot be read cannot be compared.
    if len(sizes) < len(paths):
        return image

    wrong = [size for size in sizes if size != (image.height, image.width)] if image.width else []
    if wrong:
        image = _found(image, "size_mismatch")
    if sizes and record.label in LABELS:
        image = _compare_label(image, worst, full)
    if wrong:
        # Last, because it excludes only where nothing else does: --on-mismatch resize waives it.
        height, width = wrong[0]
        words = f"mask {width}x{height}, image {image.width}x{image.height}"
        image = _found(image, "size_mismatch", Problem("size-mismatch", words))
    return image


def _compare_label(image: AuditedImage, worst: int, full: bool) -> AuditedImage:
    """Compare the label with the worst class that the masks mark; ``full``: a mask marks every pixel."""
    label = image.record.label
    if worst == 0 and label != "normal":
        return _found(image, "empty_mask", Problem("empty-mask", f"the image is labelled {label}"))
    if full:
        image = _found(image, "full_mask", Problem("full-mask", "every pixel is marked"))
    marked = LABELS[worst]
    if marked != label:
        lesion = "a lesion" if image.mask_format == "binary" else f"a {marked} lesion"
        words = f"labelled {label}, but the mask marks {lesion}"
        image = _found(image, "label_mismatch", Problem("label-mismatch", words))
    return image


def guess_mask_format(paths: Sequence[Path]) -> str:
    """Format of an image's masks, by their pixels.

    ``color`` if any pixel is not grey; else ``binary`` if the values are 0 and 255 (or 0 and 1);
    else ``index``.
    """
    values: set[int] = set()
    for path in paths:
        rgb = read_image(path)
        if (rgb != rgb[..., :1]).any():
            return "color"
        values |= set(np.flatnonzero(np.bincount(rgb[..., 0].reshape(-1))).tolist())
    return "binary" if values <= {0, 255} or values <= {0, 1} else "index"


def _found(image: AuditedImage, flag: str, problem: Problem | None = None) -> AuditedImage:
    """The image with a flag, once, and a problem."""
    flags = image.flags if flag in image.flags else (*image.flags, flag)
    problems = image.problems if problem is None else (*image.problems, problem)
    return replace(image, flags=flags, problems=problems)


def _decodes(path: Path) -> bool:
    try:
        image_size(path)
    except ImageError:
        return False
    return True


def _named(error: ImageError, root: Path, *files: str) -> str:
    """The error's text with file names as in the manifest, so that it is the same on every machine."""
    text = error.what
    for file in files:
        text = text.replace(printable(str(root / file)), file)
    return " ".join(text.split())
