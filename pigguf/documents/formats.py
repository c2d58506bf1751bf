"""Document formats: which one a file has, by its name and first bytes, and which module reads it.

A format is an entry of DOCUMENT_FORMATS and a module with `read(path, max_characters) -> Document`, which is
imported when it is needed. A file of no known format without null bytes is plain text: Markdown, source code,
logs, JSON and so on.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

from pigguf.common.file_io import read_error
from pigguf.documents.document import Document
from pigguf.errors import TextError

_HEAD_BYTES = 8192
_MAGIC_BYTES = 1024  # a PDF may begin with some other bytes
_EXTRACT_TEXT = "extract its text first"


@dataclass(frozen=True)
class DocumentFormat:
    """A format that documents are read in.

    Attributes:
        name: As messages call it.
        suffixes: How the names of such files end.
        magic: Bytes that are within the first 1024 of every such file; b"" if there are none.
        header_pattern: Matches the beginning of such a file whatever its name is; None if bytes do not tell.
        reader_module: The module that reads it.
    """

    name: str
    suffixes: tuple[str, ...]
    magic: bytes
    header_pattern: re.Pattern[bytes] | None
    reader_module: str


DOCUMENT_FORMATS = (
    DocumentFormat("PDF", (".pdf",), b"%PDF-", re.compile(rb"%PDF-\d"), "pigguf.documents.pdf"),
    DocumentFormat("DOCX", (".docx", ".docm"), b"PK\x03\x04", None, "pigguf.documents.docx"),
    DocumentFormat(
        "EPUB",
        (".epub",),
        b"PK\x03\x04",
        re.compile(rb"PK\x03\x04.{26}mimetypeapplication/epub\+zip", re.DOTALL),
        "pigguf.documents.epub",
    ),
    DocumentFormat(
        "HTML",
        (".html", ".htm", ".xhtml"),
        b"",
        re.compile(rb"\s*(<\?xml[^>]*>\s*)?<(!doctype\s+html|html)[\s>]", re.IGNORECASE),
        "pigguf.documents.html",
    ),
)
PLAIN_TEXT = DocumentFormat("text", (), b"", None, "pigguf.documents.plain_text")

# Files that are not documents: their first bytes, what they are, and what to do about it.
_NOT_DOCUMENTS: tuple[tuple[bytes, str, str], ...] = (
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an encrypted or old Office file", "save it as DOCX, unencrypted"),
    (b"\xff\xfe", "UTF-16 text", "convert it: iconv -f UTF-16 -t UTF-8"),
    (b"\xfe\xff", "UTF-16 text", "convert it: iconv -f UTF-16 -t UTF-8"),
    (b"PK\x03\x04", "a ZIP archive", "unpack it, and give the folder"),
    (b"\x1f\x8b", "a gzip archive", "unpack it first"),
    (b"GGUF", "a GGUF model", "give the model separately: `docs` takes documents"),
    (b"\x89PNG", "a PNG picture", _EXTRACT_TEXT),
    (b"\xff\xd8\xff", "a JPEG picture", _EXTRACT_TEXT),
    (b"GIF8", "a GIF picture", _EXTRACT_TEXT),
    (b"\x7fELF", "a program", "give a document"),
)  # fmt: skip


def load_document(path: Path, max_characters: int) -> Document:
    """Return a file as a document, whatever format it has.

    Args:
        path: The file.
        max_characters: The most characters to hold; not much more is read.

    Raises:
        TextError: It is damaged, encrypted, empty or not a document.
        DocumentTooLong: It has more than `max_characters`.
        UsageError: It is text, but not UTF-8.
        MissingPackage: The package for its format is not installed.
        ReadError: The system refuses to read it.
    """
    try:
        reader = cast(_FormatReader, import_module(detect_format(path).reader_module))
        document = reader.read(path, max_characters)
    except OSError as error:
        raise read_error(path, error) from error
    if not document.text.strip():
        raise TextError(f"{path} holds no text", "give another document")
    return document


def detect_format(path: Path) -> DocumentFormat:
    """Return the format of a file, by its name and its first bytes.

    Raises:
        TextError: It is not a document, or not in a format that is read.
        OSError: The system refuses to read it.
    """
    if not path.is_file():
        path.stat()  # raises if it does not exist
        raise TextError(f"{path} is not a regular file", "give a file or a folder")
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    by_suffix = [known for known in DOCUMENT_FORMATS if path.suffix.lower() in known.suffixes]
    for known in by_suffix:
        if known.magic in head[:_MAGIC_BYTES]:
            return known
    for known in DOCUMENT_FORMATS:
        if known.header_pattern and known.header_pattern.match(head):
            return known
    for magic, description, hint in _NOT_DOCUMENTS:
        if head.startswith(magic):
            raise TextError(f"{path} is {description}, not a document", hint)
    for known in by_suffix:
        if known.magic:
            raise TextError(f"{path} is damaged, or is not a {known.name}", "download it again")
    if b"\0" in head:
        raise TextError(f"{path} is a binary file, not a document", _EXTRACT_TEXT)
    return PLAIN_TEXT


class _FormatReader(Protocol):
    """A module that reads a format."""

    def read(self, path: Path, max_characters: int) -> Document: ...
