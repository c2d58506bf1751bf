"""The one door to llama.cpp: loads llama_cpp on first use and keeps its log out of the way.

    llama = library.load()           the llama_cpp module, its backends initialized
    library.log_to(listener)         every log line goes to listener(line); None is silence, the default
    with library.complaints() as said:    the errors llama.cpp logs meanwhile, to say why it refused

The library's lines never reach stderr by themselves. Debug lines are dropped: there are several a token.
"""

from __future__ import annotations

import atexit
import ctypes
import threading
from collections.abc import Callable
from contextlib import suppress
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


def _import_llama_cpp() -> Any:
    try:
        import llama_cpp
    except (ImportError, OSError, RuntimeError) as error:
        raise BackendUnavailable(
            f"the engine llama-cpp-python cannot be loaded: {error}",
            "run `pigguf doctor` to see what is missing",
        ) from error
    return llama_cpp


class _Log:
    """Puts the fragments llama.cpp logs together into lines and hands them on."""

    def __init__(self) -> None:
        self.listener: LogListener | None = None
        self.collectors: dict[int, list[str]] = {}
        self._level = _INFO
        self._line = ""
        self._callback: Any = None

    def callback(self, llama: Any) -> Any:
        """The C callback; kept alive here, for C only has its address."""
        self._callback = llama.llama_log_callback(self._receive)
        return self._callback

    def _receive(self, level: int, text: bytes | None, _: object) -> None:
        # A listener's failure must not travel through C frames; the line is lost, the work is not.
        with suppress(Exception):
            self._fragment(level, (text or b"").decode("utf-8", "replace"))

    def _fragment(self, level: int, text: str) -> None:
        if level != _CONTINUE:
            self._level = level
        if self._level == _DEBUG:
            return
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            self._tell(line)

    def _tell(self, line: str) -> None:
        if self._level == _ERROR:
            for said in list(self.collectors.values()):  # other threads come and go
                said.append(_without_function(line))
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
