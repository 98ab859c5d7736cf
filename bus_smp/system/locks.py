"""One process at a time: a lock that the system takes back when its holder ends, also when it is killed."""

import contextlib
import errno
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

# What the system says where somebody holds the lock; any other answer means that it cannot lock there.
_HELD = (errno.EAGAIN, errno.EACCES, errno.EDEADLK)
_PAUSE = 0.1  # seconds between two tries


@contextlib.contextmanager
def alone(path: Path, on_wait: Callable[[], None]) -> Iterator[bool]:
    """Hold ``path`` while the block runs, after waiting for whoever holds it; the file is removed afterwards.

    Args:
        path: a file that exists for this purpose alone. Threads of one process wait for each other too.
        on_wait: called once if there is something to wait for.

    Yields:
        True. False where file system or platform have no such lock: then others may be at work at the same time.

    Raises:
        OSError: if the file cannot be made.
    """
    waited = False
    while True:
        with Path(path).open("a") as file:
            try:
                _take(file.fileno())
                held = _has_name(file.fileno(), path)  # or its holder removed it since we opened it
            except OSError as error:
                if error.errno not in _HELD:
                    _remove(path)
                    yield False
                    return
                held = False
            if held:
                try:
                    yield True
                finally:
                    _remove(path)  # while it is held: later, it could be another's
                break
        if not waited:
            on_wait()
            waited = True
        time.sleep(_PAUSE)
    if sys.platform == "win32":  # which keeps what is open
        _remove(path)


def _take(descriptor: int) -> None:
    try:
        import fcntl
    except ImportError:
        import msvcrt

        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    else:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _has_name(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))  # noqa: PTH116
    except FileNotFoundError:
        return False


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        Path(path).unlink()
