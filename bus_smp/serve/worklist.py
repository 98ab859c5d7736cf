"""The images of a reading, in order: opened when they are needed, few of them in memory, none copied to the disk."""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bus_smp.data.dicom import is_dicom, read_dicom, read_view
from bus_smp.data.images import pixel_sha256, read_image
from bus_smp.errors import DataError, ImageError
from bus_smp.system.files import file_sha256
from bus_smp.text import counted

# Larger pictures are no ultrasound scans, and their masks would make the page slow.
_MOST_PIXELS = 16_000_000

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
        load: reads frame k, counted from 0. None for a dropped file, whose bytes may have to be sent again.
        path: of a file on the disk.
        frames: 1 for a still image.
        pane: of a DICOM file with several, counted from 1.
        upload: what the bytes of a dropped file are held under.
    """

    id: str
    name: str
    load: Callable[[int], Picture] | None = None
    path: Path | None = None
    frames: int = 1
    pane: int | None = None
    upload: str = ""


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

    def drop(self, data: bytes, name: str) -> list[Case]:
        """Take the bytes of a file that was dropped on the page; the same bytes are the same cases.

        Raises:
            ImageError: if it cannot be read.
        """
        upload = hashlib.sha256(data).hexdigest()[:24]
        self._files.put(upload, data, len(data))
        cases = [
            Case(f"d{upload}-{pane or 0}", title, frames=frames, pane=pane, upload=upload)
            for title, frames, pane in list_panes(data, name)
        ]
        # a file that cannot be read never enters the list
        self._picture(cases[0], 0)
        for case in cases:
            if case.id not in self._by_id:
                self._by_id[case.id] = case
                self.cases.append(case)
        return cases

    def open(self, case_id: str, frame: int = 0) -> Picture:
        """The picture of a case.

        Raises:
            Gone: if a dropped file has to be sent again.
            ImageError: if the file cannot be read.
        """
        return self._picture(self.find(case_id), frame)

    def _picture(self, case: Case, frame: int) -> Picture:
        held = self._pictures.get((case.id, frame))
        if held is not None:
            return held
        if not 0 <= frame < case.frames:
            raise DataError(f"the clip has no frame {frame + 1}")
        if case.load:
            picture = case.load(frame)
        else:
            data = self._files.get(case.upload)
            if data is None:
                raise Gone
            picture = read_picture(data, case.name, frame, case.pane)
        self._pictures.put((case.id, frame), picture, picture.pixels.nbytes)
        return picture

    def digest(self, case: Case) -> str:
        """SHA-256 of the case's file; of a dropped one the beginning; "" if it cannot be read any more."""
        if case.path is None:
            return case.upload
        try:
            return file_sha256(case.path)
        except OSError:
            return ""


def list_panes(source: Path | bytes, name: str) -> list[tuple[str, int, int | None]]:
    """The title, the number of frames and the pane of each picture series in a file; a DICOM file may hold several panes."""
    if not is_dicom(source):
        return [(name, 1, None)]
    try:
        found = read_dicom(source, name)
    except ImageError:
        # the page shows why when it is opened
        return [(name, 1, None)]
    panes = len(found.panes)
    if panes == 1:
        return [(name, found.frames, None)]
    return [(f"{name}, pane {pane} of {panes}", found.frames, pane) for pane in range(1, panes + 1)]


def read_picture(source: Path | bytes, name: str, frame: int = 0, pane: int | None = None) -> Picture:
    """Read a frame, counted from 0, of a file or of its bytes.

    Raises:
        ImageError: if it is no image that can be read, or too large for the page.
    """
    try:
        if is_dicom(source):
            pixels, view = read_view(source, frame + 1, pane, name)
            about = view.file
            size, words, patient, notes = view.pane.pixel_mm, view.pane.source, about.patient_id, about.notes
        else:
            pixels = read_image(source, name)
            size, words, patient, notes = None, Picture.size_source, "", _colour_note(pixels)
    except ImageError as error:
        # the page shows the name, not the folder
        raise ImageError(error.what.replace(str(source), name), hint=error.hint) from None
    if pixels.shape[0] * pixels.shape[1] > _MOST_PIXELS:
        raise ImageError(
            f"{name}: {pixels.shape[1]}x{pixels.shape[0]} pixels are too many for the page",
            hint="bus-smp predict takes it",
        )
    return Picture(pixels, pixel_sha256(pixels), size, words, patient, notes)


def _colour_note(pixels: np.ndarray) -> tuple[str, ...]:
    """A warning where more than 1 % of the pixels of uint8 (H, W, 3) have a colour: the networks learn from grey pictures."""
    spread = pixels.max(axis=2).astype(int) - pixels.min(axis=2)
    if (spread > 40).mean() < 0.01:
        return ()
    return (
        "The picture has coloured areas, as colour Doppler and some marks have: the model was made for grey pictures.",
    )


def find_cases(inputs: Sequence[Path], say: Callable[[str], None] = lambda text: None) -> list[Case]:
    """The cases of image files and folders; masks in folders are left out.

    Args:
        say: receives a line for each kind of file that is left out.

    Raises:
        DataError: as ``find_images``.
    """
    from bus_smp.inference.predict_files import find_images, is_called_mask, is_mask

    def looks_like_mask(path: Path) -> bool:
        try:
            return is_called_mask(path) and is_mask(path, read_image(path))
        except ImageError:
            # the page shows why it cannot be read
            return False

    found = [path for path, _ in find_images(inputs, say=say)] if inputs else []
    scans = [path for path in found if path in inputs or not looks_like_mask(path)]
    if masks := len(found) - len(scans):
        say(f"Left out: {counted(masks, 'file')}: masks by their few colours, no scans")
    return file_cases(scans)


def file_cases(paths: Iterable[Path]) -> list[Case]:
    """The cases of image files; one that cannot be read is a case too."""
    cases: list[Case] = []
    for path in paths:
        for title, frames, pane in list_panes(path, path.name):
            cases.append(Case(f"c{len(cases) + 1}", title, _loader(path, pane), path, frames, pane))
    return cases


def _loader(path: Path, pane: int | None) -> Callable[[int], Picture]:
    return lambda frame: read_picture(path, path.name, frame, pane)
