"""Work on all cores, results in order, a bounded number of them waiting."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def usable_cores() -> int:
    """Cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def computed_ahead(jobs: Iterable[Callable[[], T]]) -> Iterator[T]:
    """The jobs' results in order, computed by threads a few jobs ahead of whoever takes them.

    Memory holds one result a core and two more. Jobs should release the GIL (numpy, ctypes, reads).
    A job's error is raised in its place; jobs not yet begun are then dropped.
    """
    workers = usable_cores()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="pigguf")
    pending: deque[Future[T]] = deque()
    try:
        for job in jobs:
            pending.append(pool.submit(job))
            if len(pending) > workers + 1:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
