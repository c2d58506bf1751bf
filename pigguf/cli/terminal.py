"""The terminal and the standard streams: fit to use at the start, left as they were found at the end.

    with left_as_found():        a bar hides the cursor, an answer the echo, line editing nearly all:
        ...                      where SIGTERM or SIGHUP ends the process, they are put back first
    before = switch_echo_off()
    restore(before)

Contract: a process in the background never touches the terminal's settings, for the system would stop it.
Left out: what is shown (render.py, answer_stream.py).
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
except ImportError:  # Windows: nothing is changed, so nothing is to be put back
    termios = None  # type: ignore[assignment]

_FATAL = ("SIGTERM", "SIGHUP")
_SHOW_CURSOR, _PLAIN_PASTE = b"\x1b[?25h", b"\x1b[?2004l"  # what rich and prompt_toolkit turn round


def open_missing_streams() -> None:
    """Put /dev/null in the place of each standard stream that is closed (`<&-`).

    Python has None there, and the next file opened would take the number: what C code writes to
    stderr would go into it.
    """
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number: this one
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", closefd=False))


@contextmanager
def left_as_found() -> Iterator[None]:
    """Put the terminal in order before a signal ends the process; a signal that is ignored (nohup) stays so.

    Dying is left to the signal's own action, so that whoever sent it sees it did. For commands that run
    a model and write no file: no exception is raised, for it could come in a callback from C and be lost.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = _settings()
    numbers = [getattr(signal, name) for name in _FATAL if hasattr(signal, name)]
    ours = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]

    def die(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        restore(before)
        if sys.stderr.isatty():
            with suppress(OSError):  # the terminal may be gone
                os.write(sys.stderr.fileno(), _SHOW_CURSOR + _PLAIN_PASTE)
        os.kill(os.getpid(), number)

    for number in ours:
        signal.signal(number, die)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def switch_echo_off() -> list[Any] | None:
    """The terminal's settings from before; None where stdin is no terminal of ours."""
    before = _settings()
    if before is not None:
        restore([*before[:3], before[3] & ~termios.ECHO, *before[4:]])
    return before


def restore(settings: list[Any] | None) -> None:
    """Put back what switch_echo_off returned."""
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
