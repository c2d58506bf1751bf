"""Checks of a path before something is written to it, and errors if that fails."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

from pigguf.errors import OutputError

# Of a temporary file's name next to the target; short, because the target's own name may be long.
TEMPORARY_PREFIX, TEMPORARY_SUFFIX = ".pigguf-", ".partial"


def resolve_link(target: Path) -> Path:
    """Return what a symbolic link points to, whether that exists or not; any other path unchanged."""
    return Path(os.path.realpath(target)) if target.is_symlink() else target


def check_file_target(target: Path, expected_bytes: int) -> None:
    """Raise if a file of `expected_bytes` cannot be written at `target`.

    Raises:
        OutputError: the target is not a regular file, its directory is missing, or the disk is too small.
    """
    if target.is_dir():
        raise OutputError(f"{target} is a directory", "give the path of a file")
    if target.exists() and not target.is_file():
        raise OutputError(f"{target} is a device or a pipe, not a file", "give the path of a file")
    check_parent(target)
    free = shutil.disk_usage(target.parent).free
    if expected_bytes > free:
        raise OutputError(
            f"{target} takes {expected_bytes / 1e9:.2f} GB and the disk has {free / 1e9:.2f} GB free",
            "free some space, or write to another disk with `output`",
        )


def check_parent(target: Path) -> None:
    """Raise OutputError if the directory that `target` is to be written in does not exist."""
    if not target.parent.is_dir():
        raise OutputError(f"{target.parent} is not a directory", f"create it: mkdir -p {target.parent}")


def permissions_for(target: Path) -> int:
    """Return the mode bits of an existing file, or those that the umask leaves to a new one."""
    try:
        return target.stat().st_mode & 0o7777
    except FileNotFoundError:
        return 0o666 & ~current_umask()


def current_umask() -> int:
    """Return the process's umask."""
    umask = os.umask(0)
    os.umask(umask)
    return umask


def output_error(target: Path, error: OSError) -> OutputError:
    """Return the OutputError to raise for a failed write, with a hint."""
    hints = {
        errno.ENOSPC: "the disk is full: free some space, or write to another disk with `output`",
        errno.EDQUOT: "the disk quota is used up: free some space, or write to another disk with `output`",
        errno.EFBIG: "the file is larger than this file system or the process's limit allows",
        errno.EACCES: "write to a directory that you may write to, with `output`",
        errno.EROFS: "the disk is read-only: write to another one with `output`",
        errno.EMFILE: "too many open files: use a larger `shard_size`, or raise the limit (ulimit -n)",
    }
    return OutputError(f"{target}: {error.strerror or error}", hints.get(error.errno or 0))
