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
from bus_smp.data.dicom import View, are_alike
from bus_smp.data.exclusions import ANSWERS, CODES, Problem
from bus_smp.data.images import image_size, pixel_sha256, read_image, read_mask, read_picture, turn
from bus_smp.data.manifest import record_root
from bus_smp.data.manifest_checks import CLIMBING
from bus_smp.data.mask_doubts import (
    NO_ANSWERS,
    TENTATIVE,
    Marks,
    MaskAnswers,
    doubt_transparency,
    doubt_values,
    find_boxes,
    find_doubts,
    is_picture,
    measure_marks,
    thumbnail_of,
)
from bus_smp.data.near_duplicates.search import Fingerprint, fingerprint
from bus_smp.data.sources import Record, find_known, find_root, load_source, packed, source_names
from bus_smp.data.sources._tree import natural_key
from bus_smp.errors import DataError, ImageError
from bus_smp.system.threads import read_ahead
from bus_smp.text import counted, printable

# Decoding, resizing and hashing leave the interpreter lock; more threads than this only queue.
THREADS = 4

# The flag of a row whose masks are turned as EXIF turns the image, because they were drawn on the stored pixels.
MASK_TURNED = "mask_turned"

# The flag of a row whose mask is a rectangle, in a set where at least half are.
BOX_MASK = "box_mask"

# What a flag means, in the order in which a report lists them. The flag `duplicate:<id>` carries a name.
FLAGS = {
    "unreadable": "file that cannot be read",
    "no_mask": "image without mask",
    "no_image": "mask (or table row) without image",
    "size_mismatch": "mask of another size than its image",
    "mask_colours": "mask with unlisted colours or values",
    "label_mismatch": "label that contradicts the mask",
    "empty_mask": "lesion label with an empty mask",
    "full_mask": "mask that marks every pixel",
    **{
        code.replace("-", "_"): CODES[code]
        for code in ANSWERS
        if code not in ("size-mismatch", "mask-colours")
    },
    BOX_MASK: "mask that is a rectangle, as bounding boxes are: no outline to measure Dice against",
    MASK_TURNED: "mask turned like its picture (--mask-orientation stored)",
    "outside": "mask that marks pixels outside of the B-mode region (DICOM)",
    "several_masks": "image with several masks, joined",
    "copy": "download copy such as ' (1).png'",
    "label_from_mask": "label taken from the mask, because no table has them",
    "label_conflict": "same picture under different labels",
    "duplicate": "image with a duplicate",
    "doppler": "colour Doppler overlay",
    "combined": "two pictures side by side",
    "marks": "calipers or text drawn into the image",
}

Progress = Callable[[Iterable, int, str], Iterable]


