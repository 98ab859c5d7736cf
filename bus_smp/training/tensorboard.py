"""Curves for TensorBoard, written by this thread, so that a full disk is an error like any other.

TensorBoard's own writer uses a thread whose errors cannot be caught, and puts the machine's name into the file name.
"""

import contextlib
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bus_smp.system.files import explained


class EventFile:
    """An event file of one process. TensorBoard skips a record that a kill cut short.

    Args:
        folder: must exist.
        first: TensorBoard hides points of earlier event files from this step on.

    Raises:
        BusSmpError: here and in ``add``, if the disk is full or the folder cannot be written to.
    """

    def __init__(self, folder: Path, first: int) -> None:
        from tensorboard.compat.proto.event_pb2 import SessionLog

        self._path = Path(folder) / f"events.out.tfevents.{int(time.time()):010d}.{os.getpid()}"
        with explained(self._path):
            self._file = self._path.open("ab")
        self._write(file_version="brain.Event:2", step=first)
        self._write(session_log=SessionLog(status=SessionLog.START), step=first)

    def add(self, values: Mapping[str, float], step: int) -> None:
        """Add one point to each curve; values that are not finite are left out."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        points = [Summary.Value(tag=name, simple_value=value) for name, value in finite.items()]
        self._write(summary=Summary(value=points), step=step)

    def close(self) -> None:
        """Close the file."""
        # an error of writing was raised by ``add``
        with contextlib.suppress(OSError):
            self._file.close()

    def _write(self, **parts: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        with explained(self._path):
            RecordWriter(self._file).write(Event(wall_time=time.time(), **parts).SerializeToString())
            self._file.flush()
