"""ZIP archives that documents come in. What is unpacked is limited: a small file may unpack to terabytes."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pigguf.documents.parser_errors import report_damaged
from pigguf.errors import TextError

MAX_UNPACKED_BYTES = 256 << 20
"""Bytes that one member of an archive may unpack to; zipfile reads no more than its header states."""

_ENCRYPTED = 0x1  # APPNOTE.TXT 4.4.4, general purpose bit 0


class ZipArchive:
    """An open archive; see `open_zip_archive`."""

    def __init__(self, path: Path, format_name: str, file: zipfile.ZipFile) -> None:
        self._path = path
        self._format_name = format_name
        self._file = file

    def __contains__(self, name: str) -> bool:
        return name in self._file.NameToInfo

    def open(self, name: str, max_bytes: int = MAX_UNPACKED_BYTES) -> io.BufferedIOBase:
        """Open one member as a stream.

        Raises:
            TextError: It is missing or encrypted, or unpacks to more than `max_bytes`.
        """
        member = self._file.NameToInfo.get(name)
        if member is None:
            raise TextError(
                f"{self._path} is a damaged {self._format_name}: it has no {name}", "download it again"
            )
        if member.flag_bits & _ENCRYPTED:
            raise TextError(f"{self._path} is encrypted", "save a copy of it without the password")
        if member.file_size > max_bytes:
            raise TextError(
                f"{self._path}: {name} unpacks to {member.file_size:,} bytes, more than the {max_bytes:,} "
                f"that a real {self._format_name} has there",
                "save its text as a plain text file",
            )
        return self._file.open(member)  # type: ignore[return-value]

    def read(self, name: str, max_bytes: int = MAX_UNPACKED_BYTES) -> bytes:
        """Return the whole of one member; raises as `open` does."""
        with self.open(name, max_bytes) as member:
            return member.read()


@contextmanager
def open_zip_archive(path: Path, format_name: str) -> Iterator[ZipArchive]:
    """Open an archive; errors while it is open are reported as damage to a `format_name` ("DOCX", "EPUB").

    Raises:
        TextError: It is damaged.
    """
    with report_damaged(path, format_name), zipfile.ZipFile(path) as file:
        yield ZipArchive(path, format_name, file)
