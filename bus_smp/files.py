"""Writing files so that a half-written one is never seen under its final name."""

import errno
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bus_smp.errors import BusSmpError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; when the block ends well, it takes the place of ``path``.

    The bytes are on the disk before the name changes, so a kill or a power cut leaves either the
    old file or the new one. On any error the temporary file is removed and ``path`` is untouched.
    The temporary name keeps the suffix, for writers that choose their format by it.

    Raises:
        BusSmpError: if the disk is full or the folder cannot be written to.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem[:80]}.{uuid.uuid4().hex[:8]}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise BusSmpError(
                f"{path}: the disk is full", hint="free some space and run the same command again"
            ) from None
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR, errno.EEXIST):
            raise BusSmpError(f"{path}: cannot be written ({error.strerror})") from None
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8 with LF line ends, all or nothing."""
    with replacing(path) as temporary:
        temporary.write_bytes(text.encode("utf-8"))
