"""The scheduler's events as an asynchronous iterator, for an asyncio event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress

from pigguf.serve.events import (
    Finished,
    PrefillProgress,
    QueuePosition,
    RequestEvent,
    RequestFailed,
    TextChunk,
)
from pigguf.serve.generation_request import GenerationRequest
from pigguf.serve.scheduler import Scheduler

StreamEvent = QueuePosition | PrefillProgress | TextChunk | Finished


class EventStream:
    """The events of several requests, each with its request's index, for one `async for`.

    Made in the event loop that iterates; the requests are submitted at once.

    Raises:
        RequestRefused: as Scheduler.submit.
    """

    def __init__(self, scheduler: Scheduler, requests: Sequence[GenerationRequest], timeout: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[tuple[int, RequestEvent]] = asyncio.Queue()
        self._unfinished = len(requests)
        self._handle = scheduler.submit(requests, self._deliver, timeout)

    def _deliver(self, index: int, event: RequestEvent) -> None:
        with suppress(RuntimeError):  # the loop is closed: no one is waiting any more
            self._loop.call_soon_threadsafe(self._events.put_nowait, (index, event))

    async def __aiter__(self) -> AsyncGenerator[tuple[int, StreamEvent], None]:
        """Yield (request index, event) until all requests are finished.

        Raises:
            PigError: a request failed; the others are cancelled.
        """
        try:
            while self._unfinished:
                index, event = await self._events.get()
                if isinstance(event, RequestFailed):
                    raise event.error
                self._unfinished -= isinstance(event, Finished)
                yield index, event
        finally:
            self.cancel()

    def cancel(self) -> None:
        """Cancel the requests that are not finished."""
        self._handle.cancel()
