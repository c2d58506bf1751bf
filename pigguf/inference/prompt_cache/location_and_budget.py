"""Where the prompt cache is on disk, and how many bytes it may take.

XDG_CACHE_HOME moves the directory, PIGGUF_PROMPT_CACHE_BUDGET sets the budget; there are no options for them.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from pigguf.common.cache_directory import cache_directory
from pigguf.errors import UsageError

BUDGET_VARIABLE = "PIGGUF_PROMPT_CACHE_BUDGET"
DEFAULT_BUDGET_BYTES = 10 * 10**9  # if the variable is not set
DISK_FRACTION = 0.25  # of the free disk space, if that is less
_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def prompt_cache_directory() -> Path:
    """Return the user's prompt cache directory, which may not exist yet.

    Raises:
        UsageError: the system has no home directory for this user.
    """
    return cache_directory("prompt-cache")


def budget_from_environment() -> int | None:
    """Return the bytes that PIGGUF_PROMPT_CACHE_BUDGET allows, 0 to cache nothing; None if it is not set.

    Raises:
        UsageError: its value is not a size.
    """
    value = os.environ.get(BUDGET_VARIABLE, "")
    if not value:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kMGT]?)B?", value.strip(), re.ASCII)
    if not match:
        raise UsageError(
            f"{BUDGET_VARIABLE} is {value!r}, which is not a size",
            "set it to a size like 500M or 20G, or to 0 to cache no prompts",
        )
    return int(float(match[1]) * _UNITS[match[2]])
