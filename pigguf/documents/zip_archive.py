"""ZIP archives that documents come in, read within bounds: a small one may unpack to terabytes."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pigguf.documents.parser_errors import report_damaged
from pigguf.errors import TextError

MAX_UNPACKED_BYTES = 256 << 20
"""Bytes that one part of an archive may unpack to; zipfile reads no more than a part's header claims."""

_ENCRYPTED = 0x1  # APPNOTE.TXT 4.4.4, general purpose bit 0


class ZipArchive:
    """An open archive; see opened_archive."""

    def __init__(self, path: Path, kind: str, file: zipfile.ZipFile) -> None:
        self._path = path
        self._kind = kind
        self._file = file

    def __contains__(self, name: str) -> bool:
        return name in self._file.NameToInfo

    def open(self, name: str, most: int = MAX_UNPACKED_BYTES) -> io.BufferedIOBase:
        """One part, to be read as a stream.

        Raises:
            TextError: it is not there, is encrypted, or unpacks to more than `most` bytes.
        """
        part = self._file.NameToInfo.get(name)
        if part is None:
            raise TextError(f"{self._path} is a damaged {self._kind}: it has no {name}", "download it again")
        if part.flag_bits & _ENCRYPTED:
            raise TextError(f"{self._path} is encrypted", "save a copy of it without the password")
        if part.file_size > most:
            raise TextError(
                f"{self._path}: {name} unpacks to {part.file_size:,} bytes, more than the {most:,} that "
                f"such a part of an honest {self._kind} has",
                "save its text as a plain text file",
            )
        return self._file.open(part)  # type: ignore[return-value]

    def read(self, name: str, most: int = MAX_UNPACKED_BYTES) -> bytes:
        """All of one part; raises as open does."""
        with self.open(name, most) as part:
            return part.read()


@contextmanager
def open_zip_archive(path: Path, kind: str) -> Iterator[ZipArchive]:
    """An archive, and whatever is wrong with it told as an error of its kind ("DOCX", "EPUB").

    Raises:
        TextError: it is damaged.
    """
    with report_damaged(path, kind), zipfile.ZipFile(path) as file:
        yield ZipArchive(path, kind, file)
