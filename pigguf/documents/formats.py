"""The formats that documents come in: one registry, from a file's name and first bytes to what reads it.

A format is a row of FORMATS and a module with `read(path, most) -> Document`, imported when it is needed.
What is none of them and holds no null byte is text: Markdown, source code, logs, JSON and so on.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

from pigguf.common.files import unreadable
from pigguf.documents.document import Document
from pigguf.errors import TextError

_HEAD = 8192  # bytes that a file is known by
_CONVERT = "take out its text first"


@dataclass(frozen=True)
class DocumentFormat:
    """
    Attributes:
        suffixes: names of such files end so.
        holds: what stands in the first bytes of every such file.
        begins: how a file begins that is one whatever its name is; None where bytes do not tell.
        reader: the module that reads it.
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

# What begins so holds no text: its name, and what to do
_OTHERS: tuple[tuple[bytes, str, str], ...] = (
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an encrypted or old Office file", "save it as DOCX, unencrypted"),
    (b"\xff\xfe", "UTF-16 text", "convert it: iconv -f UTF-16 -t UTF-8"),
    (b"\xfe\xff", "UTF-16 text", "convert it: iconv -f UTF-16 -t UTF-8"),
    (b"PK\x03\x04", "a ZIP archive", "unpack it, and name the folder"),
    (b"\x1f\x8b", "a gzip archive", "unpack it first"),
    (b"GGUF", "a GGUF model", "the documents come after --docs, the model before"),
    (b"\x89PNG", "a PNG picture", _CONVERT),
    (b"\xff\xd8\xff", "a JPEG picture", _CONVERT),
    (b"GIF8", "a GIF picture", _CONVERT),
    (b"\x7fELF", "a program", "name a document"),
)  # fmt: skip


def load_document(path: Path, max_characters: int) -> Document:
    """A file as a document, by whatever format it has.

    Args:
        most: characters that may be held; nothing near more is read.

    Raises:
        TextError: it is damaged, encrypted, empty, or no document.
        TooLong: it is over `most` characters.
        UsageError: it is text that is not UTF-8.
        MissingPackage: its format's package is not installed.
        ReadError: the system refuses it.
    """
    try:
        found = detect_format(path)
        document = cast(_Reader, import_module(found.reader_module)).read(path, max_characters)
    except OSError as error:
        raise unreadable(path, error) from error
    if not document.text.strip():
        raise TextError(f"{path} holds no text", "name another document")
    return document


def detect_format(path: Path) -> DocumentFormat:
    """What reads a file.

    Raises:
        TextError: no format of ours.
        OSError: the system refuses it.
    """
    if not path.is_file():
        path.stat()
        raise TextError(f"{path} is no regular file", "name a file or a folder")
    with path.open("rb") as file:
        head = file.read(_HEAD)
    for known in DOCUMENT_FORMATS:
        if path.suffix.lower() in known.suffixes and known.magic in head[:1024]:
            return known
    for known in DOCUMENT_FORMATS:
        if known.header_pattern and known.header_pattern.match(head):
            return known
    for beginning, kind, hint in _OTHERS:
        if head.startswith(beginning):
            raise TextError(f"{path} is {kind}, not a document", hint)
    for known in DOCUMENT_FORMATS:
        if path.suffix.lower() in known.suffixes and known.magic:
            raise TextError(f"{path} is a damaged {known.name}, or none", "download it again")
    if b"\0" in head:
        raise TextError(f"{path} is a binary file, not a document", _CONVERT)
    return PLAIN_TEXT


class _Reader(Protocol):
    def read(self, path: Path, most: int) -> Document: ...
