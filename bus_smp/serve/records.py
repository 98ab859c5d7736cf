"""The readers' answers on disk: lines that are only ever added, each with the hash of the line before it.

``records.jsonl`` has one JSON object a line. ``previous`` is the SHA-256 of the line before, so a line that was changed,
removed or put in shows; only lines cut off at the end do not. A line is on the disk before the page hears of it. Masks
are PNG files next to it, written before the line that names them.
"""

import contextlib
import csv
import hashlib
import json
import os
import secrets
import threading
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from bus_smp.classes import LABELS
from bus_smp.data.dicom import are_alike
from bus_smp.data.images import write_mask, write_png
from bus_smp.errors import DataError
from bus_smp.system.files import explained, remove_leftovers, replacing
from bus_smp.system.locks import hold_lock
from bus_smp.text import harmless

SCHEMA = 1
RECORDS = "records.jsonl"
CORRECTIONS = "corrections.csv"
_COLUMNS = ("image", "masks", "label", "patient_id", "mask_format", "image_id", "pixel_mm", "flags")
_FIRST = "0" * 64
# Key of the hash that stands for a patient's id.
_KEY_FILE = ".patient-key"


class Journal:
    """The records of one folder, open for writing; from ``open_journal``.

    Attributes:
        records: all that the folder holds, oldest first.
        cut: whether a line that a killed process left unfinished was removed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path = folder / RECORDS
        fresh = not path.exists()
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0), 0o600)
        self.records, whole, self._last = _parse(path)
        self.cut = whole < os.fstat(self._file).st_size
        os.ftruncate(self._file, whole)
        if fresh and os.name == "posix":
            place = os.open(folder, os.O_RDONLY)
            os.fsync(place)
            os.close(place)
        self._lock = threading.Lock()

    def append(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Add a record and wait until the disk has it; return it with ``schema``, ``time`` and ``previous``.

        Raises:
            BusSmpError: if it cannot be written; the file is then as it was.
        """
        with self._lock, explained(self.folder / RECORDS):
            now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
            full = {"schema": SCHEMA, "time": now, **record, "previous": self._last}
            line = json.dumps(full, ensure_ascii=False, allow_nan=False).encode()
            size = os.fstat(self._file).st_size
            try:
                rest = line + b"\n"
                while rest:
                    rest = rest[os.write(self._file, rest) :]
                os.fsync(self._file)
            except OSError:
                os.ftruncate(self._file, size)
                raise
            self._last = hashlib.sha256(line).hexdigest()
            self.records.append(full)
            return full

    def patient_key(self, patient: str) -> str:
        """What stands for a patient in the records: the same for the same id, in this folder only; "" for none."""
        if not patient:
            return ""
        path = self.folder / _KEY_FILE
        if not path.exists():
            with replacing(path) as temporary:
                temporary.touch(0o600)
                temporary.write_text(secrets.token_hex(32))
        key = path.read_text().encode()
        return hashlib.blake2b(patient.encode(), key=key[:64], digest_size=8).hexdigest()

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


@contextlib.contextmanager
def open_journal(folder: Path) -> Iterator[Journal]:
    """Open the records of ``folder`` for this process only; the folder is made if absent.

    Raises:
        DataError: if another process has them open, or a line was changed.
        BusSmpError: if the folder cannot be written to.
    """

    def refuse() -> None:
        raise DataError(
            f"{folder}: another bus-smp serve is writing to it", hint="end that one, or use --to FOLDER"
        )

    with contextlib.ExitStack() as stack:
        with explained(folder):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            stack.enter_context(hold_lock(folder / ".lock", refuse))
            remove_leftovers(folder)
            journal = Journal(folder)
        try:
            yield journal
        finally:
            journal.close()


def read_records(folder: Path) -> list[dict[str, Any]]:
    """All records of a folder, oldest first; a line that is being written is left out.

    Raises:
        DataError: if there are none, or a line was changed, removed or put in.
    """
    path = Path(folder) / RECORDS
    if not path.is_file():
        raise DataError(f"{folder}: holds no {RECORDS}", hint="bus-smp serve --to FOLDER writes it")
    return _parse(path)[0]


def _parse(path: Path) -> tuple[list[dict[str, Any]], int, str]:
    """The records, the bytes of all whole lines, and the hash of the last one."""
    records, whole, last = [], 0, _FIRST
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                break
            try:
                record = json.loads(line)
                chained = record["previous"] == last and record["schema"] == SCHEMA
            except (ValueError, KeyError, TypeError):
                chained = False
            if not chained:
                raise DataError(
                    f"{path}: line {number} or one before it was changed, removed or put in",
                    hint="take the file from a backup; what follows that line cannot be trusted",
                )
            records.append(record)
            whole += len(line)
            last = hashlib.sha256(line[:-1]).hexdigest()
    return records, whole, last


def mask_sha256(mask: np.ndarray) -> str:
    """SHA-256 of the class indices of a mask, uint8 (H, W), line by line."""
    return hashlib.sha256(np.ascontiguousarray(mask).data).hexdigest()


def store_mask(folder: Path, case: str, mask: np.ndarray) -> dict[str, str]:
    """Write a mask as PNG in the colours of the classes; return its ``file`` (below ``folder``) and ``sha256``."""
    digest = mask_sha256(mask)
    name = f"masks/{case[:16]}-{digest[:8]}.png"
    if not (folder / name).exists():
        write_mask(folder / name, mask, durable=True)
    return {"file": name, "sha256": digest}


def store_image(folder: Path, case: str, image: np.ndarray) -> str:
    """Write the pixels that were read, without anything else of their file; return the path below ``folder``."""
    name = f"images/{case[:16]}.png"
    if not (folder / name).exists():
        write_png(folder / name, image)
    return name


def write_corrections(folder: Path, records: Sequence[Mapping[str, Any]]) -> int:
    """Write ``corrections.csv``, which ``make-manifest --csv`` takes: the last corrected mask of each image and reader.

    Returns:
        Number of its rows. Where two readers corrected one image, the row is that of the last.
    """
    rows: dict[str, dict[str, Any]] = {}
    for record in records:
        if record["kind"] != "final":
            continue
        # an image that was read again and left as the model has it is no correction any more
        rows.pop(record["case"], None)
        if record.get("image"):
            label = record["mask_label"]
            rows[record["case"]] = {
                "image": record["image"],
                "masks": "" if label == LABELS[0] else record["mask_after"]["file"],
                "label": label,
                "patient_id": record["patient"],
                "mask_format": "color",
                "image_id": record["case"][:16],
                "pixel_mm": _side(record["pixel_mm"]),
                "flags": f"corrected:{record['reader']}",
            }
    if rows or (folder / CORRECTIONS).exists():
        with (
            replacing(folder / CORRECTIONS) as temporary,
            temporary.open("w", encoding="utf-8", newline="") as file,
        ):
            writer = csv.DictWriter(file, _COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows({key: harmless(cell) for key, cell in row.items()} for row in rows.values())
    return len(rows)


def _side(pixel_mm: Sequence[float] | None) -> str:
    """The side of a pixel for the table, which takes pixels as square; "" for others and where it is not known."""
    if pixel_mm is None or not are_alike(*pixel_mm):
        return ""
    return f"{pixel_mm[0]:.6g}"
