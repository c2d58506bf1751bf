"""What a format's library refuses, as pigguf's errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pigguf.errors import MissingPackage, PigError, TextError


@contextmanager
def require_package(purpose: str) -> Iterator[None]:
    """Around the import of a package of the extra.

    Raises:
        MissingPackage: it is not installed.
    """
    try:
        yield
    except ImportError as error:
        raise MissingPackage(
            f"{purpose} needs the package {error.name or error}",
            'install it: pip install -e ".[docs]" in the clone',
        ) from error


@contextmanager
def report_damaged(path: Path, kind: str) -> Iterator[None]:
    """Around the reading of a file by a library, which may meet a damaged one with any error there is.

    Raises:
        TextError: the library failed.
    """
    try:
        yield
    except (PigError, MemoryError):
        raise
    except Exception as error:
        raise TextError(
            f"{path} is a damaged {kind}: {error or type(error).__name__}",
            "open it in a program of its own and save it again, or download it again",
        ) from error
