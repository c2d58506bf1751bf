"""Finished pieces of an evaluation on disk, so that a run that was interrupted or killed goes on.

    with Journal(subject.sha256, "perplexity", settings, versions()) as journal:
        value = journal.once("2048/17", compute)      computed, or read back

Contract: a piece is on the disk when `once` returns. The same model, evaluation, settings and versions
find the same journal; any other difference begins anew. A block that ends well deletes it.

It is a file of JSON lines in the cache directory that is only appended to; a kill can tear its last line,
which is then ignored. Left out: whether two runs at the same time share pieces (each computes its own).
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

Value = TypeVar("Value")  # what JSON can hold


def evals_cache_directory() -> Path:
    """Where evaluations keep what they need again, made if missing.

    Raises:
        OutputError: it cannot be made.
        UsageError: the system knows no home of this user.
    """
    directory = cache_directory("evals")
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cache_write_error(directory, error) from error
    return directory


class Journal:
    """The finished pieces of one evaluation. A context manager.

    Args:
        sha256: of the model's file.
        evaluation: its name.
        settings: everything that decides the figures, as JSON can hold it.
        versions: what computes them.

    Raises:
        OutputError: the cache directory cannot be written.
    """

    def __init__(
        self, sha256: str, evaluation: str, settings: Mapping[str, Any], versions: Mapping[str, str]
    ) -> None:
        identity = json.dumps([sha256, evaluation, dict(settings), dict(versions)], sort_keys=True)
        key = hashlib.sha256(identity.encode()).hexdigest()[:24]
        self.path = evals_cache_directory() / f"{evaluation}-{key}.jsonl"
        self._done = _read(self.path)
        try:
            self._file = self.path.open("a", encoding="utf-8")
        except OSError as error:
            raise cache_write_error(self.path, error) from error
        self._begin_line()

    def __contains__(self, key: str) -> bool:
        """Whether this piece is finished."""
        return key in self._done

    def __getitem__(self, key: str) -> Any:
        """A finished piece's value.

        Raises:
            KeyError: it is not finished.
        """
        return self._done[key]

    def get_or_compute(self, key: str, compute: Callable[[], Value]) -> Value:
        """The piece's value as JSON keeps it: computed now, or read back.

        Raises:
            OutputError: it cannot be written.
            Whatever `compute` raises; the piece is then not finished.
        """
        if key not in self._done:
            line = json.dumps([key, compute()])
            try:
                self._file.write(line + "\n")
                self._file.flush()
                os.fsync(self._file.fileno())
            except OSError as error:
                raise cache_write_error(self.path, error) from error
            self._done[key] = json.loads(line)[1]  # a resumed run sees the same: lists, not tuples
        value: Value = self._done[key]
        return value

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if error is None or not self._done:
            self.path.unlink(missing_ok=True)

    def _begin_line(self) -> None:
        """End a torn last line, so that it does not tear the next."""
        if self._file.tell() and not self.path.read_bytes().endswith(b"\n"):
            self._file.write("\n")


def cache_write_error(path: Path, error: OSError) -> OutputError:
    """What to raise where the cache cannot be written."""
    return OutputError(
        f"{path}: {error.strerror or error}",
        "an evaluation keeps what is finished there, to go on after an interruption; "
        "free some room, or name another place in XDG_CACHE_HOME",
    )


def _read(path: Path) -> dict[str, Any]:
    """The pieces on the disk; a line that a kill has torn is none."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise cache_write_error(path, error) from error
    pieces = {}
    for line in lines:
        try:
            key, value = json.loads(line)
        except (ValueError, TypeError):
            continue
        pieces[key] = value
    return pieces
