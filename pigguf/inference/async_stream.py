"""Generated text for asyncio: the engine computes in a thread, one text at a time.

The event loop is never blocked. A text is computed only when it is asked for, so nothing queues up behind a
slow consumer. A cancelled task stops the computation, even in the middle of a prompt, and the session is free
when the cancellation arrives; the same holds for aclose(). Exceptions arrive unchanged.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")

_INTERRUPT_INTERVAL = 0.01  # seconds


async def stream_in_thread(
    begin: Callable[[], Generator[str, None, None]], interrupt: Callable[[], None]
) -> AsyncGenerator[str, None]:
    """Yield what a generator yields, computed in a thread of its own.

    Args:
        begin: makes the generator; called in that thread.
        interrupt: stops what the thread computes; called from another thread.
    """
    thread = ThreadPoolExecutor(1, thread_name_prefix="pigguf")
    texts: Generator[str, None, None] | None = None
    try:
        texts = await _wait_for(thread.submit(begin), interrupt)
        while (text := await _wait_for(thread.submit(next, texts, None), interrupt)) is not None:
            yield text
    finally:
        if texts is not None:
            await _wait_for(thread.submit(texts.close), interrupt)
        thread.shutdown(wait=False)


async def _wait_for(work: Future[T], interrupt: Callable[[], None]) -> T:
    """Return the result of the work; if the task is cancelled meanwhile, stop the work first."""
    waiting = asyncio.wrap_future(work)
    try:
        return await asyncio.shield(waiting)
    except asyncio.CancelledError:
        while not waiting.done():
            interrupt()  # repeated, because an interrupt before the work begins has no effect
            with suppress(asyncio.CancelledError):
                await asyncio.wait([waiting], timeout=_INTERRUPT_INTERVAL)
        waiting.exception()  # retrieved, or asyncio would log that it never was; an interrupt is expected
        raise
