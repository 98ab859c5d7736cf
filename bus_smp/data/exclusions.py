"""Why an image is not used: one table of codes, the options that answer them, and the cell ``excluded`` of a manifest.

The cell is empty where the image is used. Otherwise it holds a code of ``CODES`` and words about this image:
``size-mismatch: mask 856x606, image 608x468``. Sources and the audit only report ``Problem``s;
``bus_smp.data.rows`` decides which of them exclude an image. Older manifests, and rows that a user excluded by
hand, hold words without a code. They count as excluded too, with the code ``other``.
"""

from collections.abc import Iterable
from typing import NamedTuple

CODES = {
    "unreadable": "a file cannot be read",
    "no-image": "mask or table row without image",
    "no-mask": "image without mask",
    "unknown-label": "the label is missing or unknown",
    "no-patient": "the table names no patient",
    "wrong-folder": "the file name has another label than its folder",
    "copy": "download copy of a file that is there too",
    "mask-colours": "mask with unlisted colours or values",
    "exchanged": "a picture in place of the mask, or a mask in place of the picture",
    "alpha-mask": "mask whose lesion is in the transparency only",
    "soft-mask": "mask with values between black and white (soft edges, JPEG)",
    "lesion-numbers": "mask that numbers its lesions or regions",
    "inverted-mask": "mask that marks what surrounds the lesion",
    "outline-mask": "mask that draws the outline of the lesion only",
    "large-lesion": "lesion over most of the picture, or at all its sides",
    "swapped-classes": "mask of the other class than the label, as in most of the set",
    "both-classes": "benign and malignant pixels in one mask",
    "same-mask": "the same mask as other pictures",
    "misplaced-mask": "mask that fits mirrored, turned or on a neighbouring picture, as most of the set",
    "orientation": "picture turned by its EXIF, mask perhaps not",
    "size-mismatch": "mask of another size than its image",
    "empty-mask": "lesion label with an empty mask",
    "full-mask": "mask that marks every pixel",
    "label-mismatch": "label that contradicts the mask",
    "label-conflict": "same picture under different labels",
    "flagged": "flag named with --exclude",
    "shared-group": "patient with images in different splits of other manifests",
    "duplicate": "same pixels as a kept image",
    "near-duplicate": "nearly the same picture as a kept image",
    "other": "another reason, in words",
}

# The option that answers each doubt. Until the user gives it, the images are not used.
ANSWERS = {
    "size-mismatch": "--on-mismatch resize stretches the mask to its image",
    "mask-colours": "--mask-values any takes all that is not black for the lesion",
    "exchanged": "exchange the two files, or the two cells of the table",
    "alpha-mask": "--mask-values alpha takes what is opaque for the lesion",
    "soft-mask": "--mask-values half takes what is at least half bright for the lesion",
    "lesion-numbers": "--mask-values any takes all numbers but 0 for the lesion that the label names",
    "inverted-mask": "--invert-masks, or --accept inverted-mask if they are right",
    "outline-mask": "--mask-values filled fills the outlines; --accept outline-mask if they are right",
    "large-lesion": "--accept large-lesion if they are right",
    "swapped-classes": "--mask-values swapped exchanges the classes of the masks; or correct the labels",
    "both-classes": "--mask-values any gives all lesions the label; --accept both-classes if both are there",
    "same-mask": "--accept same-mask if they are right",
    "misplaced-mask": "turn or rename the files of the masks; --accept misplaced-mask if they are right",
    "orientation": "--mask-orientation stored turns the masks too; shown if they fit the picture as viewers show it",
}

# Doubts that --accept removes.
ACCEPTABLE = ("inverted-mask", "outline-mask", "large-lesion", "both-classes", "same-mask", "misplaced-mask")


class Problem(NamedTuple):
    """Something that speaks against using an image.

    ``code``: a key of ``CODES``. ``words``: what is wrong with this image; "" stands for the words of the table.
    """

    code: str
    words: str = ""

    def __str__(self) -> str:
        return f"{self.code}: {self.words or CODES[self.code]}"


def exclusion_code(excluded: str) -> str:
    """Code of a cell ``excluded`` that is not empty; ``other`` for words without a code."""
    code = excluded.partition(":")[0]
    return code if code in CODES else "other"


def describe_code(code: str) -> str:
    """The words for a code with the code in brackets; a name that an older manifest's audit used, as it is."""
    return f"{CODES[code]} [{code}]" if code in CODES else code


def count_exclusions(excluded: Iterable[str]) -> dict[str, int]:
    """Number of excluded images per code, sorted by code."""
    codes = [exclusion_code(cell) for cell in excluded if cell]
    return {code: codes.count(code) for code in sorted(set(codes))}
