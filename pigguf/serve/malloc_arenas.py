"""glibc's malloc, as a process wants it that stays: what was freed goes back to the system.

By default each of some threads has an arena of its own, up to eight for each core, and in each stays the most
that was ever in use there: after a body of 10 MB 18 MiB, after a weight was sent to a worker its size.
Elsewhere than under glibc nothing is done. Upstream: glibc's malloc/malloc.h, mallopt(3), malloc_trim(3).
"""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Any

_M_ARENA_MAX = -8  # malloc.h
_ARENAS = 2


def limit_arenas() -> None:
    """For the whole process, before there are threads; MALLOC_ARENA_MAX goes before it."""
    if "MALLOC_ARENA_MAX" not in os.environ and (mallopt := _glibc("mallopt")) is not None:
        mallopt(_M_ARENA_MAX, _ARENAS)


def release_free_memory() -> None:
    """What was freed, as far as it makes whole pages. It takes milliseconds."""
    if (trim := _glibc("malloc_trim")) is not None:
        trim(0)


def _glibc(name: str) -> Any:
    """A function of the C library; None where that is another one, which has no malloc_trim."""
    if sys.platform != "linux":
        return None
    library = ctypes.CDLL(None)
    return getattr(library, name) if hasattr(library, "malloc_trim") else None
