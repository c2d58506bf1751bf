"""Ctrl-C while llama.cpp runs: recorded at once, acted on when Python and C state agree again.

Python's own handler raises KeyboardInterrupt in whatever Python code runs next. Here that may be a callback
from C, through which no exception can pass, or the line between a decode and the record of what it decoded.
So SIGINT is deferred for a block, and passed to the previous handler when the block ends.

    with defer_sigint() as sigint:
        ...                      a callback from C may look at sigint.received and stop the work
    (the previous handler runs here, and usually raises KeyboardInterrupt)

Only Python's main thread receives signals; in other threads the block changes nothing.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class defer_sigint:
    """Defers SIGINT for a block. It is a class and not a generator because it is entered once a token.

    Attributes:
        received: whether SIGINT came since the block was entered.
    """

    __slots__ = ("_previous", "received")

    def __init__(self) -> None:
        self.received = False
        self._previous: Any = None

    def __enter__(self) -> defer_sigint:
        if threading.current_thread() is threading.main_thread():
            previous = signal.signal(signal.SIGINT, self._record)
            if callable(previous):
                self._previous = previous
            else:  # SIG_IGN or SIG_DFL stays in force
                signal.signal(signal.SIGINT, previous)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._previous is None:
            return
        signal.signal(signal.SIGINT, self._previous)
        if self.received and error is None:
            self._previous(signal.SIGINT, None)

    def _record(self, number: int, frame: FrameType | None) -> None:
        self.received = True
