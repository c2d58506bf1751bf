"""State of the terminal and the standard streams: missing streams, echo, and settings after a signal.

    with restore_on_termination():   # a progress bar hides the cursor, an answer turns the echo off:
        ...                          # SIGTERM and SIGHUP restore the terminal before they end the process
    settings = disable_echo()
    restore_settings(settings)

A process in the background never changes the terminal's settings, because the system would stop it.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

try:
    import termios
except ImportError:  # Windows: nothing is changed, so nothing is restored
    termios = None  # type: ignore[assignment]

_FATAL = ("SIGTERM", "SIGHUP")
_SHOW_CURSOR, _PLAIN_PASTE = b"\x1b[?25h", b"\x1b[?2004l"  # undo what rich and prompt_toolkit set


def open_missing_streams() -> None:
    """Open /dev/null instead of each standard stream that is closed (`<&-`).

    Otherwise Python has None for it, and the next file that is opened would get its descriptor: C code
    that writes to stderr would write into that file.
    """
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number: this one
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", closefd=False))


@contextmanager
def restore_on_termination() -> Iterator[None]:
    """Restore the terminal before SIGTERM or SIGHUP ends the process; ignored signals (nohup) stay ignored.

    The process is ended by the signal's default action, so that its parent sees the signal. For commands that
    run a model and write no file: no exception is raised, because it could be lost in a callback from C.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    settings = _settings()
    numbers = [getattr(signal, name) for name in _FATAL if hasattr(signal, name)]
    handled = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]

    def terminate(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        restore_settings(settings)
        if sys.stderr.isatty():
            with suppress(OSError):  # the terminal may be gone
                os.write(sys.stderr.fileno(), _SHOW_CURSOR + _PLAIN_PASTE)
        os.kill(os.getpid(), number)

    for number in handled:
        signal.signal(number, terminate)
    try:
        yield
    finally:
        for number in handled:
            signal.signal(number, signal.SIG_DFL)


def disable_echo() -> list[Any] | None:
    """Turn the terminal's echo off; return its settings from before, None if stdin is not our terminal."""
    before = _settings()
    if before is not None:
        restore_settings([*before[:3], before[3] & ~termios.ECHO, *before[4:]])
    return before


def restore_settings(settings: list[Any] | None) -> None:
    """Restore the settings that disable_echo returned."""
    if settings is not None and _in_foreground():
        with suppress(termios.error):  # the terminal may be gone
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, settings)


def _settings() -> list[Any] | None:
    if termios is None or not sys.stdin.isatty() or not _in_foreground():
        return None
    return termios.tcgetattr(sys.stdin)


def _in_foreground() -> bool:
    try:
        return os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
    except OSError:
        return False
