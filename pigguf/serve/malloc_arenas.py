"""glibc malloc settings for a long-running process, so that freed memory goes back to the system.

By default glibc gives threads arenas of their own, up to eight a core, and each keeps the most memory that
was ever in use in it: 18 MiB after a request body of 10 MB, or the size of a weight after it was sent to a
worker. With another C library than glibc these functions do nothing.
Source: glibc's malloc/malloc.h, mallopt(3), malloc_trim(3).
"""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Any

_M_ARENA_MAX = -8  # malloc.h
_ARENAS = 2


def limit_arenas() -> None:
    """Limit the process to two arenas, unless MALLOC_ARENA_MAX is set. Call it before threads are started."""
    if "MALLOC_ARENA_MAX" not in os.environ and (mallopt := _glibc_function("mallopt")) is not None:
        mallopt(_M_ARENA_MAX, _ARENAS)


def release_free_memory() -> None:
    """Give whole pages of freed memory back to the system. It takes milliseconds."""
    if (malloc_trim := _glibc_function("malloc_trim")) is not None:
        malloc_trim(0)


def _glibc_function(name: str) -> Any:
    """Return a function of glibc; None with another C library."""
    if sys.platform != "linux":
        return None
    library = ctypes.CDLL(None)
    return getattr(library, name) if hasattr(library, "malloc_trim") else None  # musl has none
