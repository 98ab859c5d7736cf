"""The images of a reading, in order: opened when they are needed, few of them in memory, none copied to the disk."""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bus_smp.data.images import pixel_sha256, read_image
from bus_smp.errors import DataError, ImageError
from bus_smp.system.files import file_sha256

# Larger pictures are no ultrasound scans, and their masks would make the page slow.
MOST_PIXELS = 16_000_000

# Bytes of decoded pictures, and of dropped files, that are held. The browser has a dropped file and sends it again.
_MOST_HELD = 200_000_000


@dataclass(frozen=True, eq=False)
class Picture:
    """One image as the model sees it.

    Attributes:
        pixels: uint8 (H, W, 3), RGB.
        key: SHA-256 of the pixels: the image's name in all records.
        pixel_mm: width and height of a pixel in mm; None where they are not known.
        size_source: where that comes from, or why it is not known.
        patient: the patient's id; "" where it is not known.
        notes: what a reader must know of the file, such as a second pane that is not shown.
    """

    pixels: np.ndarray
    key: str
    pixel_mm: tuple[float, float] | None = None
    size_source: str = "the file does not say how large a pixel is"
    patient: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Case:
    """An entry of the worklist.

    Attributes:
        id: a name that says nothing about the file.
        name: the file's name, for the reader only: in no record and no log.
        load: reads frame k (0 for a still image). None for a dropped file, whose bytes may have to be sent again.
        path: of a file on the disk.
        frames: 1 for a still image.
    """

    id: str
    name: str
    load: Callable[[int], Picture] | None = None
    path: Path | None = None
    frames: int = 1


class Gone(Exception):
    """A dropped file is no longer in memory: the browser has to send it again."""


class Held:
    """The values used last, up to a number of bytes. Threads may share it."""

    def __init__(self, most: int = _MOST_HELD) -> None:
        self._most, self._size = most, 0
        self._values: OrderedDict = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key):
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key][0]
            return None

    def put(self, key, value, size: int) -> None:
        with self._lock:
            if key in self._values:
                self._size -= self._values.pop(key)[1]
            self._values[key] = value, size
            self._size += size
            while self._size > self._most and len(self._values) > 1:
                self._size -= self._values.popitem(last=False)[1][1]


@dataclass
class Worklist:
    """The cases in order. Threads may share it.

    Args:
        cases: those that the reading was started with; dropped files come after them.
    """

    cases: list[Case] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._by_id = {case.id: case for case in self.cases}
        self._pictures, self._files = Held(), Held()

    def find(self, case_id: str) -> Case:
        """The case of this id.

        Raises:
            DataError: if there is none.
        """
        if case_id not in self._by_id:
            raise DataError("no such image in this reading", hint="load the page again")
        return self._by_id[case_id]

    def drop(self, data: bytes, name: str) -> Case:
        """Take the bytes of a file that was dropped on the page; the same bytes are the same case.

        Raises:
            ImageError: if it cannot be read.
        """
        case_id = f"d{hashlib.sha256(data).hexdigest()[:24]}"
        case = self._by_id.get(case_id) or Case(case_id, name)
        self._files.put(case_id, data, len(data))
        # a file that cannot be read never enters the list
        self._picture(case, 0, name)
        if case_id not in self._by_id:
            self._by_id[case_id] = case
            self.cases.append(case)
        return case

    def open(self, case_id: str, frame: int = 0) -> Picture:
        """The picture of a case.

        Raises:
            Gone: if a dropped file has to be sent again.
            ImageError: if the file cannot be read.
        """
        return self._picture(self.find(case_id), frame, self.find(case_id).name)

    def _picture(self, case: Case, frame: int, name: str) -> Picture:
        held = self._pictures.get((case.id, frame))
        if held is not None:
            return held
        if not 0 <= frame < case.frames:
            raise DataError(f"the clip has no frame {frame + 1}")
        if case.load:
            picture = case.load(frame)
        else:
            data = self._files.get(case.id)
            if data is None:
                raise Gone
            picture = read_picture(data, name)
        self._pictures.put((case.id, frame), picture, picture.pixels.nbytes)
        return picture

    def digest(self, case: Case) -> str:
        """SHA-256 of the case's file; of a dropped one the beginning; "" if it cannot be read any more."""
        if case.path is None:
            return case.id
        try:
            return file_sha256(case.path)
        except OSError:
            return ""


def read_picture(source: Path | bytes, name: str) -> Picture:
    """Read a file, or its bytes.

    Raises:
        ImageError: if it is no image that can be read, or too large for the page.
    """
    try:
        pixels = read_image(source, name)
    except ImageError as error:
        # the page shows the name, not the folder
        raise ImageError(
            error.what.replace(str(source), name) if isinstance(source, Path) else error.what
        ) from None
    if pixels.shape[0] * pixels.shape[1] > MOST_PIXELS:
        raise ImageError(
            f"{name}: {pixels.shape[1]}x{pixels.shape[0]} pixels are too many for the page",
            hint="bus-smp predict takes it",
        )
    return Picture(pixels, pixel_sha256(pixels), notes=_colour_note(pixels))


def _colour_note(pixels: np.ndarray) -> tuple[str, ...]:
    """A warning where more than 1 % of the pixels of uint8 (H, W, 3) have a colour: the networks learn from grey pictures."""
    spread = pixels.max(axis=2).astype(int) - pixels.min(axis=2)
    if (spread > 40).mean() < 0.01:
        return ()
    return (
        "The picture has coloured areas, as colour Doppler and some marks have: the model was made for grey pictures.",
    )


def file_cases(files: Iterable[tuple[Path, str]]) -> list[Case]:
    """The cases of image files, (path, name) pairs as from ``find_images``."""
    return [Case(f"c{number}", path.name, _loader(path), path) for number, (path, _) in enumerate(files, 1)]


def _loader(path: Path) -> Callable[[int], Picture]:
    return lambda frame: read_picture(path, path.name)
