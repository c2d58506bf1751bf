"""Files and folders to documents, in order, and what of them was left out and why.

Contract: a folder is walked in the order of names. Hidden files are left out, and a file or folder that
was met already, be it through a link that leads in a circle; everything else that is not read is named. A
file named by itself must be readable; one that is met in a folder may not be. All documents together hold
MOST_CHARACTERS at most.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from pigguf.common.files import unreadable
from pigguf.documents.document import Document, DocumentTooLong
from pigguf.documents.formats import load_document
from pigguf.errors import MissingPackage, PigError, TextError
from pigguf.progress import SILENT, Progress, stage

MAX_CHARACTERS = 200_000_000
"""Of all documents together: what is read is held, and searched, in memory."""

_SHOWN = 3


@dataclass(frozen=True)
class SkippedFile:
    """A file in a folder that is not read, and why."""

    path: Path
    reason: str


@dataclass(frozen=True)
class DocumentCollection:
    """Documents in the order they are read, and the files among them that are not."""

    documents: tuple[Document, ...]
    skipped: tuple[SkippedFile, ...]


def load_documents(paths: Iterable[str | Path], progress: Progress = SILENT) -> DocumentCollection:
    """Read files, and all that folders hold.

    Args:
        progress: one stage, "reading documents", in bytes.

    Raises:
        TextError: a file named by itself that is damaged, encrypted or no document; a folder without any;
            more than MOST_CHARACTERS in all.
        UsageError: a file named by itself that is text, but not UTF-8.
        MissingPackage: a format's package is not installed.
        ReadError: a file or folder that is not there, or that the system refuses.
    """
    documents: list[Document] = []
    left_out: list[SkippedFile] = []
    seen: set[tuple[int, int]] = set()
    found = [file for path in paths for file in _files(Path(path), seen, left_out)]
    room = MAX_CHARACTERS
    with stage(progress, "reading documents", sum(file.size for file in found), "bytes"):
        for file in found:
            try:
                document = load_document(file.path, room)
            except (MissingPackage, DocumentTooLong):
                raise
            except PigError as error:
                if file.folder is None:
                    raise
                left_out.append(SkippedFile(file.path, _reason(file.path, error)))
            else:
                documents.append(document)
                room -= len(document.text)
            progress.advance(file.size)
    _refuse_nothing(documents, left_out)
    return DocumentCollection(tuple(_named(documents)), tuple(left_out))


@dataclass(frozen=True)
class _File:
    path: Path
    size: int
    folder: Path | None  # that was named, and the file was met in


def _files(path: Path, seen: set[tuple[int, int]], left_out: list[SkippedFile]) -> Iterator[_File]:
    """A file itself, or all of a folder, in order, without those seen before."""
    try:
        status = path.stat()
    except OSError as error:
        raise unreadable(path, error) from error
    if not path.is_dir():
        if _is_new(status, seen):
            yield _File(path, status.st_size, None)
        return
    count, empty = len(left_out), True
    for met, status in _walk(path, left_out):
        empty = False
        if _is_new(status, seen):
            yield _File(met, status.st_size, path)
    if empty and len(left_out) == count:
        raise TextError(
            f"the folder {path} holds no files", "name a folder that does; hidden files do not count"
        )


def _walk(root: Path, left_out: list[SkippedFile]) -> Iterator[tuple[Path, os.stat_result]]:
    """Every file of a folder that is not hidden; no folder twice, be it through links."""
    entered: set[tuple[int, int]] = {_key(root.stat())}

    def refused(error: OSError) -> None:
        left_out.append(SkippedFile(Path(error.filename), error.strerror or str(error)))

    for place, folders, files in os.walk(root, followlinks=True, onerror=refused):
        inside = list(_met(Path(place), folders, left_out))
        folders[:] = [path.name for path, status in inside if _is_new(status, entered)]
        yield from _met(Path(place), files, left_out)


def _met(
    folder: Path, names: Iterable[str], left_out: list[SkippedFile]
) -> Iterator[tuple[Path, os.stat_result]]:
    for name in sorted(names):
        if name.startswith("."):
            continue
        try:
            yield folder / name, (folder / name).stat()
        except OSError as error:  # a link that leads nowhere, or round itself
            left_out.append(SkippedFile(folder / name, error.strerror or str(error)))


def _is_new(status: os.stat_result, seen: set[tuple[int, int]]) -> bool:
    new = _key(status) not in seen
    seen.add(_key(status))
    return new


def _key(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _reason(path: Path, error: PigError) -> str:
    """The message without the path that the reason stands beside."""
    return error.message.removeprefix(str(path)).lstrip(": ").removeprefix("is ")


def _refuse_nothing(documents: list[Document], left_out: list[SkippedFile]) -> None:
    if documents:
        return
    shown = "; ".join(f"{file.path}: {file.reason}" for file in left_out[:_SHOWN])
    more = f"; and {len(left_out) - _SHOWN:,} more" if len(left_out) > _SHOWN else ""
    raise TextError(
        f"there is no document to read ({shown}{more})" if shown else "there is no document to read"
    )


def _named(documents: list[Document]) -> Iterator[Document]:
    """Each under its file's name where no other has the same, and under its path where one has."""
    names = Counter(document.path.name for document in documents)
    for document in documents:
        name = document.path.name
        yield document if names[name] == 1 else replace(document, name=str(document.path))
