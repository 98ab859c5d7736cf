"""A temporary file for what 100,000 images leave behind and memory would not hold."""

import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

from bus_smp.system.files import explained

IN_MEMORY = 1 << 26  # bytes; more than that lie on the disk


class Shelf:
    """Takes bytes and gives them back, from any thread; the file goes with the last reference to it."""

    def __init__(self) -> None:
        self._file = tempfile.SpooledTemporaryFile(IN_MEMORY)  # noqa: SIM115 - it lives as long as the shelf
        self._lock = threading.Lock()
        self._end = 0

    def put(self, data: bytes) -> "Shelved":
        """Keep ``data``.

        Raises:
            BusSmpError: if the disk is full.
        """
        with self._lock, explained(Path(tempfile.gettempdir())):
            self._file.seek(self._end)
            self._file.write(data)
            place = Shelved(self, self._end)
            self._end += len(data)
            return place

    def get(self, start: int, length: int) -> bytes:
        with self._lock:
            self._file.seek(start)
            return self._file.read(length)


@dataclass(frozen=True, slots=True)
class Shelved:
    """Where something lies on a shelf."""

    shelf: Shelf
    start: int

    def __getitem__(self, part: slice) -> bytes:
        return self.shelf.get(self.start + part.start, part.stop - part.start)
