"""Text as it is drawn, for asyncio: the engine works in a thread, a text ahead of nobody.

Contract: the event loop is never blocked. A text is computed when it is asked for, so nothing piles up
behind a slow reader. A task that is cancelled stops the computation, be it in the middle of a prompt, and
the session is free when the cancellation arrives; so it is after aclose(). Errors arrive as they are.
Left out: what the text is (inference/local_model.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")

_ASK_AGAIN = 0.01  # seconds


async def streamed(
    begin: Callable[[], Generator[str, None, None]], interrupt: Callable[[], None]
) -> AsyncGenerator[str, None]:
    """What a generator yields, computed in a thread of its own.

    Args:
        begin: makes the generator; called in the thread too.
        interrupt: stops what the thread computes, from any other.
    """
    thread = ThreadPoolExecutor(1, thread_name_prefix="pigguf")
    texts: Generator[str, None, None] | None = None
    try:
        texts = await _result(thread.submit(begin), interrupt)
        while (text := await _result(thread.submit(next, texts, None), interrupt)) is not None:
            yield text
    finally:
        if texts is not None:
            await _result(thread.submit(texts.close), interrupt)
        thread.shutdown(wait=False)


async def _result(work: Future[T], interrupt: Callable[[], None]) -> T:
    """What the work comes to. Where the task is cancelled meanwhile, the work is stopped first."""
    waiting = asyncio.wrap_future(work)
    try:
        return await asyncio.shield(waiting)
    except asyncio.CancelledError:
        while not waiting.done():
            interrupt()  # one that comes before the work begins is forgotten
            with suppress(asyncio.CancelledError):
                await asyncio.wait([waiting], timeout=_ASK_AGAIN)
        waiting.exception()  # looked at, or asyncio would complain: that the work was stopped is no news
        raise
