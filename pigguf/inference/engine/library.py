"""llama.cpp's library: loaded on first use, its log kept off stderr, and parts of the log captured.

    llama = library.load()                      the llama_cpp module, its backends initialized
    library.log_to(listener)                    each line goes to listener(line); None is silence, the default
    with library.capture_errors() as errors:    the errors logged meanwhile, which say why a call failed
    with library.capture_log() as lines:        all that this thread logs meanwhile, to read sizes from

The library's lines never reach stderr by themselves. Debug lines are dropped: there are several a token.
"""

from __future__ import annotations

import atexit
import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from pigguf.errors import BackendUnavailable
from pigguf.llama_cpp_internals.limits import LOG_CONTINUE, LOG_DEBUG, LOG_ERROR, LOG_INFO
from pigguf.llama_cpp_internals.log_lines import strip_function_name

LogListener = Callable[[str], None]

NO_REASON = "it gave no reason"

_load_lock = threading.Lock()
_llama: Any = None


def load() -> Any:
    """Return the llama_cpp module, imported and initialized once.

    Raises:
        BackendUnavailable: it is not installed, or its shared library cannot be loaded.
    """
    global _llama
    with _load_lock:
        if _llama is None:
            _llama = _import_llama_cpp()
            _llama.llama_log_set(_router.callback(_llama), None)
            atexit.register(_stop_logging)
            _llama.llama_backend_init()
    return _llama


def log_to(listener: LogListener | None) -> None:
    """Send the library's log lines, without their newline, to `listener`; None silences them."""
    _router.listener = listener


class capture_errors:
    """Collects the error lines logged inside a block, without the name of the C function in front.

    It is a class and not a generator because it is entered once a token.
    """

    __slots__ = ("_errors",)

    def __enter__(self) -> list[str]:
        self._errors: list[str] = []
        _router.error_captures[id(self._errors)] = self._errors
        return self._errors

    def __exit__(self, *_: object) -> None:
        del _router.error_captures[id(self._errors)]


def failure_reason(errors: list[str], default: str = NO_REASON) -> str:
    """Return the first captured error, which is the cause of the others, or `default`."""
    return errors[0] if errors else default


def is_out_of_memory(errors: list[str]) -> bool:
    """Return whether captured errors report a failed allocation."""
    return any("alloc" in line or "out of memory" in line for line in errors)


@contextmanager
def capture_log() -> Iterator[list[str]]:
    """Collect what the thread that runs the block logs inside it, except debug lines.

    The library has one log: another package in the process, llama_cpp.Llama for one, may have set its own
    callback, and gets it back.
    """
    lines: list[str] = []
    llama = load()
    theirs, data = llama.llama_log_callback(), ctypes.c_void_p()
    llama.llama_log_get(ctypes.byref(theirs), ctypes.byref(data))
    llama.llama_log_set(_router.callback(llama), None)
    key = threading.get_ident()
    outer = _router.thread_captures.get(key)
    _router.thread_captures[key] = lines
    try:
        yield lines
    finally:
        llama.llama_log_set(theirs, data)
        if outer is None:
            del _router.thread_captures[key]
        else:
            _router.thread_captures[key] = outer


def _import_llama_cpp() -> Any:
    try:
        import llama_cpp
    except (ImportError, OSError, RuntimeError) as error:
        raise BackendUnavailable(
            f"the engine llama-cpp-python cannot be loaded: {error}",
            "run `pigguf doctor` to see what is missing",
        ) from error
    return llama_cpp


class _PartialLine(threading.local):
    """The line that a thread of llama.cpp has begun: lines of two that log at once must not mix."""

    level = LOG_INFO
    text = ""


class _LogRouter:
    """Joins the fragments that llama.cpp logs into lines, and passes these on."""

    def __init__(self) -> None:
        self.listener: LogListener | None = None
        self.error_captures: dict[int, list[str]] = {}
        self.thread_captures: dict[int, list[str]] = {}  # by thread
        self._partial = _PartialLine()
        self._callback: Any = None

    def callback(self, llama: Any) -> Any:
        """Return the C callback, which stays referenced here: C only has its address."""
        self._callback = self._callback or llama.llama_log_callback(self._receive)
        return self._callback

    def _receive(self, level: int, text: bytes | None, _: object) -> None:
        # A listener's exception must not pass through C frames; the line is lost, the work is not.
        with suppress(Exception):
            self._add_fragment(level, (text or b"").decode("utf-8", "replace"))

    def _add_fragment(self, level: int, text: str) -> None:
        partial = self._partial
        if level != LOG_CONTINUE:
            partial.level = level
        if partial.level == LOG_DEBUG:
            return
        *lines, partial.text = (partial.text + text).split("\n")
        for line in lines:
            self._dispatch(partial.level, line)

    def _dispatch(self, level: int, line: str) -> None:
        if level == LOG_ERROR:
            for errors in list(self.error_captures.values()):  # other threads add and remove theirs
                errors.append(strip_function_name(line))
        if (lines := self.thread_captures.get(threading.get_ident())) is not None:
            lines.append(strip_function_name(line))
        if self.listener is not None:
            self.listener(line)


_router = _LogRouter()


def _stop_logging() -> None:
    """Replace the log callback with a C function that ignores its arguments.

    Backends may log while the process ends, when Python's callback no longer exists.
    """
    _llama.llama_log_set(ctypes.cast(_llama.llama_time_us, _llama.llama_log_callback), None)
