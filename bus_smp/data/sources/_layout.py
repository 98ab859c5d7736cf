"""Read from folders and names, by rule: image or mask, split, label, and which masks belong to an image.

A folder's name is read word by word ("train_masks", "imagesTr", "Benign_mask"). What says none of this is left over;
in an export by patients it is the patient.
"""

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from bus_smp.classes import LABELS
from bus_smp.data.images import looks_like_mask, read_image
from bus_smp.data.sources import Record
from bus_smp.data.sources._tree import entries, image_files, key
from bus_smp.data.splits import SPLITS, parse_split
from bus_smp.errors import ImageError

# Folders below the root that are looked into.
_DEPTH = 6

_IMAGE = (
    "image images img imgs original originals picture pictures scan scans bild bilder input inputs jpegimages"
)
_MASK = (
    "mask masks msk msks maske masken gt groundtruth truth label labels seg segs segmentation segmentations annotation "
    "annotations contour contours roi rois target targets segmentationclass"
)
# Words of mask files that say nothing in a folder's name.
_LESION = "lesion lesions tumor tumour finding object"
_SPLIT = "train training val valid validation dev test testing"
_LABELS = {"healthy": "normal", "malign": "malignant", **{label: label for label in LABELS}}
_WORDS: dict[str, tuple[str, str]] = {
    **dict.fromkeys(_IMAGE.split(), ("role", "image")),
    **dict.fromkeys(_MASK.split(), ("role", "mask")),
    **{word: ("split", parse_split(word)) for word in _SPLIT.split()},
    **{word: ("label", label) for word, label in _LABELS.items()},
    "all": ("", ""), "ground": ("", ""), "png": ("", ""),
}  # fmt: skip
# Words that say something at the end of another one only: nnU-Net's imagesTr and labelsTs.
_ENDINGS = {**_WORDS, "tr": ("split", "train"), "ts": ("split", "test")}


@dataclass(frozen=True)
class Placed:
    """A file and what its folders say. role: image, mask or ""; split, label: "" where nothing says so.

    rest: names of folders that say none of this, from the root down.
    """

    path: Path
    role: str = ""
    split: str = ""
    label: str = ""
    rest: tuple[str, ...] = ()


def place_files(
    root: Path, labels: Mapping[str, str] | None = None, everywhere: bool = False
) -> list[Placed]:
    """The image files in ``root`` and below it, folder by folder, each in natural order.

    Args:
        labels: a user's words for labels, in small letters.
        everywhere: False looks only into folders of which every word is known.
    """
    return list(_place(root, Placed(root), labels or {}, everywhere, _DEPTH))


def _place(
    folder: Path, above: Placed, labels: Mapping[str, str], everywhere: bool, depth: int
) -> Iterator[Placed]:
    yield from (replace(above, path=path) for path in image_files(folder))
    if not depth:
        return
    for child in entries(folder):
        if not child.is_dir():
            continue
        says = read_name(child.name, labels)
        numbered = above != Placed(above.path) and child.name.isdecimal()
        if says is None and not (everywhere or numbered):
            continue
        # What CVAT draws once more, an object per colour.
        if key(child.name) == "segmentationobject":
            continue
        found = says or {}
        rest = above.rest if says else (*above.rest, child.name)
        role, split = found.get("role", above.role), found.get("split", above.split)
        place = Placed(child, role, split, found.get("label", above.label), rest)
        yield from _place(child, place, labels, everywhere, depth - 1)


def read_name(name: str, labels: Mapping[str, str]) -> dict[str, str] | None:
    """What a folder's name says: role, split, label; None where a word of it is unknown."""
    if key(name) in labels:
        return {"label": labels[key(name)]}
    meanings: dict[str, str] = {}
    for word in re.findall(r"[^\W\d_]+", key(name)):
        pairs = _divided(word)
        if not pairs:
            return None
        meanings.update({kind: value for kind, value in pairs if kind})
    return meanings or None


