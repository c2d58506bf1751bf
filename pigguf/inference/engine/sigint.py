"""Ctrl-C while llama.cpp runs: noted at once, acted on when the books are straight.

Python's own handler raises KeyboardInterrupt in whatever Python code runs next. Here that may be a
callback from C, through which no exception can travel, or the line between a decode and the note of
what it decoded. So SIGINT is held back for the block, and handed to whoever had it when it ends.

    with defer_sigint() as held:
        ...                      a callback from C may look at held.seen and stop the work
    (the previous handler runs here, and usually raises KeyboardInterrupt)

Only Python's main thread receives signals; elsewhere the block changes nothing.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class defer_sigint:
    """Holds SIGINT back for a block. A class, not a generator: it is entered once a token."""

    __slots__ = ("_previous", "seen")

    def __init__(self) -> None:
        self.seen = False
        self._previous: Any = None

    def __enter__(self) -> defer_sigint:
        if threading.current_thread() is threading.main_thread():
            previous = signal.signal(signal.SIGINT, self._note)
            if callable(previous):
                self._previous = previous
            else:  # ignored, or the end of the process: as before
                signal.signal(signal.SIGINT, previous)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._previous is None:
            return
        signal.signal(signal.SIGINT, self._previous)
        if self.seen and error is None:
            self._previous(signal.SIGINT, None)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.seen = True
