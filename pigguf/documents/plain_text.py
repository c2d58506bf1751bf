"""Plain text, Markdown, source code and whatever else is UTF-8: as it is, by its own lines."""

from __future__ import annotations

from pathlib import Path

from pigguf.common.text_decoding import decode_text
from pigguf.documents.document import Document, DocumentTooLong


def read(path: Path, max_characters: int) -> Document:
    """Return a text file as a document counted in lines.

    Raises:
        DocumentTooLong: It has more than `max_characters` bytes, of which each character has at least one.
        UsageError: It is not UTF-8.
    """
    return Document.from_text(path, read_text(path, max_characters))


def read_text(path: Path, max_characters: int) -> str:
    """Return the text of a UTF-8 file; raises as `read` does."""
    if path.stat().st_size > max_characters:
        raise DocumentTooLong(path, max_characters)
    with path.open("rb") as file:
        data = file.read(max_characters + 1)  # the file may have grown, or be in /proc, where sizes are 0
    if len(data) > max_characters:
        raise DocumentTooLong(path, max_characters)
    return decode_text(data, str(path))
