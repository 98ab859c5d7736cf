"""The one table of classes: index, name, mask colour, and the words data sets use for them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class PixelClass:
    """A class of pixels; ``rgb`` is its colour in masks read and written."""

    index: int
    name: str
    rgb: tuple[int, int, int]


BACKGROUND = PixelClass(0, "background", (0, 0, 0))
BENIGN = PixelClass(1, "benign", (0, 255, 0))
MALIGNANT = PixelClass(2, "malignant", (255, 0, 0))

CLASSES = (BACKGROUND, BENIGN, MALIGNANT)
LESIONS = (BENIGN, MALIGNANT)

# Stands in a mask on the network's grid for a pixel that belongs to no image, as in the padding of a letterbox.
IGNORED = 255

# Label of a whole image. Position = severity, so max() over a patient's images is the worst
# finding, and for images with a lesion it is also the pixel class of that lesion.
LABELS = ("normal", "benign", "malignant")

_LABEL_WORDS = {
    "normal": "normal", "n": "normal", "healthy": "normal", "none": "normal", "background": "normal",
    "benign": "benign", "b": "benign",
    "malignant": "malignant", "m": "malignant", "malign": "malignant", "cancer": "malignant",
}  # fmt: skip


def parse_label(word: object) -> str:
    """Return the label that ``word`` means, in upper or lower case.

    Raises:
        ValueError: if it is none of the known words.
    """
    label = _LABEL_WORDS.get(str(word).strip().lower())
    if label is None:
        raise ValueError(f"unknown label {word!r}; use one of {', '.join(LABELS)}")
    return label
