"""Writing files so that a half-written one is never seen under its final name."""

import contextlib
import errno
import hashlib
import os
import re
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from bus_smp.errors import BusSmpError

# EFBIG: a limit on the size of one file; for the user the same as a full disk
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}(\.[^.]+)?")
_REFUSED = (
    errno.EACCES,
    errno.EROFS,
    errno.EPERM,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.EISDIR,
    errno.ENAMETOOLONG,
    errno.ENOENT,
    # a disk or a network drive that went away
    errno.EIO,
    errno.ESTALE,
    errno.ENODEV,
    errno.ENOTCONN,
)


@contextlib.contextmanager
def explained(path: Path, needs: str = "") -> Iterator[None]:
    """Turn a full disk or a folder that cannot be written to into an error for people.

    Args:
        path: what is being written.
        needs: added to the message where the disk is full, e.g. "the cache needs 300 MB".

    Raises:
        BusSmpError: in place of the OSError of such a write. Any other OSError passes.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise BusSmpError(
                f"{path}: the disk is full{'; ' if needs else ''}{needs}",
                hint="free some space and run the same command again",
            ) from None
        if error.errno in _REFUSED:
            raise BusSmpError(
                f"{path}: cannot be written ({error.strerror})",
                hint="change its permissions, or name another place, and run the command again",
            ) from None
        raise


@contextlib.contextmanager
def replacing(path: Path, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path next to ``path``; when the block ends well, it takes the place of ``path``.

    The bytes are on the disk before the name changes, so a kill or a power cut leaves either the
    old file or the new one. On any error the temporary file is removed and ``path`` is untouched.
    The temporary name keeps the suffix, for writers that choose their format by it.

    Args:
        durable: False leaves out the wait for the disk: for many small files that can be made again, and
            which a power cut (not a kill) may then cut short.

    Raises:
        BusSmpError: if the disk is full or the folder cannot be written to, or ``path`` is a folder, a pipe, a
            device or a socket.
    """
    path = Path(path)
    # 40 characters are at most 160 bytes; a name may have 255
    temporary = path.with_name(f".{path.stem[:40]}.{uuid.uuid4().hex[:8]}{path.suffix}")
    with explained(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # for root, a file could take the place of /dev/null
            if path.exists() and not path.is_file():
                raise BusSmpError(
                    f"{path}: cannot be written (it is a folder, a pipe or a device)", hint="name a file"
                )
            yield temporary
            if durable:
                # Windows syncs only a file that is open for writing
                with temporary.open("rb+") as written:
                    os.fsync(written.fileno())
            temporary.replace(path)
        finally:
            # an earlier error is the one to report
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def list_leftovers(folder: Path) -> list[Path]:
    """The temporary files in ``folder`` that a killed ``replacing`` left, or that one needs just now."""
    return [path for path in Path(folder).glob(".*") if _TEMPORARY.fullmatch(path.name) and path.is_file()]


def remove_leftovers(folder: Path) -> None:
    """Delete the temporary files that a killed ``replacing`` left in ``folder``.

    Only for a folder that no other process writes to.
    """
    for path in list_leftovers(folder):
        path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8 with LF line ends, all or nothing."""
    with replacing(path) as temporary:
        temporary.write_bytes(text.encode("utf-8"))


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading bytes. Pipes and devices are refused: reading them could wait for ever, or act.

    Raises:
        OSError: as ``open`` does; its ``strerror`` gives the reason.
    """
    _refuse_irregular(os.stat(path).st_mode, path)  # noqa: PTH116 - one call for all kinds of path
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    file = open(os.open(path, flags), "rb")  # noqa: PTH123, SIM115 - closed by the caller
    try:
        # it may have been replaced meanwhile
        _refuse_irregular(os.fstat(file.fileno()).st_mode, path)
    except OSError:
        file.close()
        raise
    return file


def _refuse_irregular(mode: int, path: Path) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "is a folder", str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "is a pipe, device or socket, not a file", str(path))


def short_name(name: str, most: int) -> str:
    """``name`` itself if its UTF-8 has at most ``most`` bytes, else its beginning and 16 digits of its SHA-256."""
    data = name.encode("utf-8", "surrogateescape")
    if len(data) <= most:
        return name
    return f"{data[: most - 17].decode('utf-8', 'ignore')}-{hashlib.sha256(data).hexdigest()[:16]}"


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, 64 hex digits, read in blocks."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
