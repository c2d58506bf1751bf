"""SIGTERM and SIGHUP while something is written: what is half done is removed, then the process ends by them.

Left out: SIGINT, which Python turns into KeyboardInterrupt by itself.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


class _Terminated(BaseException):
    """Unwinds the block; no `except Exception` holds it up."""

    def __init__(self, number: int) -> None:
        self.number = number


@contextmanager
def tidy_termination() -> Iterator[None]:
    """Let the block's own clean-up run before a termination signal has its usual effect."""

    def unwind(number: int, frame: FrameType | None) -> None:
        raise _Terminated(number)

    before = {number: signal.getsignal(number) for number in _SIGNALS}
    handled = [number for number in _SIGNALS if before[number] is signal.SIG_DFL]  # nohup's SIG_IGN stays
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
