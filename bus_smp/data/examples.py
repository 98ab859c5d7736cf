"""The only way from a manifest row to pixels: caches, evaluation and figures all read through here."""

import threading
from collections.abc import Callable, Mapping
from typing import Any

import cv2
import numpy as np

from bus_smp.classes import LABELS
from bus_smp.data.images import Picture, pixel_sha256, read_mask, read_picture, turn
from bus_smp.data.manifest import Manifest
from bus_smp.errors import ImageError, ManifestError

# A pandas Series, a mapping or a named tuple of ``itertuples``.
Row = Any
Reader = Callable[[Manifest, Row], tuple[np.ndarray, np.ndarray]]

# Bytes of images and masks that one ``ExampleReader`` holds: about 400 images of 700 x 550 pixels.
_MOST_HELD = 600_000_000


def read_example(manifest: Manifest, row: Row, *, checked: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Read the image of a manifest row and the mask that belongs to it, at the image's own size.

    Args:
        row: one row of ``manifest.frame``, from ``iloc``, ``to_dict`` or ``itertuples``.
        checked: True where this process has read the same row before: pixels and label are not compared again.

    Returns:
        image uint8 (H, W, 3) RGB, and mask uint8 (H, W) of class indices 0 background, 1 benign,
        2 malignant. The masks of one image are OR-ed. Where the row has the flag ``mask_turned`` they are turned as
        the image's EXIF demands; with ``size_mismatch`` stretched to the image (nearest, so no class is invented).

    Raises:
        ImageError: naming the file, if one is missing or damaged, if the image is no longer of
            the size the manifest was made with, if the sizes differ without that flag, or if the mask
            does not mark what the label says.
        ManifestError: if the image's pixels are not those whose sha256 the manifest holds.
    """
    row = row._asdict() if hasattr(row, "_asdict") else row
    path = manifest.image_path(row)
    picture = read_picture(path)
    image = picture.pixels
    height, width = image.shape[:2]
    if str(row["width"]) and (int(row["width"]), int(row["height"])) != (width, height):
        raise ImageError(
            f"{path}: is {width}x{height}, but was {row['width']}x{row['height']} when the manifest was made",
            hint="make the manifest again: bus-smp make-manifest",
        )
    if not checked and row["sha256"] and pixel_sha256(image) != row["sha256"]:
        raise ManifestError(
            f"{path}: the image has changed since the manifest was made",
            hint="run bus-smp make-manifest again",
        )
    mask = _read_mask(manifest, row, picture)
    marked = row["label"] if checked else LABELS[int(mask.max(initial=0))]
    if marked != row["label"]:
        raise ImageError(
            f"{path}: labelled {row['label']}, but its mask marks {'nothing' if marked == LABELS[0] else marked}",
            hint="correct the label or the mask, then run bus-smp make-manifest again",
        )
    return image, mask


class ExampleReader:
    """``read_example`` for images of one manifest that are needed several times, such as those of every validation of a run.

    Each image is decoded, hashed and checked once, and then held in memory. Where the memory is used up, further
    images are read from their files each time, and checked the first time. Threads may share a reader.

    Args:
        manifest: the only one that it reads, because images of two could have the same name.
        most: bytes of pixels that are held.
    """

    def __init__(self, manifest: Manifest, most: int = _MOST_HELD) -> None:
        self._manifest = manifest
        self._room = most
        self._held: dict[tuple[str, str], tuple[np.ndarray, np.ndarray] | None] = {}
        self._lock = threading.Lock()

    def __call__(self, manifest: Manifest, row: Row) -> tuple[np.ndarray, np.ndarray]:
        """The example of a row, as ``read_example`` returns it; not to be changed.

        Raises:
            ValueError: if it is another manifest than the reader's.
            ImageError, ManifestError: as ``read_example``.
        """
        if manifest is not self._manifest:
            raise ValueError("a reader reads the manifest that it was made for, and no other")
        row = row._asdict() if hasattr(row, "_asdict") else row
        key = row["dataset"], row["image_id"]
        held = self._held.get(key)
        if held is not None:
            return held
        example = read_example(manifest, row, checked=key in self._held)
        with self._lock:
            if key not in self._held:
                size = sum(array.nbytes for array in example)
                fits = size <= self._room
                self._room -= size if fits else 0
                self._held[key] = example if fits else None
        return example


def _read_mask(manifest: Manifest, row: Mapping, picture: Picture) -> np.ndarray:
    height, width = shape = picture.pixels.shape[:2]
    masks = manifest.mask_paths(row)
    flags = str(row["flags"]).split("|")
    if "size_mismatch" not in flags and "mask_turned" not in flags and picture.view is None:
        return read_mask(masks, row["mask_format"], row["label"], (height, width))
    mask = np.zeros((height, width), np.uint8)
    for one in masks:
        part = read_mask([one], row["mask_format"], row["label"])
        part = turn(part, picture.orientation if "mask_turned" in flags else 1)
        part = part if picture.view is None else picture.view.crop(part)
        if part.shape != shape and "size_mismatch" not in flags:
            raise ImageError(
                f"{one}: does not fit its image any more",
                hint="make the manifest again: bus-smp make-manifest",
            )
        mask = np.maximum(mask, cv2.resize(part, (width, height), interpolation=cv2.INTER_NEAREST_EXACT))
    return mask
