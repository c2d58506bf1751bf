"""Numbers of bytes as people read them.

Files are shown in powers of 1000, as disks and model hubs state them; memory in powers of 1024, as llama.cpp
and `free -h` show it.
"""

from __future__ import annotations


def format_bytes(count: float) -> str:
    """Format a file's size or a transfer rate in powers of 1000: 2340000000 as "2.34 GB"."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count:.0f} bytes"


def format_memory(count: int) -> str:
    """Format an amount of memory in powers of 1024: 1610612736 as "1.5 GiB"."""
    size = float(count)
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:,.1f} GiB"
