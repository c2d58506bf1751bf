"""Files and folders as documents, in order, with the files that were skipped and why.

A folder is walked in the order of names. Hidden files are ignored, and so is a file or folder that was
already found, for example through a symbolic link that leads in a circle; every other file that is not read
is reported. A file given by itself must be readable; one found in a folder need not be. All documents
together have at most MAX_CHARACTERS.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from pigguf.common.file_io import read_error
from pigguf.documents.document import Document, DocumentTooLong
from pigguf.documents.formats import load_document
from pigguf.errors import MissingPackage, PigError, TextError
from pigguf.progress import SILENT, Progress, stage

MAX_CHARACTERS = 200_000_000
"""Of all documents together, because they are held and searched in memory."""

_MAX_LISTED = 3  # skipped files in a message


@dataclass(frozen=True)
class SkippedFile:
    """A file in a folder that is not read, and why."""

    path: Path
    reason: str


@dataclass(frozen=True)
class DocumentCollection:
    """Documents in the order in which they were loaded, and the files that were skipped."""

    documents: tuple[Document, ...]
    skipped: tuple[SkippedFile, ...]


def load_documents(paths: Iterable[str | Path], progress: Progress = SILENT) -> DocumentCollection:
    """Load files, and all files in folders.

    Args:
        paths: The files and folders.
        progress: Reports one stage, "reading documents", in bytes.

    Raises:
        TextError: A file given by itself is damaged, encrypted or not a document, a folder has no documents,
            or there are more than MAX_CHARACTERS.
        UsageError: A file given by itself is text, but not UTF-8.
        MissingPackage: The package for a format is not installed.
        ReadError: A file or folder does not exist, or the system refuses to read it.
    """
    documents: list[Document] = []
    skipped: list[SkippedFile] = []
    seen: set[tuple[int, int]] = set()
    files = [file for path in paths for file in _find_files(Path(path), seen, skipped)]
    characters_left = MAX_CHARACTERS
    with stage(progress, "reading documents", sum(file.size for file in files), "bytes"):
        for file in files:
            try:
                document = load_document(file.path, characters_left)
            except (MissingPackage, DocumentTooLong):
                raise
            except PigError as error:
                if not file.is_in_folder:
                    raise
                skipped.append(SkippedFile(file.path, _reason(file.path, error)))
            else:
                documents.append(document)
                characters_left -= len(document.text)
            progress.advance(file.size)
    _check_any(documents, skipped)
    return DocumentCollection(tuple(_with_unique_names(documents)), tuple(skipped))


@dataclass(frozen=True)
class _FoundFile:
    """A file to load, its size in bytes, and whether it was found in a folder rather than given by itself."""

    path: Path
    size: int
    is_in_folder: bool


def _find_files(path: Path, seen: set[tuple[int, int]], skipped: list[SkippedFile]) -> Iterator[_FoundFile]:
    """Yield a file itself, or all files of a folder in order, without those seen before."""
    try:
        status = path.stat()
    except OSError as error:
        raise read_error(path, error) from error
    if not path.is_dir():
        if _is_new(status, seen):
            yield _FoundFile(path, status.st_size, is_in_folder=False)
        return
    skipped_before, is_empty = len(skipped), True
    for file, file_status in _walk(path, skipped):
        is_empty = False
        if _is_new(file_status, seen):
            yield _FoundFile(file, file_status.st_size, is_in_folder=True)
    if is_empty and len(skipped) == skipped_before:
        raise TextError(
            f"the folder {path} holds no files", "give a folder with files; hidden files do not count"
        )


def _walk(root: Path, skipped: list[SkippedFile]) -> Iterator[tuple[Path, os.stat_result]]:
    """Yield every file of a folder that is not hidden; no folder twice, even through links."""
    entered: set[tuple[int, int]] = {_inode(root.stat())}

    def skip(error: OSError) -> None:
        skipped.append(SkippedFile(Path(error.filename), error.strerror or str(error)))

    for folder, folder_names, file_names in os.walk(root, followlinks=True, onerror=skip):
        inside = list(_visible(Path(folder), folder_names, skipped))
        folder_names[:] = [path.name for path, status in inside if _is_new(status, entered)]
        yield from _visible(Path(folder), file_names, skipped)


def _visible(
    folder: Path, names: Iterable[str], skipped: list[SkippedFile]
) -> Iterator[tuple[Path, os.stat_result]]:
    """Yield what is not hidden, in the order of names; broken links are skipped."""
    for name in sorted(names):
        if name.startswith("."):
            continue
        try:
            yield folder / name, (folder / name).stat()
        except OSError as error:  # a link to nothing, or to itself
            skipped.append(SkippedFile(folder / name, error.strerror or str(error)))


def _is_new(status: os.stat_result, seen: set[tuple[int, int]]) -> bool:
    """Return whether a file or folder was not seen before, and remember it."""
    is_new = _inode(status) not in seen
    seen.add(_inode(status))
    return is_new


def _inode(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _reason(path: Path, error: PigError) -> str:
    """Return an error's message without the path, which is shown next to it."""
    return error.message.removeprefix(str(path)).lstrip(": ").removeprefix("is ")


def _check_any(documents: list[Document], skipped: list[SkippedFile]) -> None:
    """Raise TextError if there are no documents, with the reasons."""
    if documents:
        return
    listed = "; ".join(f"{file.path}: {file.reason}" for file in skipped[:_MAX_LISTED])
    more = f"; and {len(skipped) - _MAX_LISTED:,} more" if len(skipped) > _MAX_LISTED else ""
    raise TextError(
        f"there is no document to read ({listed}{more})" if listed else "there is no document to read"
    )


def _with_unique_names(documents: list[Document]) -> Iterator[Document]:
    """Yield each document named by its file's name, or by its path if another file has the same name."""
    counts = Counter(document.path.name for document in documents)
    for document in documents:
        is_unique = counts[document.path.name] == 1
        yield document if is_unique else replace(document, name=str(document.path))
