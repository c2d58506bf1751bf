"""The directories in which pigguf keeps what it can compute again: $XDG_CACHE_HOME/pigguf."""

from __future__ import annotations

import os
from pathlib import Path

from pigguf.errors import UsageError


def cache_directory(name: str) -> Path:
    """Return $XDG_CACHE_HOME/pigguf/<name>, a directory that may not exist yet.

    The default of XDG_CACHE_HOME is ~/.cache. A relative path in it is ignored, as the XDG Base Directory
    Specification demands.

    Raises:
        UsageError: the user has no home directory.
    """
    cache = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(cache):
        return Path(cache, "pigguf", name)
    try:
        return Path.home() / ".cache" / "pigguf" / name
    except RuntimeError as error:
        raise UsageError(
            f"there is no home directory to keep {name} in", "set HOME, or XDG_CACHE_HOME to a directory"
        ) from error
