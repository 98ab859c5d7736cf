"""Ctrl-C and SIGTERM, which schedulers, Colab and torchrun send: one line, the right exit code, nothing left behind.

The first signal becomes an exception in the main thread, so everything is closed as after an error. Where that does
not help, because the main thread waits in compiled code or somebody swallowed the exception, the process ends all the
same after ``GRACE`` seconds: each file is whole at any moment. A second signal ends it at once, and so does one that
comes during an import, where an exception may be swallowed (an optional module) or abort the process (PyTorch's own).
"""

import contextlib
import os
import signal
import sys
import threading
import time
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
GRACE = 8.0  # seconds; docker waits for 10 and SLURM for 30 before they kill


class Stopped(KeyboardInterrupt):
    """A signal asked the program to end; whoever lets Ctrl-C pass lets this pass."""


class _Ear:
    """What was heard by this process, and the last words to say."""

    def __init__(self, words: str) -> None:
        self.words = words
        self.heard = 0
        self.spoke = False

    def hear(self, number: int, frame: FrameType | None) -> None:
        again, self.heard = self.heard > 0, self.heard or number
        if again or _imports(frame):
            self.end()
        raise Stopped

    def end(self) -> None:
        if self.words and not self.spoke:
            with contextlib.suppress(OSError):  # a terminal that was closed
                os.write(2, f"\n{self.words}\n".encode())  # Python's own stream may be in use
        os._exit(128 + self.heard)

    def watch(self, reader: int) -> None:
        """End the process ``GRACE`` seconds after a signal; the system tells of it whatever the main thread does."""
        while (told := os.read(reader, 1)) and told[0] not in SIGNALS:
            pass
        time.sleep(GRACE)
        self.heard = self.heard or told[0]
        self.end()

    def unraisable(self, about: "sys.UnraisableHookArgs") -> None:
        """What Python can only print, raised in a destructor for example."""
        if isinstance(about.exc_value, Stopped):
            self.end()  # else it would be lost
        elif not self.heard:  # workers that got the signal too are missed by destructors: no news to the user
            sys.__unraisablehook__(about)


def _imports(frame: FrameType | None) -> bool:
    """Whether a module is being imported there, or by one of those that called it."""
    while frame and not frame.f_code.co_filename.startswith("<frozen importlib."):
        frame = frame.f_back
    return frame is not None


_ear: _Ear | None = None


def listen(words: str) -> None:
    """From now on SIGINT and SIGTERM raise ``Stopped``, for the rest of the process; ``words`` are said then.

    Only for the program itself, in its main thread. A signal that is ignored (``nohup``, ``&``) stays ignored.
    """
    global _ear
    _ear = _Ear(words)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _ear.hear)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    sys.unraisablehook = _ear.unraisable
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_deafen)
    threading.Thread(target=_ear.watch, args=(reader,), daemon=True).start()


def heard() -> int:
    """The signal that asked this process to end, 0 if none did."""
    return _ear.heard if _ear else 0


def finish() -> None:
    """The work is done: a signal that comes while the interpreter closes must not look like an error."""
    if _ear:
        _deafen()


def stop(words: str) -> None:
    """Say that the program stopped, once, and leave with 128 + the signal's number (Ctrl-C where none was heard)."""
    ear = _ear or _Ear(words)
    ear.spoke = True
    if ear.words:
        print(ear.words, file=sys.stderr, flush=True)
    sys.exit(128 + (ear.heard or signal.SIGINT))


def follow_parent() -> None:
    """For a child process that only serves its parent: leave Ctrl-C to it, and end when it ends, even if it was killed."""
    _deafen()
    if sys.platform == "linux":
        import ctypes

        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(1, int(signal.SIGKILL))  # PR_SET_PDEATHSIG


def _deafen() -> None:
    """A forked child is no program of its own: the terminal's Ctrl-C is for the parent, SIGTERM means the child."""
    global _ear
    if _ear is not None:
        signal.set_wakeup_fd(-1)  # it leads to the parent's thread
        sys.unraisablehook = sys.__unraisablehook__
        _ear = None
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