@cache
def _divided(word: str) -> tuple[tuple[str, str], ...]:
    """The meanings of a word, or of the two words that it is made of; () for an unknown one."""
    if word in _WORDS:
        return (_WORDS[word],)
    cuts = range(2, len(word) - 1)
    return next(
        ((_WORDS[word[:i]], _ENDINGS[word[i:]]) for i in cuts if word[:i] in _WORDS and word[i:] in _ENDINGS),
        (),
    )


def group_files(files: Sequence[Placed]) -> dict[tuple[str, str], tuple[list[Path], list[Path]]]:
    """(split, label) -> image and mask files, sorted by label and split; files of neither role are left out."""
    groups: dict[tuple[str, str], tuple[list[Path], list[Path]]] = {}
    for file in sorted(files, key=lambda f: (f.label, [*SPLITS, ""].index(f.split))):
        images, masks = groups.setdefault((file.split, file.label), ([], []))
        if file.role:
            (masks if file.role == "mask" else images).append(file.path)
    return groups


def part_folders(root: Path) -> list[Path]:
    """``root``, and its subfolders that are named after a split."""
    below = [
        child for child in entries(root) if child.is_dir() and "split" in (read_name(child.name, {}) or {})
    ]
    return [root, *below]


def with_own_ids(records: Sequence[Record]) -> list[Record]:
    """The records with the split before an id that another part has too."""
    taken: set[str] = set()
    found = []
    for record in records:
        if key(record.image_id) in taken and record.split:
            record = replace(record, image_id=f"{record.split} - {record.image_id}")
        taken.add(key(record.image_id))
        found.append(record)
    return found


def is_nnunet(folder: Path) -> bool:
    """Whether ``folder`` itself is laid out as nnU-Net asks."""
    names = {key(path.name) for path in entries(folder)}
    return {"imagestr", "labelstr"} <= names


# Pairing of any tree, whose names follow no data set's rule.


@dataclass(frozen=True)
class LaidOut:
    """An image, its masks, and what the folders and its name say; "" where nothing does."""

    image: Path
    masks: tuple[Path, ...]
    split: str
    label: str
    rest: tuple[str, ...]


@dataclass(frozen=True)
class Layout:
    """What a tree holds. unmatched: masks of which no image, or more than one, bears the name.

    left_out: further channels of nnU-Net's images.
    """

    images: list[LaidOut]
    unmatched: list[Path]
    left_out: list[Path]


def read_layout(root: Path, labels: Mapping[str, str] | None = None) -> Layout:
    """Pair the images and masks of a tree by the names of its folders and files.

    A mask belongs to the image of its name in the same place; words such as "mask" and a number behind the name (one
    file per lesion) do not count. Where no name says what a mask is, its few grey values do.
    """
    placed = place_files(root, labels, everywhere=True)
    nnunet = is_nnunet(root)
    left_out = [
        f.path
        for f in placed
        if nnunet and f.role == "image" and re.search(r"_0*[1-9]\d*$", _channel(f.path))
    ]
    placed = _with_roles([f for f in placed if f.path not in set(left_out)])
    images = _without_shared([f for f in placed if f.role == "image"])
    masks = _without_shared([f for f in placed if f.role == "mask"])

    by_name: dict[object, list[Placed]] = {}
    for image in images:
        for name in _image_names(image.path, nnunet):
            by_name.setdefault(name, []).append(image)
    owned: dict[Path, list[Path]] = {image.path: [] for image in images}
    unmatched = []
    for mask in masks:
        owner = _find_owner(mask, by_name)
        if owner is None:
            unmatched.append(mask.path)
        else:
            owned[owner.path].append(mask.path)
    found = [
        LaidOut(i.path, tuple(owned[i.path]), i.split, i.label or _label_of(i.path, labels or {}), i.rest)
        for i in images
    ]
    return Layout(found, unmatched, left_out)


def _channel(path: Path) -> str:
    """nnU-Net's number of a channel at the end of an image's stem, as "_0000"; "" where there is none."""
    found = re.search(r"_\d{4}$", path.stem)
    return found[0] if found else ""


def tokens(stem: str) -> tuple[str, ...]:
    """The words and numbers of a name, without those that only say image or mask: "IMG_007 (2)" -> 007, 2."""
    kinds = (*_IMAGE.split(), *_MASK.split(), *_LESION.split())
    return tuple(part for part in re.findall(r"[^\W\d_]+|\d+", key(stem)) if part not in kinds)


