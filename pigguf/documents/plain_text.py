"""Text, Markdown, source code and whatever else is UTF-8: as it is, with its own lines for places."""

from __future__ import annotations

from pathlib import Path

from pigguf.common.text_decoding import decode_text
from pigguf.documents.document import Document, DocumentTooLong


def read(path: Path, most: int) -> Document:
    """
    Raises:
        TooLong: over `most` bytes, of which a character has one at least.
        UsageError: it is not UTF-8.
    """
    return Document.from_text(path, read_text(path, most))


def read_text(path: Path, most: int) -> str:
    """As read, without the places."""
    if path.stat().st_size > most:
        raise DocumentTooLong(path, most)
    with path.open("rb") as file:
        data = file.read(most + 1)  # it may have grown, or be one of /proc's, which have no size
    if len(data) > most:
        raise DocumentTooLong(path, most)
    return decode_text(data, str(path))
