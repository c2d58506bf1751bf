"""Positioned reads that are never short, errors for files that cannot be read, and JSON files."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pigguf.errors import ReadError

T = TypeVar("T")


def read_exactly(descriptor: int, buffer: memoryview, offset: int, path: Path) -> None:
    """Fill `buffer` (bytes) with the file's bytes from `offset` on; the descriptor's position does not move.

    Raises:
        ReadError: the file ends before the buffer is full, or the disk fails.
    """
    done = 0
    while done < len(buffer):
        try:
            count = os.preadv(descriptor, [buffer[done:]], offset + done)
        except OSError as error:
            raise ReadError(f"{path}: {error.strerror or error} at byte {offset + done}") from error
        if count == 0:
            raise ReadError(
                f"{path}: the file ends at byte {offset + done}: it became shorter while it was read"
            )
        done += count


def open_with(path: Path, read: Callable[[int], T]) -> T:
    """Open a file and return `read(descriptor)`.

    `read` takes over the descriptor; it is closed here only if `read` fails.

    Raises:
        ReadError: the file cannot be opened or read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    except OSError as error:
        raise read_error(path, error) from error
    try:
        return read(descriptor)
    except BaseException as error:
        os.close(descriptor)
        if isinstance(error, OSError):
            raise read_error(path, error) from error
        raise


def read_error(path: Path, error: OSError) -> ReadError:
    """Return the error to raise if the system cannot open or read a file, with a hint."""
    hints = {
        errno.ENOENT: "check the spelling of the path",
        errno.EACCES: f"make it readable, as its owner: chmod +r {path}",
        errno.EISDIR: "give the path of a file, not of a directory",
    }
    return ReadError(f"{path}: {error.strerror or error}", hints.get(error.errno or 0))


def damaged_file_hint(beginning: bytes) -> str:
    """Return a hint for a file whose content is wrong, based on its first bytes."""
    if beginning.startswith(b"version https://git-lfs"):
        return "this is only a git-lfs pointer to the file: run `git lfs pull` in the checkpoint's directory"
    return "the file is damaged: download it again"


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object, indented, with a line break at its end."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
