"""Reasons to doubt masks that can be read: their values, and a comparison with the other masks of the data set.

A doubt is a ``Problem`` with a code of ``bus_smp.data.exclusions``. Its images are not used until the user answers
(``MaskAnswers``). The limits leave room around the five known data sets: there a lesion covers at most 56 % of the
picture and marks at most 7 % of its border, and no two different pictures have the same mask.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from bus_smp.classes import LABELS
from bus_smp.data.exclusions import Problem
from bus_smp.data.images import fill_holes, is_lossy, read_alpha, read_image
from bus_smp.errors import ImageError

# Share of the picture's border above which a mask is inverted; the lower one where most of the set is.
_SURROUNDS, _SURROUNDS_TOO = 0.6, 0.4
# What surrounds a lesion is more than this share of the picture; less at all its sides is a frame.
_SURROUNDING = 0.35
_LARGE = 0.5
# Closed outlines enclose more than this multiple of what they mark; a lesion with holes does not.
_OUTLINE = 1.5

# Pixels between black and white: their least share in a picture, and levels of grey; real pictures have 0.44 and more.
_PICTURE, _PICTURE_LEVELS = 0.3, 32
_DARK, _BRIGHT = 16, 239

# Numbers of lesions; a soft edge goes up to white.
_MOST_LESIONS = 64

# Different pictures with one mask that are too many, and the bits of 256 in which their dHash differs.
_SAME_MASKS = 3
_OTHER_PICTURE = 48

# Masks that mark another place of their pictures: the grid on which mask and picture are compared, the least number
# of masks, the share of them that fit better at that place, by how much of the picture's contrast, and by how many
# standard errors. Lesions are darker than what surrounds them: by 1.0 in the known sets, by 0.4 and less elsewhere.
_GRID = 32
_MISPLACED, _MISPLACED_SHARE, _MISPLACED_CONTRAST, _MISPLACED_ERRORS = 10, 0.75, 0.4, 3

# Share of its bounding box that a rectangle covers; real outlines cover 0.9 at most.
_BOX = 0.98

# Swapped classes: so many contradicting labels, and as a share of all masks with classes.
_SWAPPED, _SWAPPED_SHARE = 3, 0.8

_BY_VALUES = {
    "any": ("lesion-numbers", "mask-colours", "both-classes", "swapped-classes"),
    "half": ("soft-mask",),
    "filled": ("outline-mask",),
    "alpha": ("alpha-mask",),
    "swapped": ("swapped-classes",),
}
MASK_VALUES = tuple(_BY_VALUES)

# The format in which a doubted mask is read for the comparison, until the user has answered.
TENTATIVE = {"alpha-mask": "alpha", "soft-mask": "half", "lesion-numbers": "any", "mask-colours": "any"}


@dataclass(frozen=True)
class MaskAnswers:
    """The user's answers about doubted masks; no other mask is changed.

    values: of ``MASK_VALUES``. invert: masks found inverted are. orientation: ``stored`` if masks were drawn on the
    pixels as they are stored, before EXIF turns the picture, ``shown`` if on the picture as viewers show it.
    accept: codes of doubts that are taken back.
    """

    values: tuple[str, ...] = ()
    invert: bool = False
    orientation: str = ""
    accept: tuple[str, ...] = ()

    def mask_format(self, code: str, current: str) -> str:
        """The format that the answer to a doubt gives a mask of the format ``current``; "" without an answer."""
        if code == "inverted-mask" and self.invert and not current.startswith("inverted-"):
            return f"inverted-{current if current in ('half', 'alpha') else 'any'}"
        if code == "swapped-classes" and "swapped" in self.values and current in ("color", "index"):
            return f"swapped-{current}"
        return next((v for v in self.values if v != "swapped" and code in _BY_VALUES[v]), "")

    def unused(self, flags: Collection[str]) -> list[str]:
        """A sentence for each answer to which no image has the finding; ``flags`` of all images."""
        asked = {f"--mask-values {value}": _BY_VALUES[value] for value in self.values}
        asked |= {f"--accept {code}": (code,) for code in self.accept}
        asked |= {"--invert-masks": ("inverted-mask",)} if self.invert else {}
        if self.orientation:
            asked[f"--mask-orientation {self.orientation}"] = ("orientation", "mask-turned")
        return [
            f"{option} changed nothing: no mask has that finding"
            for option, codes in asked.items()
            if not any(code.replace("-", "_") in flags for code in codes)
        ]

    def options(self) -> dict[str, Any]:
        """For the sidecar: what was answered, and nothing else."""
        given = {
            "mask_values": list(self.values),
            "invert_masks": self.invert,
            "mask_orientation": self.orientation,
            "accept": list(self.accept),
        }
        return {name: value for name, value in given.items() if value}


NO_ANSWERS = MaskAnswers()


@dataclass(frozen=True, eq=False)
class Marks:
    """What the masks of one image mark, laid over each other.

    benign, malignant: pixels. area: share of the picture. border: share of the picture's outermost pixels. sides: of
    the four that the lesion touches. filled: share of the picture with holes filled. mask: hash of the lesion's pixels. numbered: the values are numbers above 2.
    """

    label: str
    mask_format: str
    benign: int
    malignant: int
    area: float
    border: float
    sides: int
    filled: float
    box: float
    mask: bytes
    place: np.ndarray
    picture: np.ndarray | None
    phash: str
    numbered: bool


def measure_marks(mask: np.ndarray, **facts: Any) -> Marks:
    """The marks of class indices uint8 (H, W); ``facts``: the fields that do not follow from the pixels."""
    lesion = mask > 0
    rows, columns = int(lesion.any(axis=1).sum()), int(lesion.any(axis=0).sum())
    edges = [lesion[0], lesion[-1], lesion[1:-1, 0], lesion[1:-1, -1]]
    return Marks(
        benign=int((mask == 1).sum()),
        malignant=int((mask == 2).sum()),
        area=float(lesion.mean()),
        border=float(np.concatenate(edges).mean()),
        sides=sum(bool(side.any()) for side in (lesion[0], lesion[-1], lesion[:, 0], lesion[:, -1])),
        filled=float(fill_holes(lesion).mean()),
        box=float(lesion.sum() / max(rows * columns, 1)),
        mask=hashlib.sha256(str(lesion.shape).encode() + np.packbits(lesion).tobytes()).digest(),
        place=cv2.resize(lesion.astype(np.uint8) * 255, (_GRID, _GRID), interpolation=cv2.INTER_AREA) >= 128,
        **facts,
    )


def thumbnail_of(rgb: np.ndarray) -> np.ndarray:
    """The picture on the grid on which masks are compared with it: uint8 (32, 32), grey, from uint8 (H, W, 3)."""
    return cv2.resize(rgb[..., 1], (_GRID, _GRID), interpolation=cv2.INTER_AREA)


def is_picture(rgb: np.ndarray) -> bool:
    """Whether uint8 (H, W, 3) has the greys of a picture, which no mask has."""
    counts = np.bincount(rgb[..., 1].reshape(-1), minlength=256)
    between = counts[_DARK : _BRIGHT + 1].sum()
    return bool(between >= _PICTURE * counts.sum() and (counts > 0).sum() >= _PICTURE_LEVELS)


def doubt_values(path: Path, why: str, image_is_picture: bool) -> Problem:
    """What kind of mask a file is whose values are not those of its format.

    Args:
        why: the words of the reader that refused it.
        image_is_picture: its image shows a picture.
    """
    try:
        rgb = read_image(path)
        if (problem := doubt_transparency(path)) is not None:
            return problem
    except ImageError:
        # Values that are no picture's, such as negative numbers.
        return Problem("mask-colours", why)
    if is_picture(rgb):
        other = "" if image_is_picture else "; the image's file holds a mask"
        return Problem("exchanged", f"{path}: holds a picture where the mask should be{other}")
    marked = int(rgb.any(axis=2).sum())
    if (rgb == rgb[..., :1]).all():
        grey = rgb[..., 0]
        values = np.unique(grey)
        between = int(((grey > 0) & (grey < 255)).sum())
        if len(values) <= 2:
            return Problem("mask-colours", why)
        if not is_lossy(path) and (values[-1] <= _MOST_LESIONS or _is_flat(grey)):
            numbers = ", ".join(map(str, values[values > 0][:6]))
            return Problem("lesion-numbers", f"{path}: {marked} pixels in regions of the values {numbers}")
        return Problem("soft-mask", f"{why}; {between} of the {marked} pixels that are not black lie between")
    bright = rgb >= 128
    classes = ~bright[..., 2] & (bright[..., 0] != bright[..., 1])
    between = int(((rgb > 0) & (rgb < 255)).any(axis=2).sum())
    soft = (classes == bright.any(axis=2)).all() and (rgb[classes] == 255).any(axis=1).any()
    if soft and between:
        return Problem("soft-mask", f"{why}; {between} of the {marked} pixels that are not black lie between")
    return Problem("mask-colours", why)


def doubt_transparency(path: Path) -> Problem | None:
    """Whether a mask of one colour has its lesion in the transparency."""
    alpha = read_alpha(path)
    if alpha is None or len(np.unique(alpha >= 128)) < 2:
        return None
    rgb = read_image(path)
    if (rgb != rgb[0, 0]).any():
        return None
    opaque = int((alpha >= 128).sum())
    return Problem(
        "alpha-mask", f"{path}: one colour only, but {opaque} of {alpha.size} pixels are not transparent"
    )


def _is_flat(grey: np.ndarray) -> bool:
    """Whether the values between lie in regions, as numbers do, and not along edges."""
    between = (grey >= _DARK) & (grey <= _BRIGHT)
    inner = grey[1:-1, 1:-1]
    same = np.ones(inner.shape, bool)
    for down in (0, 1, 2):
        for right in (0, 1, 2):
            same &= grey[down : down + inner.shape[0], right : right + inner.shape[1]] == inner
    return bool((same & between[1:-1, 1:-1]).sum() > 0.3 * between.sum())


def find_doubts(marks: Sequence[Marks | None]) -> dict[int, list[Problem]]:
    """Doubts about the masks of one data set, by the position of the image; the most important first.

    Args:
        marks: of each image; None where no mask can be read.
    """
    doubts: dict[int, list[Problem]] = defaultdict(list)
    lesions = {j: m for j, m in enumerate(marks) if m and m.label in LABELS[1:] and m.area}
    inverted = _find_inverted(marks, lesions)
    outlines = {
        j: Problem(
            "outline-mask", f"marks {_percent(m.area)} of the picture and encloses {_percent(m.filled)}"
        )
        for j, m in lesions.items()
        if m.filled > _OUTLINE * m.area and m.border < _SURROUNDS_TOO
    }
    rest = {j: m for j, m in lesions.items() if j not in inverted and m.area < 1}
    for found in (
        inverted,
        outlines,
        _find_large(rest),
        _find_classes(lesions),
        _find_same(rest),
        _find_misplaced(rest),
    ):
        for j, problem in found.items():
            doubts[j].append(problem)
    return doubts


def _find_inverted(marks: Sequence[Marks | None], lesions: Mapping[int, Marks]) -> dict[int, Problem]:
    wide = {j: m for j, m in lesions.items() if _SURROUNDING < m.area < 1}
    surround = [j for j, m in wide.items() if m.border > _SURROUNDS]
    limit = _SURROUNDS_TOO if 2 * len(surround) >= len(lesions) else _SURROUNDS
    found = {
        j: Problem(
            "inverted-mask", f"marks {_percent(m.area)} of the picture, {_percent(m.border)} of its border"
        )
        for j, m in wide.items()
        if m.border > limit
    }
    if surround:
        # The inverted mask of an image without lesion.
        full = [j for j, m in enumerate(marks) if m and m.label == LABELS[0] and m.area == 1]
        words = "labelled normal, every pixel is marked, and other masks are inverted"
        found |= dict.fromkeys(full, Problem("inverted-mask", words))
    return found


def _find_large(lesions: Mapping[int, Marks]) -> dict[int, Problem]:
    large = [j for j, m in lesions.items() if m.area > _LARGE or m.sides == 4]
    if len(large) < 2 or 2 * len(large) < len(lesions):
        # In a set of other masks only a frame is wrong for sure.
        large = [j for j in large if lesions[j].border > _SURROUNDS]
    words = "marks {} of the picture and touches {} of its sides; so do {} of {} masks"
    return {
        j: Problem(
            "large-lesion",
            words.format(_percent(lesions[j].area), lesions[j].sides, len(large), len(lesions)),
        )
        for j in large
    }


def _find_classes(lesions: Mapping[int, Marks]) -> dict[int, Problem]:
    """Lesion numbers, swapped classes, and both classes in one mask."""
    classed = {j: m for j, m in lesions.items() if m.mask_format.split("-")[-1] in ("color", "index")}
    # Where every pixel is marked, one of the classes is the background: "full-mask" says so.
    both = {j: m for j, m in classed.items() if m.benign and m.malignant and m.area < 1}
    single = {j: m for j, m in classed.items() if j not in both}
    wrong = [j for j, m in single.items() if (m.label == "benign") != (m.benign > 0)]
    found = {
        j: Problem("both-classes", f"labelled {m.label}, {m.benign} pixels benign, {m.malignant} malignant")
        for j, m in both.items()
    }
    if any(m.numbered for m in lesions.values()):
        words = "regions of the values 1 and 2, in a set whose masks number their lesions"
        numbered = [j for j in [*both, *wrong] if classed[j].mask_format == "index"]
        return found | dict.fromkeys(numbered, Problem("lesion-numbers", words))
    if len(wrong) >= _SWAPPED and len(wrong) > _SWAPPED_SHARE * len(single):
        words = f"{len(wrong)} of {len(single)} masks mark the other class than their label"
        return found | dict.fromkeys([*wrong, *both], Problem("swapped-classes", words))
    return found


def _find_same(lesions: Mapping[int, Marks]) -> dict[int, Problem]:
    sharing: dict[bytes, list[int]] = defaultdict(list)
    for j, m in lesions.items():
        if m.phash:
            sharing[m.mask].append(j)
    found: dict[int, Problem] = {}
    for same in sharing.values():
        pictures: list[int] = []
        for number in (int(lesions[j].phash, 16) for j in same):
            if all((number ^ other).bit_count() > _OTHER_PICTURE for other in pictures):
                pictures.append(number)
        if len(pictures) >= _SAME_MASKS:
            words = f"one mask in {len(same)} images of {len(pictures)} different pictures"
            found |= dict.fromkeys(same, Problem("same-mask", words))
    return found


def find_boxes(marks: Sequence[Marks | None]) -> list[int]:
    """Positions of the masks that are rectangles, if at least half of the lesions are: bounding boxes, not outlines."""
    lesions = {j: m for j, m in enumerate(marks) if m and m.area and m.label in LABELS[1:]}
    boxes = [j for j, m in lesions.items() if m.box >= _BOX]
    return boxes if len(boxes) >= 3 and 2 * len(boxes) >= len(lesions) else []


# Where else the masks of a set may belong: how to turn the mask, or whose picture it is.
_TURNED: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "mirrored": lambda place: place[:, ::-1],
    "upside down": lambda place: place[::-1],
    "turned by 180 degrees": lambda place: place[::-1, ::-1],
    "turned by 90 degrees": np.rot90,
    "turned by 270 degrees": lambda place: np.rot90(place, 3),
    "with rows and columns exchanged": np.transpose,
}
_NEIGHBOURS = {"on the next picture": 1, "on the picture before": -1}


def _find_misplaced(lesions: Mapping[int, Marks]) -> dict[int, Problem]:
    """Masks that mark the wrong place: most of the set would mark darker tissue mirrored, turned or on a neighbour.

    A single mask does not show it: one in twenty right ones would.
    """
    seen = [(j, m.picture, m.place) for j, m in lesions.items() if m.picture is not None]
    if len(seen) < _MISPLACED:
        return {}
    own = np.array([_darkness(picture, place) for _, picture, place in seen])
    gains = {
        name: [_darkness(picture, move(place)) for _, picture, place in seen] - own
        for name, move in _TURNED.items()
    }
    gains |= {
        name: [_darkness(seen[(k + step) % len(seen)][1], place) for k, (*_, place) in enumerate(seen)] - own
        for name, step in _NEIGHBOURS.items()
    }
    found: dict[int, Problem] = {}
    most = _MISPLACED_CONTRAST
    for name, gain in gains.items():
        gain = gain[np.isfinite(gain) & (gain != 0)]
        if len(gain) < _MISPLACED or (gain > 0).mean() < _MISPLACED_SHARE or gain.mean() < most:
            continue
        if gain.mean() > _MISPLACED_ERRORS * gain.std() / np.sqrt(len(gain)):
            most = gain.mean()
            words = f"{int((gain > 0).sum())} of {len(gain)} masks mark darker tissue {name}"
            found = dict.fromkeys([j for j, *_ in seen], Problem("misplaced-mask", words))
    return found


def _darkness(picture: np.ndarray, place: np.ndarray) -> float:
    """How much darker a place is than what surrounds it, in standard deviations of the picture; NaN without either."""
    around = (cv2.dilate(place.astype(np.uint8), np.ones((7, 7), np.uint8)) > 0) & ~place
    if not place.any() or not around.any():
        return np.nan
    return float((picture[around].mean() - picture[place].mean()) / (picture.std() + 1))


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
