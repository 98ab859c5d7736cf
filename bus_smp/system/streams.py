"""Standard output and error where they cannot be written: closed, or led to a disk that is full."""

import contextlib
import io
import os
import sys

from bus_smp.errors import BusSmpError


def prepare() -> None:
    """From now on output that cannot be written is a ``BusSmpError``, and notes that cannot be written are left out.

    Only for the program itself, before it opens a file.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # The next file to be opened would take the place, and hold what somebody prints.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    sys.stdout = _reopened(sys.stdout, _Output)
    sys.stderr = _reopened(sys.stderr, _Notes)


class _Output(io.FileIO):
    """Results: a failed write is an error."""

    def write(self, data) -> int | None:
        try:
            return super().write(data)
        except BrokenPipeError:  # the reader (head, less) has what it wanted
            raise
        except OSError as error:
            # what is still buffered would fail again when the interpreter closes
            with contextlib.suppress(OSError), open(os.devnull, "wb") as nowhere:  # noqa: PTH123
                os.dup2(nowhere.fileno(), self.fileno())
            raise BusSmpError(f"the output cannot be written ({error.strerror})") from None


class _Notes(io.FileIO):
    """Progress and notes: a failed write is ignored."""

    def write(self, data) -> int | None:
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes


def _reopened(stream: io.TextIOBase | None, kind: type[io.FileIO]) -> io.TextIOBase:
    """The same stream through ``kind``; one that is no plain file descriptor (a notebook's, a Windows console's) as it is."""
    if stream is None:
        return open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115
    buffer = getattr(stream, "buffer", None)
    if type(getattr(buffer, "raw", buffer)) is not io.FileIO:  # python -u: without a buffer between
        return stream
    stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(kind(stream.fileno(), "w", closefd=False)),
        encoding=stream.encoding,
        errors=stream.errors,
        newline="\n",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
