"""Errors of the libraries that parse documents, as errors of pigguf."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pigguf.errors import MissingPackage, PigError, TextError


@contextmanager
def require_package(purpose: str) -> Iterator[None]:
    """Wrap the import of a package of the extra pigguf[docs], needed for a purpose ("reading a PDF").

    Raises:
        MissingPackage: It is not installed.
    """
    try:
        yield
    except ImportError as error:
        raise MissingPackage(
            f"{purpose} needs the package {error.name or error}",
            'install it: pip install -e ".[docs]" in the clone',
        ) from error


@contextmanager
def report_damaged(path: Path, format_name: str) -> Iterator[None]:
    """Wrap the parsing of a file by a library, which may raise anything if the file is damaged.

    Raises:
        TextError: The library failed.
    """
    try:
        yield
    except (PigError, MemoryError):
        raise
    except Exception as error:
        raise TextError(
            f"{path} is a damaged {format_name}: {error or type(error).__name__}",
            "open it in its own program and save it again, or download it again",
        ) from error
