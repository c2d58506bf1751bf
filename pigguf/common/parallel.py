"""Work on all cores whose results come in order, with a bounded number of them in memory."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def usable_cores() -> int:
    """Return the number of cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def map_ahead(jobs: Iterable[Callable[[], T]]) -> Iterator[T]:
    """Yield the jobs' results in order, computed by threads a few jobs ahead of the consumer.

    At most one result per core and two more are in memory. Jobs should release the GIL (numpy, ctypes,
    reads). An error of a job is raised at its position; jobs that have not started are then cancelled.
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
