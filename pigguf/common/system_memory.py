"""How much of this computer's memory is available, so that nothing starts which the system would kill.

Linux grants more memory than it has and kills processes that then use it. A KV cache is used as soon as it is
allocated, so its size is compared with the available memory first. Not here: a GPU's memory
(inference/engine/devices.py).
"""

from __future__ import annotations

import os
import re
from pathlib import Path

# Limit, usage and statistics of a container, in control groups version 2 and version 1.
_CGROUP_FILES = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        "/sys/fs/cgroup/memory/memory.stat",
    ),
)
# The page cache counts as used, but is reclaimed when memory is short (after a model was read it is large).
# Version 1 has total_* lines that include the groups inside this one, whose use is counted, too.
_PAGE_CACHE = (r"^total_(?:in)?active_file (\d+)$", r"^(?:in)?active_file (\d+)$")


def available_memory() -> int | None:
    """Return the bytes that can be allocated without swapping; None if the system does not report them."""
    amounts = [_system_memory(), *(_cgroup_memory(*files) for files in _CGROUP_FILES)]
    return min((amount for amount in amounts if amount is not None), default=None)


def _system_memory() -> int | None:
    """Return the available memory of the whole system."""
    try:
        available = re.search(r"^MemAvailable:\s+(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE)
    except OSError:
        # Not Linux: the total memory, as an upper bound.
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else None
    return int(available[1]) * 1024 if available else None


def _cgroup_memory(limit: str, usage: str, statistics: str) -> int | None:
    """Return the available memory of a container, from three files of its control group."""
    try:
        maximum, used = int(Path(limit).read_text()), int(Path(usage).read_text())
        text = Path(statistics).read_text()
        matches = (re.findall(pattern, text, re.MULTILINE) for pattern in _PAGE_CACHE)
        page_cache = sum(map(int, next(filter(None, matches), [])))
        return max(0, maximum - max(0, used - page_cache))
    except (OSError, ValueError):
        return None  # no such control group, or "max": no limit