@dataclass(frozen=True)
class AuditedImage:
    """One record after all its files were decoded.

    ``width``, ``height`` in pixels, 0 where there is no readable image. ``sha256`` of the decoded pixels.
    ``orientation``: what EXIF says, 1 for nothing. ``view``: of a DICOM file, the part that is shown. ``is_picture``:
    it has the greys of a picture. ``thumbnail``: uint8 (32, 32), grey. ``marks``: what the masks mark, None where they
    cannot be read.
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
    orientation: int = 1
    view: View | None = None
    is_picture: bool = True
    thumbnail: np.ndarray | None = None
    marks: Marks | None = None


@dataclass(frozen=True)
class AuditedFolder:
    """All images of one data set, in natural order of their ids.

    ``split_given``: what gives every image its split ("the table gives", "the folders give"); "" for nothing.
    ``about``: title, licence and so on, for the sidecar. ``answers``: what the user says about masks in doubt.
    """

    dataset: str
    root: Path
    images: list[AuditedImage]
    split_given: str = ""
    about: dict = field(default_factory=dict)
    answers: MaskAnswers = NO_ANSWERS


def no_progress(items: Iterable, total: int, text: str) -> Iterable:
    """Show no progress: the items as they are."""
    return items


def audit_folder(
    dataset: str,
    records: Iterable[Record],
    root: Path,
    progress: Progress = no_progress,
    answers: MaskAnswers = NO_ANSWERS,
    **facts: Any,
) -> AuditedFolder:
    """Decode every image and mask of ``records`` once, in a few threads, and doubt masks that look wrong.

    The result does not depend on the order of ``records``. ``facts``: further fields of the result.

    Raises:
        DataError: what the source raises while it lists the records.
    """
    ordered = sorted(records, key=lambda r: (natural_key(r.image_id), r.image, r.masks))

    def one(record: Record) -> tuple[AuditedImage, AuditedImage]:
        image = _audit_image(record, root)
        return image, _audit_masks(image, root, answers)

    read = list(progress(read_ahead(one, ordered, threads=THREADS), len(ordered), dataset))
    images = _doubt_masks([image for image, _ in read], [image for _, image in read], root, answers)
    return AuditedFolder(dataset, root, images, answers=answers, **facts)


def audit_known(
    names: Sequence[str],
    root: Path,
    out: Path,
    progress: Progress = no_progress,
    announce: Callable[[str], object] = lambda text: None,
    answers: MaskAnswers = NO_ANSWERS,
) -> list[AuditedFolder]:
    """Find and audit known data sets in ``root`` or below it.

    Args:
        names: the data sets to find; none for all that are there.
        out: folder of the manifests, which must be able to record the data sets' folders.
        announce: called with a line for each data set that is found.
        answers: what the user says about masks in doubt.

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
        links = "".join(f"\n  {name}: {load_source(name).URL}" for name in source_names())
        raise DataError(
            f"{root}: no known data set in it or below it; these are known:{links}",
            hint=f"unpack {archives[0]}, then run the same command again"
            if archives
            else f'name their folder with --root DIR; for your own images, draft a table: bus-smp make-manifest --folder "{root}"',
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
        records = list(source.records(place))
        images = [record for record in records if record.image]
        placed = sum(bool(record.split) for record in images)
        split_given = "the folders give" if images and placed == len(images) else ""
        if placed and not split_given:
            announce(
                f"{len(images) - placed} images lie outside the folders of splits, so these give no split"
            )
        audited.append(
            audit_folder(source.NAME, records, place, progress, answers, split_given=split_given, about=about)
        )
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


def _audit_image(record: Record, root: Path) -> AuditedImage:
    """The record's image; nothing of its masks is read yet."""
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
            picture = read_picture(root / record.image)
        except ImageError as error:
            image = _found(image, "unreadable", Problem("unreadable", _named(error.what, root, record.image)))
        else:
            pixels = picture.pixels
            image = replace(
                image,
                height=pixels.shape[0],
                width=pixels.shape[1],
                sha256=pixel_sha256(pixels),
                fingerprint=fingerprint(pixels),
                orientation=picture.orientation,
                view=picture.view,
                is_picture=is_picture(pixels),
                thumbnail=thumbnail_of(pixels),
            )
            if picture.view is not None:
                image = _with_facts(image, picture.view)
    return image


def _with_facts(image: AuditedImage, view: View) -> AuditedImage:
    """Add what a DICOM file says where the data set says nothing."""
    if view.pane.doppler:
        image = _found(image, "doppler")
    if image.record.pixel_mm or view.pane.pixel_mm is None or not are_alike(*view.pane.pixel_mm):
        return image
    return replace(image, record=replace(image.record, pixel_mm=f"{np.mean(view.pane.pixel_mm):.6g}"))


def _can_be_listed(name: str) -> bool:
    return printable(name) == name and "|" not in name and not re.search(CLIMBING, name)


def _audit_masks(image: AuditedImage, root: Path, answers: MaskAnswers) -> AuditedImage:
    record = image.record
    paths = [root / mask for mask in record.masks]
    if not image.mask_format:
        try:
            image = replace(image, mask_format=guess_mask_format(paths))
        except ImageError as error:
            problem = Problem("unreadable", _named(error.what, root, *record.masks))
            return _found(image, "unreadable", problem)
    # A lesion on a normal image is a finding here, not an error.
    label = "benign" if record.label not in LABELS[1:] else record.label
    numbered = False
    masks, doubt = _read_masks(paths, image.mask_format, label, image.is_picture)
    if doubt is None and record.label != LABELS[0] and not any(mask.any() for mask in masks):
        doubt = next(filter(None, map(doubt_transparency, paths)), None)
    elif doubt is None and image.width and not image.is_picture and _shows_mask(root / record.image, masks):
        doubt = Problem("exchanged", f"{record.image}: holds the mask where the picture should be")
    if doubt is not None and doubt.code != "unreadable":
        numbered = doubt.code == "lesion-numbers"
        if answer := answers.mask_format(doubt.code, image.mask_format):
            image = replace(_found(image, _flag(doubt)), mask_format=answer)
            masks, doubt = _read_masks(paths, answer, label, image.is_picture)
    if doubt is not None:
        image = _found(image, _flag(doubt), Problem(doubt.code, _named(doubt.words, root, *record.masks)))
        if doubt.code not in TENTATIVE:
            return image
        # The image is not used. What the mask seems to mark still shows whether it is inverted, too.
        masks, other = _read_masks(paths, TENTATIVE[doubt.code], label, image.is_picture)
        if other is not None:
            return image
    if (view := image.view) is not None:
        if outside := sum(view.count_outside(mask) for mask in masks):
            words = f"{counted(outside, 'pixel')} of the mask outside of the B-mode region"
            image = _found(image, "outside", Problem("other", words))
        masks = [view.crop(mask) for mask in masks]
    if image.width and masks and image.orientation != 1:
        image, masks = _orient(image, masks, answers)

    sizes = [mask.shape for mask in masks]
    wrong = [size for size in sizes if size != (image.height, image.width)] if image.width else []
    if wrong:
        image = _found(image, "size_mismatch")
    if sizes and len(set(sizes)) == 1:
        marked = np.maximum.reduce(masks)
        marks = measure_marks(
            marked, label=record.label, mask_format=image.mask_format, numbered=numbered,
            phash=image.fingerprint.phash if image.fingerprint else "", picture=image.thumbnail,
        )  # fmt: skip
        image = replace(image, marks=marks)
    # What cannot be read cannot be compared.
    if doubt is not None:
        return image
    if sizes and record.label in LABELS:
        worst = max(int(mask.max(initial=0)) for mask in masks)
        image = _compare_label(image, worst, any(bool(mask.all()) for mask in masks))
    if wrong:
        # Last, because it excludes only where nothing else does: --on-mismatch resize waives it.
        height, width = wrong[0]
        words = f"mask {width}x{height}, image {image.width}x{image.height}"
        image = _found(image, "size_mismatch", Problem("size-mismatch", words))
    return image


def _shows_mask(path: Path, masks: Sequence[np.ndarray]) -> bool:
    """Whether an image file holds the very mask that belongs to it."""
    try:
        shown = read_mask([path], guess_mask_format([path]), "benign") > 0
    except ImageError:
        return False
    same = [mask > 0 for mask in masks if mask.shape == shown.shape]
    return bool(same) and bool(shown.any()) and bool((np.any(same, axis=0) == shown).all())


def _read_masks(
    paths: Sequence[Path], mask_format: str, label: str, image_is_picture: bool
) -> tuple[list[np.ndarray], Problem | None]:
    """The masks, and the first reason why one of them cannot be read as ``mask_format``."""
    masks: list[np.ndarray] = []
    for path in paths:
        try:
            masks.append(read_mask([path], mask_format, label))
        except ImageError as error:
            return masks, (
                doubt_values(path, error.what, image_is_picture)
                if _decodes(path)
                else Problem("unreadable", error.what)
            )
    return masks, None


def _orient(
    image: AuditedImage, masks: list[np.ndarray], answers: MaskAnswers
) -> tuple[AuditedImage, list[np.ndarray]]:
    """Turn the masks as EXIF turns their picture, or doubt them; leave them where their shape shows that they fit."""
    height, width = masks[0].shape
    if image.orientation >= 5 and width != height and (width > height) == (image.width > image.height):
        return image, masks
    if answers.orientation == "shown":
        return _found(image, "orientation"), masks
    if answers.orientation == "stored":
        return _found(image, MASK_TURNED), [turn(mask, image.orientation) for mask in masks]
    words = f"EXIF orientation {image.orientation} turns the picture; the mask may be drawn on the picture before that"
    return _found(image, "orientation", Problem("orientation", words)), masks


def _doubt_masks(
    opened: Sequence[AuditedImage], images: list[AuditedImage], root: Path, answers: MaskAnswers
) -> list[AuditedImage]:
    """Compare the masks of a data set with each other; read those again that the user has answered for.

    Args:
        opened: the same images as ``images``, before their masks were read.
    """
    answered: set[tuple[int, str]] = set()
    while True:
        again = {}
        doubts = find_doubts([image.marks for image in images])
        for j, found in doubts.items():
            for problem in found:
                mask_format = answers.mask_format(problem.code, images[j].mask_format)
                if mask_format and (j, problem.code) not in answered:
                    again[j] = (problem, mask_format)
                    break
        if not again:
            break
        for j, (problem, mask_format) in again.items():
            answered.add((j, problem.code))
            flags = [flag for flag in images[j].flags if flag.replace("_", "-") in ANSWERS]
            image = _audit_masks(replace(opened[j], mask_format=mask_format), root, answers)
            for flag in (*flags, _flag(problem)):
                image = _found(image, flag)
            images[j] = image
    for j in find_boxes([image.marks for image in images]):
        images[j] = _found(images[j], BOX_MASK)
    for j, found in doubts.items():
        known = len(opened[j].problems)
        for problem in found:
            image = _found(images[j], _flag(problem))
            if problem.code not in answers.accept:
                # In front of what a wrong mask says about its label, behind what the file itself says.
                behind = known + sum(p.code in TENTATIVE for p in image.problems[known:])
                problems = (*image.problems[:behind], problem, *image.problems[behind:])
                image = replace(image, problems=problems)
            images[j] = image
    return images


def _flag(problem: Problem) -> str:
    return problem.code.replace("-", "_")


def _compare_label(image: AuditedImage, worst: int, full: bool) -> AuditedImage:
    """Compare the label with the worst class that the masks mark; ``full``: a mask marks every pixel."""
    label = image.record.label
    if worst == 0 and label != "normal":
        return _found(image, "empty_mask", Problem("empty-mask", f"the image is labelled {label}"))
    if full:
        words = "every pixel is marked; the background must be black, or 0"
        image = _found(image, "full_mask", Problem("full-mask", words))
    marked = LABELS[worst]
    if marked != label:
        lesion = "a lesion" if image.mask_format == "binary" else f"a {marked} lesion"
        words = f"labelled {label}, but the mask marks {lesion}"
        image = _found(image, "label_mismatch", Problem("label-mismatch", words))
    return image


def guess_mask_format(paths: Sequence[Path]) -> str:
    """Format of an image's masks, by their pixels.

    ``color`` if any pixel is not grey; ``index`` if the values are 0, 1 and 2; else ``binary``, which only 0 and 255
    (or 0 and 1) are.
    """
    values: set[int] = set()
    for path in paths:
        rgb = read_image(path)
        if (rgb != rgb[..., :1]).any():
            return "color"
        values |= set(np.flatnonzero(np.bincount(rgb[..., 0].reshape(-1))).tolist())
    return "index" if 2 in values and values <= {0, 1, 2} else "binary"


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


def _named(text: str, root: Path, *files: str) -> str:
    """An error's text with file names as in the manifest, so that it is the same on every machine."""
    for file in files:
        text = text.replace(printable(str(root / file)), file)
    return " ".join(text.split())
