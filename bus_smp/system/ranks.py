"""Several processes that do one job together, as ``torchrun`` starts them: their numbers and what they exchange.

Without ``torchrun`` there is one process: every function here also works for it, and nothing is started.
"""

import functools
import os
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

if TYPE_CHECKING:
    pass

Item = TypeVar("Item")
Answer = TypeVar("Answer")
Arguments = ParamSpec("Arguments")

# How long the others wait while the first process builds a cache or calibrates. If a process dies, the job ends
# earlier, because torchrun stops the others.
_PATIENCE = timedelta(hours=12)


# True while only the first process works, within ``on_first``: ``count()`` is then 1.
_only_first = False


def rank() -> int:
    """The number of this process, 0 .. ``count() - 1``."""
    return int(os.environ.get("RANK", 0)) if count() > 1 else 0


def count() -> int:
    """How many processes there are."""
    return int(os.environ.get("WORLD_SIZE", 1)) if "RANK" in os.environ and not _only_first else 1


def local_rank() -> int:
    """The number of this process on its own machine: that of its GPU."""
    return int(os.environ.get("LOCAL_RANK", 0)) if count() > 1 else 0


def is_first() -> bool:
    """Whether this is the only process that prints and writes."""
    return rank() == 0


@contextmanager
def together() -> Iterator[None]:
    """Connect the processes while the block runs; inside another ``together`` block nothing happens."""
    if count() == 1:
        yield
        return
    import torch
    import torch.distributed as dist

    if dist.is_initialized():
        yield
        return
    how = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank() % torch.cuda.device_count())
        how = "cpu:gloo,cuda:nccl"
    dist.init_process_group(how, store=_meet(), rank=rank(), world_size=count(), timeout=_PATIENCE)
    yield
    # Not after an error: the others may be waiting for this process, which has to end for torchrun to stop them.
    dist.barrier()
    dist.destroy_process_group()


def _meet() -> Any:
    """Return a key-value store that only the processes of this start use.

    The store of torchrun still holds the addresses of processes that a restart has replaced. So each process writes a
    new random name into it, and the first process answers under that name with the prefix of a new store. It answers
    names of dead processes too, but nobody reads those answers.
    """
    import torch.distributed as dist

    notes, _, _ = next(dist.rendezvous("env://", rank(), count()))  # type: ignore[attr-defined]
    own = uuid.uuid4().hex
    if is_first():
        missing = set(range(1, count()))
        while missing:
            for other in sorted(missing):
                if notes.check([f"name {other}"]):
                    notes.set(f"for {notes.get(f'name {other}').decode()}", own)
                if notes.check([f"{own} {other}"]):
                    missing.discard(other)
            time.sleep(0.02)
    else:
        notes.set(f"name {rank()}", own)
        own = notes.get(f"for {own}").decode()
        notes.set(f"{own} {rank()}", "here")
    return dist.PrefixStore(own, notes)  # type: ignore[attr-defined]


def gather(mine: Answer) -> list[Answer]:
    """What every process passed in, in the order of their ranks; the same list in each of them."""
    if count() == 1:
        return [mine]
    import torch.distributed as dist

    answers: list[Any] = [None] * count()
    dist.all_gather_object(answers, mine)
    return answers


def on_first(call: Callable[[], Answer]) -> Answer:
    """Call only in the first process and return its answer in all, which wait for it. Its exception is raised in all."""
    global _only_first
    if count() == 1:
        return call()
    outcome: tuple[Any, Exception | None] = (None, None)
    if is_first():
        _only_first = True
        try:
            outcome = (call(), None)
        except Exception as error:
            outcome = (None, error)
        finally:
            _only_first = False
    answer, raised = gather(outcome)[0]
    if raised is not None:
        raised.shown_by_first = not is_first()  # type: ignore[attr-defined]
        raise raised
    return answer


def after_first(call: Callable[[], Answer]) -> Answer:
    """Call in the first process and then in all others, which can use what the first one made."""
    if not is_first():
        gather(None)
    answer = call()
    if is_first():
        gather(None)
    return answer


def by_first(function: Callable[Arguments, Answer]) -> Callable[Arguments, Answer]:
    """Decorate a function that writes, so that every call goes through ``on_first``."""

    @functools.wraps(function)
    def called(*arguments: Arguments.args, **options: Arguments.kwargs) -> Answer:
        return on_first(lambda: function(*arguments, **options))

    return called


def is_lost(error: Exception) -> bool:
    """Whether this is the error of a process that waits for another one, which has died."""
    signs = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer")
    return count() > 1 and isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)


def is_shown_by_first(error: Exception) -> bool:
    """Whether it is the error of the first process, which shows it itself."""
    return getattr(error, "shown_by_first", False)


def share(items: Sequence[Item]) -> list[Item]:
    """The items of this process: one of every ``count()``, beginning with the ``rank()``-th."""
    return list(items[rank() :: count()])


def interleave(shares: Sequence[Sequence[Item]]) -> list[Item]:
    """Undo ``share``: all items in their first order, from what each process made of its share."""
    longest = max(map(len, shares), default=0)
    return [part[place] for place in range(longest) for part in shares if place < len(part)]