def _image_names(path: Path, nnunet: bool) -> list[object]:
    stem = path.stem[: len(path.stem) - len(_channel(path))] if nnunet else path.stem
    return [key(stem), tokens(stem), _numbers(tokens(stem))]


def _numbers(parts: Sequence[str]) -> tuple[str | int, ...]:
    """The parts with numbers as such: 007 and 7 are one."""
    return tuple(int(part) if part.isdecimal() else part for part in parts)


def _find_owner(mask: Placed, by_name: Mapping[object, Sequence[Placed]]) -> Placed | None:
    """The image of a mask; None for none, or several that fit equally well."""
    parts = tokens(mask.path.stem)
    lesion = parts[:-1] if parts and parts[-1].isdecimal() else None
    # Its own name, without the words for masks, without a number of the lesion, without leading zeros.
    for name in (key(mask.path.stem), parts, lesion, _numbers(parts)):
        fitting = [image for image in by_name.get(name, ()) if name is not None and _fit(mask, image)]
        near = [image for image in fitting if image.rest == mask.rest] or fitting
        near = [image for image in near if image.path.parent == mask.path.parent] or near
        if near:
            return near[0] if len({image.path for image in near}) == 1 else None
    return None


def _fit(mask: Placed, image: Placed) -> bool:
    """Whether the folders of the two do not contradict each other."""
    for one, other in ((mask.split, image.split), (mask.label, image.label)):
        if one and other and one != other:
            return False
    return set(mask.rest) <= set(image.rest) or set(image.rest) <= set(mask.rest)


def _with_roles(placed: Sequence[Placed]) -> list[Placed]:
    """Every file as image or mask: by its folder, else by its name, else by its grey values."""
    plain = {tokens(f.path.stem) for f in placed if not _says(f.path.stem, _MASK + " " + _LESION)}
    known = []
    for file in placed:
        role = file.role or ("mask" if _is_mask_name(file.path.stem, plain) else "")
        known.append(replace(file, role=role))
    if not any(file.role == "mask" for file in known):
        groups: dict[tuple[Path, str], list[Placed]] = {}
        for file in known:
            groups.setdefault((file.path.parent, file.path.suffix.lower()), []).append(file)
        drawn = {
            place
            for place, files in groups.items()
            if not any(file.role for file in files)
            and all(_is_drawn(f.path) for f in files[:: max(1, len(files) // 3)])
        }
        known = [
            replace(f, role="mask") if (f.path.parent, f.path.suffix.lower()) in drawn else f for f in known
        ]
    return [replace(file, role=file.role or "image") for file in known]


def _is_mask_name(stem: str, plain: set[tuple[str, ...]]) -> bool:
    """Whether the name says mask: by a word for masks, or one for lesions where its image (in ``plain``) is there too."""
    parts = tokens(stem)
    return _says(stem, _MASK) or (_says(stem, _LESION) and bool({parts, parts[:-1]} & plain))


def _says(stem: str, words: str) -> bool:
    return not set(words.split()).isdisjoint(re.findall(r"[^\W\d_]+", key(stem)))


def _is_drawn(path: Path) -> bool:
    with contextlib.suppress(ImageError):
        return looks_like_mask(read_image(path), named=False)
    return False


def _without_shared(files: Sequence[Placed]) -> list[Placed]:
    """The files without the folders that all of them lie in: those tell nothing apart."""
    rests = [file.rest for file in files]
    while rests and all(rests) and len({rest[0] for rest in rests}) == 1:
        rests = [rest[1:] for rest in rests]
    return [replace(file, rest=rest) for file, rest in zip(files, rests, strict=True)]


def _label_of(path: Path, labels: Mapping[str, str]) -> str:
    """The one label that the file's name says; "" for none or several."""
    words = re.findall(r"[^\W\d_]+", key(path.stem))
    found = {labels.get(word) or _LABELS.get(word) for word in words} - {None}
    return str(found.pop()) if len(found) == 1 else ""
