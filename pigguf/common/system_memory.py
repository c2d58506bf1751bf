"""How much memory there is to take, so that nothing is begun which the system would kill.

Linux hands out more memory than it has and kills whoever then uses it. A KV cache is used as soon as
it is made, so its size is compared first. Only the computer's own memory: devices.py tells a GPU's.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

# What a container may use and does use, by version of the kernel's control groups, and what that is made of.
_GROUP_FILES = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        "/sys/fs/cgroup/memory/memory.stat",
    ),
)
# Pages of files count as used there and are given back when memory is short: those of a model just read, too.
# The first version says apart what groups inside of this one have, and counts theirs as used.
_FILE_PAGES = (r"^total_(?:in)?active_file (\d+)$", r"^(?:in)?active_file (\d+)$")


def available_memory() -> int | None:
    """Bytes that can be taken without pushing others out; None where the system does not tell."""
    told = [_of_system(), *(_of_group(*files) for files in _GROUP_FILES)]
    return min((bytes_ for bytes_ in told if bytes_ is not None), default=None)


def _of_system() -> int | None:
    try:
        available = re.search(r"^MemAvailable:\s+(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE)
    except OSError:
        # Not Linux: all there is, as an upper bound.
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else None
    return int(available[1]) * 1024 if available else None


def _of_group(limit: str, usage: str, parts: str) -> int | None:
    try:
        most, used = int(Path(limit).read_text()), int(Path(usage).read_text())
        told = Path(parts).read_text()
        files = next((found for form in _FILE_PAGES if (found := re.findall(form, told, re.MULTILINE))), [])
        return max(0, most - max(0, used - sum(map(int, files))))
    except (OSError, ValueError):
        return None  # no such group, or "max": no limit
