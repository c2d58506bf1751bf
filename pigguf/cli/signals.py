"""SIGTERM and SIGHUP while a file is written: unfinished files are removed before the process ends.

Not here: SIGINT, which Python turns into KeyboardInterrupt itself.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


class _Terminated(BaseException):
    """Unwinds the block; `except Exception` does not catch it."""

    def __init__(self, number: int) -> None:
        self.number = number


@contextmanager
def cleanup_on_termination() -> Iterator[None]:
    """Run the block's own clean-up before a termination signal ends the process."""

    def unwind(number: int, frame: FrameType | None) -> None:
        raise _Terminated(number)

    before = {number: signal.getsignal(number) for number in _SIGNALS}
    handled = [number for number in _SIGNALS if before[number] is signal.SIG_DFL]  # nohup's SIG_IGN is kept
    for number in handled:
        signal.signal(number, unwind)
    try:
        yield
    except _Terminated as terminated:
        signal.signal(terminated.number, signal.SIG_DFL)
        os.kill(os.getpid(), terminated.number)
    finally:
        for number in handled:
            signal.signal(number, before[number])
