"""BUSI (Breast Ultrasound Images): 780 images, normal, benign and malignant, with binary masks.

Layout: ``benign/benign (1).png`` with ``benign (1)_mask.png`` and, for further lesions, ``benign (1)_mask_1.png``
and so on; ``malignant/`` and ``normal/`` likewise. The folder is the label. Masks are black and white
(1-bit, RGB or RGBA) and are OR-ed; those of normal images are all black.
There are no patient ids, and many images are near-duplicates: no split of it is patient-level.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from bus_smp.classes import LABELS
from bus_smp.data.exclusions import Problem
from bus_smp.data.sources import Record
from bus_smp.data.sources._tree import (
    image_files,
    key,
    natural_key,
    original,
    pair_masks,
    relative,
    subfolder,
    wrong_folder,
)

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
    """True where ``folder`` itself holds benign/, malignant/ or normal/ with BUSI's file names."""
    classes = (subfolder(folder, label) for label in LABELS)
    return any(_IMAGE_NAME.match(path.name) for inside in classes for path in image_files(inside))


def records(root: Path) -> Iterator[Record]:
    """Yield every image and every mask without image: benign, malignant, normal, each by number.

    Raises:
        DataError: if ``root`` is another folder.
    """
    root = Path(root)
    if not looks_like(root):
        raise wrong_folder(root, TITLE, LAYOUT, NAME)
    taken: set[str] = set()
    for label in sorted(LABELS):
        files = image_files(subfolder(root, label))
        masks = [path for path in files if _MASK_NAME.match(path.stem)]
        images = [path for path in files if not _MASK_NAME.match(path.stem)]
        for pair in pair_masks(images, masks, _image_name, _mask_owner):
            named = _IMAGE_NAME.match(pair.image_id)
            problems = pair.problems
            if named and key(named[1]) != label:
                words = f"file name says {named[1].lower()}, folder says {label}"
                problems += (Problem("wrong-folder", words),)
            # Ids must be unique: a file in the wrong folder may bear the name of one in the right folder.
            image_id = pair.image_id if key(pair.image_id) not in taken else f"{label} - {pair.image_id}"
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
            )


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
    assert named is not None
    return named["image"] + (named["copy"] or "")
