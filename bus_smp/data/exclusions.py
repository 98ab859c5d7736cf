"""Why an image is not used: one table of codes, and the cell ``excluded`` of a manifest.

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
