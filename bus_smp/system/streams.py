"""Standard output and error that cannot be written to, because they are closed or go to a full disk, or take no Unicode."""

import codecs
import contextlib
import io
import os
import sys
from typing import Any, TextIO

from bus_smp.errors import BusSmpError


def _escape(error: UnicodeError) -> tuple[str, int]:
    r"""What an encoding lacks as ``\uXXXX``, astral characters as two: readable, and still JSON."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass")
    pairs = zip(units[::2], units[1::2], strict=True)
    return "".join(f"\\u{high:02x}{low:02x}" for high, low in pairs), error.end


codecs.register_error("bus_smp.escape", _escape)


def prepare() -> None:
    """Make a failed write to standard output raise ``BusSmpError``, and one to standard error be ignored.

    A character that the encoding of the stream lacks, as on a Windows pipe, becomes ``\\uXXXX``.

    Only for the program itself, before it opens a file.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # Otherwise the next file that is opened would get this number, and printed text would go into it.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    sys.stdout = _reopened(sys.stdout, _Output)
    sys.stderr = _reopened(sys.stderr, _Notes)


class _Output(io.FileIO):
    """Results: a failed write is an error."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        # the reader (head, less) needs no more
        except BrokenPipeError:
            raise
        except OSError as error:
            # what is still buffered would fail again when the interpreter closes
            with contextlib.suppress(OSError), open(os.devnull, "wb") as nowhere:  # noqa: PTH123
                os.dup2(nowhere.fileno(), self.fileno())
            raise BusSmpError(f"the output cannot be written ({error.strerror})") from None


class _Notes(io.FileIO):
    """Progress and notes: a failed write is ignored."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes


def _reopened(stream: TextIO | None, kind: type[io.FileIO]) -> TextIO:
    """The same stream through ``kind``; unchanged if it is no plain file descriptor (notebook, Windows console)."""
    if stream is None:
        return open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115
    buffer = getattr(stream, "buffer", None)
    # with python -u the stream has no buffer, and ``buffer`` is the file itself
    if type(getattr(buffer, "raw", buffer)) is not io.FileIO:
        return stream
    stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(kind(stream.fileno(), "w", closefd=False)),
        encoding=stream.encoding,
        errors="bus_smp.escape",
        newline="\n",
        # with python -u or PYTHONUNBUFFERED only write_through is set, which would not pass the buffer below
        line_buffering=getattr(stream, "line_buffering", False) or getattr(stream, "write_through", False),
    )
