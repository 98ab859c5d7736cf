"""BUSI (Breast Ultrasound Images): 780 images, normal, benign and malignant, with binary masks.

Layout: ``benign/benign (1).png`` with ``benign (1)_mask.png`` and, for further lesions, ``benign (1)_mask_1.png``
and so on; ``malignant/`` and ``normal/`` likewise. The folder is the label, else the name. Copies in circulation have
``train/``, ``val/`` and ``test/``, ``images/`` and ``masks/`` above or below these folders, or all files in one. Masks are black and white
(1-bit, RGB or RGBA) and are OR-ed; those of normal images are all black, or not there.
There are no patient ids, and many images are near-duplicates: no split of it is patient-level.
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from bus_smp.data.exclusions import Problem
from bus_smp.data.sources import Record
from bus_smp.data.sources._layout import Placed, group_files, place_files
from bus_smp.data.sources._tree import key, natural_key, original, pair_masks, relative, wrong_folder

NAME = "busi"
TITLE = "BUSI"
LAYOUT = "benign/, malignant/ and normal/ with files like 'benign (1).png' and 'benign (1)_mask.png'"
CITE = "Al-Dhabyani et al., Dataset of breast ultrasound images, Data in Brief 28:104863, 2020"
LICENCE = "published without a licence file; check the terms where you downloaded it"
URL = "https://scholar.cu.edu.eg/?q=afahmy/pages/dataset"
OFFICIAL_TEST: frozenset[str] = frozenset()

_IMAGE_NAME = re.compile(r"(benign|malignant|normal) ?\(\d+\)", re.IGNORECASE)
_MASK_NAME = re.compile(r"^(?P<image>.+?)_mask(?:_\d+)?(?P<copy> ?\(\d+\)| - copy)?$", re.IGNORECASE)


def looks_like(folder: Path) -> bool:
    """True where ``folder`` itself holds BUSI's file names, in folders of classes or splits, or of several classes."""
    named = [file for file in place_files(folder) if _IMAGE_NAME.match(file.path.name)]
    return any(file.path.parent != folder for file in named) or len({*map(_label, named)}) > 1


def records(root: Path) -> Iterator[Record]:
    """Yield every image and every mask without image: benign, malignant, normal, each by number.

    Raises:
        DataError: if ``root`` is another folder.
    """
    root = Path(root)
    if not looks_like(root):
        raise wrong_folder(root, TITLE, LAYOUT, NAME)
    taken: set[str] = set()
    files = [
        replace(file, role=_role(file), label=_label(file)) for file in place_files(root) if _label(file)
    ]
    for (split, label), (images, masks) in group_files(files).items():
        for pair in pair_masks(images, masks, _image_name, _mask_owner):
            named = _IMAGE_NAME.match(pair.image_id)
            problems = pair.problems
            # Copies without the black masks of normal images are in circulation.
            if label == "normal":
                problems = tuple(problem for problem in problems if problem.code != "no-mask")
            if named and key(named[1]) != label:
                words = f"file name says {named[1].lower()}, folder says {label}"
                problems += (Problem("wrong-folder", words),)
            # Ids must be unique: a file in the wrong folder may bear the name of one in the right folder.
            image_id = pair.image_id
            for prefix in (label, split):
                image_id = f"{prefix} - {image_id}" if key(image_id) in taken else image_id
            taken.add(key(image_id))
            yield Record(
                image_id,
                relative(pair.image, root),
                tuple(relative(m, root) for m in sorted(pair.masks, key=lambda m: natural_key(m.stem))),
                "binary",
                label,
                image_id,
                patient_known=False,
                flags=pair.flags,
                problems=problems,
                split=split,
            )


def _role(file: Placed) -> str:
    return "mask" if _MASK_NAME.match(file.path.stem) else file.role or "image"


def _label(file: Placed) -> str:
    """The folder's label, else the name's; "" where neither says one."""
    named = _IMAGE_NAME.match(file.path.name)
    return file.label or (named[1].lower() if named else "")


def _image_name(stem: str) -> str:
    """Drop a copy's mark, but not BUSI's own number: "benign (1) (1)" -> "benign (1)"."""
    named = _IMAGE_NAME.match(stem)
    if named is None:
        return original(stem)
    number = named.end()
    return stem[:number] + original(stem[number:])


def _mask_owner(stem: str) -> str:
    """ "benign (1)_mask_1" -> "benign (1)"; "benign (1)_mask (1)" -> "benign (1) (1)", the copy."""
    named = _MASK_NAME.match(stem)
    return named["image"] + (named["copy"] or "") if named else stem
