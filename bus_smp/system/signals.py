"""Ctrl-C and SIGTERM (sent by schedulers, Colab and torchrun): one line, the right exit code, no leftovers.

The first signal becomes an exception in the main thread, so that everything is closed as after an error. That does not
work if the main thread waits in compiled code, or if some code catches the exception. The process then ends after
``GRACE`` seconds, which is safe because every file is complete at any moment. A second signal ends the process at once.
So does a signal during an import, because there an exception may be caught (optional modules) or abort the process
(PyTorch).
"""

import contextlib
import os
import signal
import sys
import threading
import time
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Seconds. Docker waits for 10 and SLURM for 30 before they kill the process.
GRACE = 8.0


class Stopped(KeyboardInterrupt):
    """A signal asked the program to end. Code that does not catch Ctrl-C does not catch this."""


class _Receiver:
    """The signal that this process received, and the line to print when it ends."""

    def __init__(self, line: str) -> None:
        self.line = line
        self.received = 0
        self.printed = False

    def receive(self, number: int, frame: FrameType | None) -> None:
        again, self.received = self.received > 0, self.received or number
        if again or _imports(frame):
            self.end()
        raise Stopped

    def end(self) -> None:
        if self.line and not self.printed:
            # the terminal may be closed; Python's own stream may be in use
            with contextlib.suppress(OSError):
                os.write(2, f"\n{self.line}\n".encode())
        os._exit(128 + self.received)

    def watch(self, reader: int) -> None:
        """End the process ``GRACE`` seconds after a signal. The pipe reports a signal also if the main thread is busy."""
        while (number := os.read(reader, 1)) and number[0] not in SIGNALS:
            pass
        time.sleep(GRACE)
        self.received = self.received or number[0]
        self.end()

    def unraisable(self, about: "sys.UnraisableHookArgs") -> None:
        """What Python can only print, raised in a destructor for example."""
        if isinstance(about.exc_value, Stopped):
            # Python would print the exception and go on
            self.end()
        # After a signal, destructors report that workers are gone, which the user need not know.
        elif not self.received:
            sys.__unraisablehook__(about)


def _imports(frame: FrameType | None) -> bool:
    """Whether the frame, or one of its callers, is importing a module."""
    while frame and not frame.f_code.co_filename.startswith("<frozen importlib."):
        frame = frame.f_back
    return frame is not None


_receiver: _Receiver | None = None


def listen(line: str) -> None:
    """Make SIGINT and SIGTERM raise ``Stopped`` for the rest of the process, which then ends with ``line`` on stderr.

    Only for the program itself, in its main thread. A signal that is ignored (``nohup``, ``&``) stays ignored.
    """
    global _receiver
    _receiver = _Receiver(line)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _receiver.receive)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    sys.unraisablehook = _receiver.unraisable
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_restore_defaults)
    threading.Thread(target=_receiver.watch, args=(reader,), daemon=True).start()


def received_signal() -> int:
    """The number of the signal that asked this process to end; 0 if there was none."""
    return _receiver.received if _receiver else 0


def finish() -> None:
    """Restore the defaults when the work is done: a signal while Python closes must not look like an error."""
    if _receiver:
        _restore_defaults()


def stop(line: str) -> None:
    """Print that the program stopped, once, and exit with 128 + the signal's number (Ctrl-C's if none was received)."""
    receiver = _receiver or _Receiver(line)
    receiver.printed = True
    if receiver.line:
        print(receiver.line, file=sys.stderr, flush=True)
    sys.exit(128 + (receiver.received or signal.SIGINT))


def follow_parent() -> None:
    """For a child process that only serves its parent: leave Ctrl-C to it, and end when it ends, even if it was killed."""
    _restore_defaults()
    if sys.platform == "linux":
        import ctypes

        with contextlib.suppress(OSError, AttributeError):
            # 1 is PR_SET_PDEATHSIG
            ctypes.CDLL(None).prctl(1, int(signal.SIGKILL))


def _restore_defaults() -> None:
    """Ignore Ctrl-C and let SIGTERM end the process: in a forked child Ctrl-C is meant for the parent."""
    global _receiver
    if _receiver is not None:
        # the pipe leads to the parent's thread
        signal.set_wakeup_fd(-1)
        sys.unraisablehook = sys.__unraisablehook__
        _receiver = None
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
