"""Where sessions are kept, and how much room they may take: two environment variables, and no options."""

from __future__ import annotations

import os
import re
from pathlib import Path

from pigguf.common.files import cache_directory
from pigguf.errors import UsageError

BUDGET_VARIABLE = "PIGGUF_SESSIONS_BUDGET"
MOST_BYTES = 10 * 10**9  # where the variable says nothing
DISK_SHARE = 0.25  # of what the disk has free, where that is less
_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def sessions_directory() -> Path:
    """The user's, which may not be there yet.

    Raises:
        UsageError: the system knows no home of this user.
    """
    return cache_directory("sessions")


def stated_budget() -> int | None:
    """Bytes that the environment allows for kept sessions, 0 for none of them; None where it says nothing.

    Raises:
        UsageError: it says something that is no size.
    """
    said = os.environ.get(BUDGET_VARIABLE, "")
    if not said:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([kMGT]?)B?", said.strip(), re.ASCII)
    if not found:
        raise UsageError(
            f"{BUDGET_VARIABLE} is {said!r}, which is no size", "say 500M or 20G, or 0 to keep no sessions"
        )
    return int(float(found[1]) * _UNITS[found[2]])
