"""Looks at every file of a data set once and writes down what it finds; decides nothing.

What follows from the findings (who is excluded, who belongs together) is in ``policies.py``.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from bus_smp.classes import LABELS
from bus_smp.data.images import image_size, pixel_sha256, read_image, read_mask
from bus_smp.data.manifest_checks import CLIMBING
from bus_smp.data.near_duplicates.search import Fingerprint, fingerprint
from bus_smp.data.near_duplicates.shelf import Shelf
from bus_smp.data.sources import Record
from bus_smp.data.sources._tree import natural_key
from bus_smp.errors import ImageError
from bus_smp.system.threads import read_ahead
from bus_smp.text import printable

# Decoding, resizing and hashing leave the interpreter lock; more threads than this only queue.
THREADS = 4

# What a flag means, in the order in which a report lists them. `duplicate:<id>` carries a name.
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
    "label_from_mask": "labels taken from the mask, no table says them",
    "label_conflict": "same picture under different labels",
    "duplicate": "images with a duplicate",
    "doppler": "colour Doppler overlays",
    "combined": "two pictures side by side",
    "marks": "calipers or text drawn into the image",
}

Progress = Callable[[Iterable, int, str], Iterable]


@dataclass(frozen=True)
class Look:
    """One record after all its files were decoded.

    ``width``, ``height`` in pixels (0 where there is no readable image); ``sha256`` of the pixels;
    ``excluded`` is why the row cannot be used as it stands, whatever the policies say.
    """

    record: Record
    mask_format: str = ""
    width: int = 0
    height: int = 0
    sha256: str = ""
    print: Fingerprint | None = None
    flags: tuple[str, ...] = ()
    excluded: str = ""
    mismatch: str = ""


@dataclass(frozen=True)
class Survey:
    """All looks at one data set, in natural order of the image ids.

    ``split_given``: every record brings its split along. ``about``: title, licence, ... for the sidecar.
    """

    dataset: str
    root: Path
    looks: list[Look]
    split_given: bool = False
    about: dict = field(default_factory=dict)


def in_turn(items: Iterable, total: int, text: str) -> Iterable:
    """The progress display of those who want none."""
    return items


def survey(
    dataset: str, records: Iterable[Record], root: Path, progress: Progress = in_turn, **facts: object
) -> Survey:
    """Decode every image and mask of ``records`` once, in a few threads.

    The result does not depend on the order of ``records``.

    Raises:
        DataError: what the source raises while it lists the records.
    """
    ordered = sorted(records, key=lambda r: (natural_key(r.image_id), r.image, r.masks))
    shelf = Shelf()
    looks = read_ahead(lambda record: _look(record, root, shelf), ordered, threads=THREADS)
    return Survey(dataset, root, list(progress(looks, len(ordered), dataset)), **facts)


def fingerprints(
    paths: list[Path], progress: Progress = in_turn, text: str = ""
) -> list[tuple[str, Fingerprint] | None]:
    """Pixel sha256 and fingerprint of image files; None where one cannot be read (any more)."""

    shelf = Shelf()

    def one(path: Path) -> tuple[str, Fingerprint] | None:
        try:
            image = read_image(path)
        except ImageError:
            return None
        return pixel_sha256(image), fingerprint(image).on(shelf)

    return list(progress(read_ahead(one, paths, threads=THREADS), len(paths), text))


def _look(record: Record, root: Path, shelf: Shelf) -> Look:
    if wrong := [name for name in (record.image, *record.masks) if not _can_be_listed(name)]:
        # kept, but without paths: what stands in a manifest must be there under that very name
        listed = replace(record, image="", masks=(), mask_format="", image_id=printable(record.image_id))
        listed = replace(listed, patient_id=printable(record.patient_id))
        reason = f"unreadable: the name {printable(wrong[0])} cannot stand in a manifest; rename the file"
        return _add(Look(listed, flags=record.flags, excluded=record.excluded), "unreadable", reason)
    look = Look(record, mask_format=record.mask_format, flags=record.flags, excluded=record.excluded)
    if not record.image:
        look = _add(look, "no_image", "mask without image")
    elif not record.masks and (record.label != "normal" or "without mask" in record.excluded):
        look = _add(look, "no_mask", "image without mask")
    if len(record.masks) > 1:
        look = _add(look, "several_masks")
    if record.image:
        try:
            image = read_image(root / record.image)
        except ImageError as error:
            look = _add(look, "unreadable", f"unreadable: {_told(error, root, record.image)}")
        else:
            look = replace(
                look,
                height=image.shape[0],
                width=image.shape[1],
                sha256=pixel_sha256(image),
                print=fingerprint(image).on(shelf),
            )
    return _look_at_masks(look, root)


def _can_be_listed(name: str) -> bool:
    return printable(name) == name and "|" not in name and not re.search(CLIMBING, name)


def _look_at_masks(look: Look, root: Path) -> Look:
    record = look.record
    paths = [root / mask for mask in record.masks]
    worst = 0  # the worst class that any mask marks
    full = False
    sizes = []
    if not look.mask_format:
        try:
            look = replace(look, mask_format=guess_mask_format(paths))
        except ImageError as error:
            return _add(look, "unreadable", f"unreadable: {_told(error, root, *record.masks)}")
    for path in paths:
        try:
            # a lesion on a normal image is a finding here, not an error
            label = "benign" if record.label not in LABELS[1:] else record.label
            mask = read_mask([path], look.mask_format, label)
        except ImageError as error:
            problem = "mask_colours" if _decodes(path) else "unreadable"
            reason = "unlisted mask colour" if problem == "mask_colours" else "unreadable"
            look = _add(look, problem, f"{reason}: {_told(error, root, *record.masks)}")
            continue
        sizes.append(mask.shape)
        full = full or bool(mask.all())
        worst = max(worst, int(mask.max(initial=0)))
    if len(sizes) < len(paths):
        return look  # what cannot be read cannot be compared

    wrong = [s for s in sizes if s != (look.height, look.width)]
    if wrong and look.width:
        text = f"size mismatch: mask {wrong[0][1]}x{wrong[0][0]}, image {look.width}x{look.height}"
        look = replace(_add(look, "size_mismatch"), mismatch=text)
    if not sizes or record.label not in LABELS:
        return look
    if worst == 0 and record.label != "normal":
        return _add(look, "empty_mask", f"empty mask: the image is labelled {record.label}")
    if full:
        look = _add(look, "full_mask", "full mask: every pixel is marked")
    marked = LABELS[worst]
    if marked != record.label:
        marked = "a lesion" if look.mask_format == "binary" else f"a {marked} lesion"
        look = _add(
            look, "label_mismatch", f"label mismatch: labelled {record.label}, but the mask marks {marked}"
        )
    return look


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


def _add(look: Look, flag: str, reason: str = "") -> Look:
    flags = look.flags if flag in look.flags else (*look.flags, flag)
    return replace(look, flags=flags, excluded=look.excluded or reason)


def _decodes(path: Path) -> bool:
    try:
        image_size(path)
    except ImageError:
        return False
    return True


def _told(error: ImageError, root: Path, *files: str) -> str:
    """The error's text with files named as the manifest names them, so that it is the same on every machine."""
    text = error.what
    for file in files:
        text = text.replace(printable(str(root / file)), file)
    return " ".join(text.split())
