"""A journal of the finished items of an evaluation, on disk, so that an interrupted run can be resumed.

    with Journal(model.sha256, "perplexity", settings, software_versions()) as journal:
        value = journal.get_or_compute("2048/17", compute)

An item is on disk when `get_or_compute` returns. The same model, evaluation, settings and versions find the
same journal; any difference starts a new one. A `with` block that ends without an error deletes the journal.

The file has JSON lines, [key, value] each, and is only appended to. A process that is killed may leave a
truncated last line, which is ignored. Two processes that run the same evaluation at the same time compute
each item twice.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from pigguf.common.cache_directory import cache_directory
from pigguf.errors import OutputError

Value = TypeVar("Value")  # JSON-serializable


def evals_cache_directory() -> Path:
    """Return the directory for journals, file hashes and temporary references; create it if it is missing.

    Raises:
        OutputError: if the directory cannot be created.
        UsageError: if the user has no home directory.
    """
    directory = cache_directory("evals")
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cache_write_error(directory, error) from error
    return directory


class Journal:
    """The finished items of one evaluation. A context manager.

    Args:
        sha256: the hash of the model's file.
        evaluation: the evaluation's name.
        settings: everything that determines the results, JSON-serializable.
        versions: the versions of the software that computes them.

    Raises:
        OutputError: if the cache directory cannot be written.
    """

    def __init__(
        self, sha256: str, evaluation: str, settings: Mapping[str, Any], versions: Mapping[str, str]
    ) -> None:
        identity = json.dumps([sha256, evaluation, dict(settings), dict(versions)], sort_keys=True)
        digest = hashlib.sha256(identity.encode()).hexdigest()[:24]
        self.path = evals_cache_directory() / f"{evaluation}-{digest}.jsonl"
        self._values = _read_journal(self.path)
        try:
            self._file = self.path.open("a", encoding="utf-8")
        except OSError as error:
            raise cache_write_error(self.path, error) from error
        self._end_truncated_line()

    def __contains__(self, key: str) -> bool:
        """Return whether an item is finished."""
        return key in self._values

    def __getitem__(self, key: str) -> Any:
        """Return the value of a finished item.

        Raises:
            KeyError: if the item is not finished.
        """
        return self._values[key]

    def get_or_compute(self, key: str, compute: Callable[[], Value]) -> Value:
        """Return an item's value after a round trip through JSON: computed and written now, or read back.

        Raises:
            OutputError: if the journal cannot be written.
            Exception: whatever `compute` raises; the item is then not finished.
        """
        if key not in self._values:
            line = json.dumps([key, compute()])
            try:
                self._file.write(line + "\n")
                self._file.flush()
                os.fsync(self._file.fileno())
            except OSError as error:
                raise cache_write_error(self.path, error) from error
            self._values[key] = json.loads(line)[1]  # the same as a resumed run reads: lists, not tuples
        value: Value = self._values[key]
        return value

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if error is None or not self._values:
            self.path.unlink(missing_ok=True)

    def _end_truncated_line(self) -> None:
        """End a truncated last line, so that the next item starts on a line of its own."""
        if self._file.tell() and not self.path.read_bytes().endswith(b"\n"):
            self._file.write("\n")


def cache_write_error(path: Path, error: OSError) -> OutputError:
    """Return the error to raise if the cache directory cannot be written."""
    return OutputError(
        f"{path}: {error.strerror or error}",
        "an evaluation saves finished items there, to resume after an interruption; "
        "free some disk space, or set XDG_CACHE_HOME to another directory",
    )


def _read_journal(path: Path) -> dict[str, Any]:
    """Return the values by key; lines that are not [key, value] in JSON are ignored."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise cache_write_error(path, error) from error
    values = {}
    for line in lines:
        try:
            key, value = json.loads(line)
        except (ValueError, TypeError):
            continue
        values[key] = value
    return values
