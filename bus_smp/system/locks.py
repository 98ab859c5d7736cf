"""One process at a time: a lock that the system releases when its holder ends, even if it is killed."""

import contextlib
import errno
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

# Errors of a file system without locks.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextlib.contextmanager
def hold_lock(path: Path, on_wait: Callable[[], None]) -> Iterator[bool]:
    """Hold ``path`` while the block runs, after waiting for another holder; the file is removed afterwards.

    Args:
        path: a file that exists only for this purpose. Threads of one process wait for each other too.
        on_wait: called once if another holds the lock; it may raise instead of waiting.

    Yields:
        True. False where the file system has no locks: then others may be at work at the same time.

    Raises:
        OSError: if the file cannot be made.
    """
    lock = FileLock(path)
    held = True
    try:
        lock.acquire(timeout=0)
    except Timeout:
        on_wait()
        lock.acquire()
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        held = False
    try:
        yield held
    finally:
        # Before the release, because later the file may belong to another process. A waiting process notices that the
        # file is gone, and makes a new one.
        with contextlib.suppress(OSError):
            Path(path).unlink()
        if held:
            lock.release()
