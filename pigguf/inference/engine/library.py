"""The one door to llama.cpp: loads llama_cpp on first use and keeps its log out of the way.

    llama = library.load()           the llama_cpp module, its backends initialized
    library.log_to(listener)         every log line goes to listener(line); None is silence, the default
    with library.complaints() as said:    the errors llama.cpp logs meanwhile, to say why it refused
    with library.log_lines() as lines:    all that it logs meanwhile on this thread, to read sizes from

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

LogListener = Callable[[str], None]

# ggml.h: enum ggml_log_level
_DEBUG, _INFO, _WARN, _ERROR, _CONTINUE = 1, 2, 3, 4, 5

_loading = threading.Lock()
_llama: Any = None


def load() -> Any:
    """The llama_cpp module, imported and initialized once.

    Raises:
        BackendUnavailable: it is not installed, or its shared library cannot be loaded.
    """
    global _llama
    with _loading:
        if _llama is None:
            _llama = _import_llama_cpp()
            _llama.llama_log_set(_log.callback(_llama), None)
            atexit.register(_stop_logging)
            _llama.llama_backend_init()
    return _llama


def log_to(listener: LogListener | None) -> None:
    """Send the library's log lines, without their newline, to `listener`; None silences them."""
    _log.listener = listener


class complaints:
    """Collects the error lines logged inside a block, without the name of the C function in front.

    A class, not a generator: it is entered once a token.
    """

    __slots__ = ("_said",)

    def __enter__(self) -> list[str]:
        self._said: list[str] = []
        _log.collectors[id(self._said)] = self._said
        return self._said

    def __exit__(self, *_: object) -> None:
        del _log.collectors[id(self._said)]


@contextmanager
def log_lines() -> Iterator[list[str]]:
    """Collects what is logged inside a block by the thread that runs it, debug lines apart.

    The log is the library's only one: another package in the process, llama_cpp.Llama for one, may have taken
    it, and gets it back.
    """
    lines: list[str] = []
    llama = load()
    theirs, data = llama.llama_log_callback(), ctypes.c_void_p()
    llama.llama_log_get(ctypes.byref(theirs), ctypes.byref(data))
    llama.llama_log_set(_log.callback(llama), None)
    key = threading.get_ident()
    before = _log.readers.get(key)
    _log.readers[key] = lines
    try:
        yield lines
    finally:
        llama.llama_log_set(theirs, data)
        if before is None:
            del _log.readers[key]
        else:
            _log.readers[key] = before


def _import_llama_cpp() -> Any:
    try:
        import llama_cpp
    except (ImportError, OSError, RuntimeError) as error:
        raise BackendUnavailable(
            f"the engine llama-cpp-python cannot be loaded: {error}",
            "run `pigguf doctor` to see what is missing",
        ) from error
    return llama_cpp


class _Unfinished(threading.local):
    """The line that a thread of llama.cpp is at: two that log at once must not mix theirs."""

    level = _INFO
    text = ""


class _Log:
    """Puts the fragments llama.cpp logs together into lines and hands them on."""

    def __init__(self) -> None:
        self.listener: LogListener | None = None
        self.collectors: dict[int, list[str]] = {}
        self.readers: dict[int, list[str]] = {}  # of a thread
        self._unfinished = _Unfinished()
        self._callback: Any = None

    def callback(self, llama: Any) -> Any:
        """The C callback; kept alive here, for C only has its address."""
        self._callback = self._callback or llama.llama_log_callback(self._receive)
        return self._callback

    def _receive(self, level: int, text: bytes | None, _: object) -> None:
        # A listener's failure must not travel through C frames; the line is lost, the work is not.
        with suppress(Exception):
            self._fragment(level, (text or b"").decode("utf-8", "replace"))

    def _fragment(self, level: int, text: str) -> None:
        unfinished = self._unfinished
        if level != _CONTINUE:
            unfinished.level = level
        if unfinished.level == _DEBUG:
            return
        *lines, unfinished.text = (unfinished.text + text).split("\n")
        for line in lines:
            self._tell(unfinished.level, line)

    def _tell(self, level: int, line: str) -> None:
        if level == _ERROR:
            for said in list(self.collectors.values()):  # other threads come and go
                said.append(_without_function(line))
        if (reader := self.readers.get(threading.get_ident())) is not None:
            reader.append(_without_function(line))
        if self.listener is not None:
            self.listener(line)


_log = _Log()


def _without_function(line: str) -> str:
    """ "llama_model_load: error loading model: no such key" -> "error loading model: no such key"."""
    function, colon, rest = line.partition(": ")
    return rest if colon and " " not in function else line


def _stop_logging() -> None:
    """Backends may log while the process ends, after Python is gone: give them a C function that
    ignores its arguments instead of our callback."""
    _llama.llama_log_set(ctypes.cast(_llama.llama_time_us, _llama.llama_log_callback), None)
