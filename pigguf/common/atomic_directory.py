"""Directories that appear complete or not at all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pigguf.common.output_target import (
    TEMPORARY_PREFIX,
    TEMPORARY_SUFFIX,
    check_parent,
    current_umask,
    output_error,
    resolve_link,
)
from pigguf.errors import OutputError


@contextmanager
def atomic_directory(target: Path) -> Iterator[Path]:
    """Yield a temporary directory that becomes `target` when the block ends, or is removed if it raises.

    An existing empty directory is not replaced (it may be a mount or someone's working directory): the files
    are moved into it at the end.

    Raises:
        OutputError: the target exists and is not an empty directory, or cannot be made.
    """
    try:
        path = resolve_link(target)
        require_empty_directory(path)
        check_parent(path)
        parent = path if path.is_dir() else path.parent
        temporary = Path(tempfile.mkdtemp(prefix=TEMPORARY_PREFIX, suffix=TEMPORARY_SUFFIX, dir=parent))
        try:
            yield temporary
            _apply_umask(temporary)
            if parent is path:
                _move_files_to_parent(temporary)
            else:
                temporary.chmod(0o777 & ~current_umask())
                temporary.replace(path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    except OSError as error:
        raise output_error(target, error) from error


def require_empty_directory(directory: Path) -> None:
    """Raise at once if `atomic_directory` would refuse a path, before hours of work.

    Raises:
        OutputError: the path exists and is not an empty directory.
    """
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise OutputError(f"{directory} exists and is not an empty directory", "give a new path")


def _apply_umask(directory: Path) -> None:
    """Give files the usual permissions: some libraries write through private temporary files."""
    for file in directory.rglob("*"):
        if file.is_file():
            file.chmod(0o666 & ~current_umask())


def _move_files_to_parent(directory: Path) -> None:
    """Move a directory's files to its parent, and remove it."""
    for file in list(directory.iterdir()):
        file.replace(directory.parent / file.name)
    directory.rmdir()
