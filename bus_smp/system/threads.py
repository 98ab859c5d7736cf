"""Threads: how those of PyTorch wait, how many cores there are for them, and reading files in some.

Decoding leaves Python's lock, so two cores decode twice as fast.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TypeVar

Item = TypeVar("Item")
Loaded = TypeVar("Loaded")


def spin_briefly() -> None:
    """Let PyTorch's threads sleep soon where they wait, unless the user has chosen how they wait.

    On a CPU that other processes use too, threads that spin keep the cores from those that they wait for. It has an
    effect only before PyTorch is loaded; processes started later inherit it.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def count_cores(mounted: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> int:
    """The cores that this process may use: not those that taskset, a container or a cluster's job withholds; at least 1.

    Args:
        mounted: where Linux shows the control groups, versions 1 and 2.
        membership: the groups of this process. A limit of any of the groups above them counts too.
    """
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS, Windows
        cores = os.cpu_count() or 1
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        lines = []
    # in a container the root is the group of the process, whatever the path says
    for _, controllers, path in (line.split(":", 2) for line in ["0::/", "0:cpu:/", *lines]):
        top = mounted / "cpu" if "cpu" in controllers.split(",") else mounted
        own = top / path.lstrip("/")
        for group in (own, *own.parents):
            if group.is_relative_to(top) and (limit := _read_limit(group)):
                cores = min(cores, limit)
    return max(1, cores)


def _read_limit(group: Path) -> int | None:
    """Cores that a control group allows, rounded up; None without a limit."""
    for read in (
        lambda: (group / "cpu.max").read_text().split(),
        lambda: [(group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period")],
    ):
        try:
            quota, period = map(int, read())
            # -1 is no limit
            return -(-quota // period) if quota > 0 else None
        except (OSError, ValueError, ZeroDivisionError):
            # not of this version; or "max", no limit
            continue
    return None


def read_ahead(
    load: Callable[[Item], Loaded], items: Iterable[Item], *, threads: int = 2, ahead: int = 16
) -> Iterator[Loaded]:
    """Yield ``load(item)`` in order while the next few load in threads, so decoding overlaps with what the caller does.

    At most ``ahead`` results wait, so memory does not grow with the number of items. An exception
    of ``load`` is raised where its item's turn comes.
    """
    # here, because the command line imports this module for every command
    from concurrent.futures import ThreadPoolExecutor

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
