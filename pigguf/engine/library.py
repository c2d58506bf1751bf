"""The one door to llama.cpp: loads llama_cpp on first use and keeps its log out of the way.

    llama = library.load()          the llama_cpp module, backend initialized
    library.log_to(listener)        every log line goes to listener(line); None is silence, the default

The library's own lines never reach stderr by themselves. The last errors and warnings are remembered,
so that a refusal can say why (`last_complaint`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

LogListener = Callable[[str], None]


def load() -> Any:
    """The llama_cpp module, imported and initialized once.

    Raises:
        BackendUnavailable: it is not installed, or its shared library cannot be loaded.
    """
    raise NotImplementedError


def log_to(listener: LogListener | None) -> None:
    """Send the library's log lines, without their newline, to `listener`; None silences them."""
    raise NotImplementedError
