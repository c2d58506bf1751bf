"""The sessions kept on disk: recalled by their longest common beginning, evicted by their last use.

Processes share a store without waiting for each other: files appear and vanish whole, are never changed,
and have names by chance. A file being written is locked by its writer, so that what a killed one left is
known by its lock's absence, and removed by the next that keeps a session.
Left out: models with sliding layers. llama.cpp saves only what their window still sees, and what is saved
so cannot be cut back to a beginning: they are neither kept nor recalled.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pigguf.common.system_memory import in_words
from pigguf.errors import EngineError, OutputError, PigError, UsageError
from pigguf.inference.engine import Model, Session
from pigguf.inference.prompt_cache import cache_directory
from pigguf.inference.prompt_cache.cache_key import changed_at, model_hash, model_stamp, state_key
from pigguf.inference.prompt_cache.state_file import (
    SUFFIX,
    Damaged,
    Kept,
    proven,
    read_kept,
    read_state,
    read_tokens,
    seal,
)
from pigguf.llama_cpp_internals import kv_state_layout

try:
    import fcntl
except ImportError:  # Windows: there an open file cannot be removed at all, which serves the same
    fcntl = None  # type: ignore[assignment]

WORTH_KEEPING = 1024
"""Tokens that must be new for a session to be kept: a second or more of any model's prefill."""

_LOADED_FOR_ONE = 32  # tokens whose state is loaded in the time that one takes to compute, at the least
_PARTIAL = ".partial"

_log = logging.getLogger("pigguf")


def open_store() -> PromptCacheStore | None:
    """The user's store; None, with a warning, where there is no place for one, and where none is wanted.

    Open it before the model: what is changed in the model's file after that is not believed.

    Raises:
        UsageError: the environment states a budget that is no size.
    """
    budget = cache_directory.stated_budget()
    try:
        return None if budget == 0 else PromptCacheStore(cache_directory.sessions_directory(), budget)
    except UsageError as error:
        _log.warning("documents do not stay read: %s; %s", error.message, error.hint)
        return None


class PromptCacheStore:
    """A PromptCache (inference/engine/prefill_backend.py) in a directory, which is made when the first session is kept.

    Attributes:
        directory: where the files are; nobody else can read them.
    """

    def __init__(self, directory: Path, budget: int | None = None) -> None:
        self.directory = directory
        self._stated_budget = budget
        self._since = time.time_ns()
        self._hashes: dict[str, str] = {}  # of models, by their stamp
        self._told: set[str] = set()

    # ---- for sessions ----------------------------------------------------------------------------

    def restore(self, session: Session, tokens: Sequence[int]) -> None:
        """Make the session hold the longest kept beginning of `tokens`, if it is longer than what it holds of
        it and loaded sooner than computed.

        Never raises for a state that is damaged or foreign: it is removed, with a warning. Where one was
        refused by llama.cpp the session may be empty.
        """
        try:
            if self._trusts(session.context.model):
                self._recall(session, np.array(tokens, np.int32))
        except (OSError, PigError, MemoryError) as error:
            self._tell(f"no kept session was recalled: {_reason(error)}")

    def save(self, session: Session) -> None:
        """Keep what the session holds, if much of it is new. Where the disk refuses it warns."""
        try:
            if session.n_past >= WORTH_KEEPING and self._trusts(session.context.model):
                self._keep(session)
        except (OSError, PigError, MemoryError) as error:
            self._tell(f"what was read is not kept for the next time: {_reason(error)}")

    def _recall(self, session: Session, tokens: NDArray[np.int32]) -> None:
        context = session.context
        found = [match for match in self._matches(session, tokens) if match.kept.tokens <= context.length]
        for match in sorted(found, key=lambda match: (-match.common, match.kept.tokens)):
            gain = match.common - session.common_prefix_length(tokens.tolist())
            if gain * _LOADED_FOR_ONE <= match.kept.tokens:
                continue
            if match.kept.model == self._hash(context.model) and self._restore(session, match.kept):
                session.truncate(match.common)
                return

    def _restore(self, session: Session, kept: Kept) -> bool:
        """Whether the session holds what was kept."""
        try:
            with proven(kept) as path:
                tokens = read_tokens(kept).tolist()
                try:
                    session.load_state(str(path), tokens)
                except EngineError:  # of a context with V laid out otherwise, or with more sequences
                    session.import_state(_fitted(read_state(path, kept), session), tokens)
        except FileNotFoundError:  # evicted by another process
            return False
        except Damaged as error:
            self._discard(kept.path, error)
            return False
        with suppress(OSError):
            os.utime(kept.path)
        return True

    def _keep(self, session: Session) -> None:
        model, tokens = session.context.model, np.array(session.tokens, np.int32)
        stamp, hashed = model_stamp(model), self._hash(model)
        matches = [match for match in self._matches(session, tokens) if match.kept.model == hashed]
        if len(tokens) - max((match.common for match in matches), default=0) < WORTH_KEEPING:
            return
        grown = [match.kept.path for match in matches if match.common == match.kept.tokens]
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._remove_leftovers()
        self._make_room(_state_bytes(session), grown)
        with self._partial() as partial:
            seal(
                partial,
                session.save_state(str(partial)),
                model=hashed,
                stamp=stamp,
                model_path=os.path.realpath(model.path),
                made=time.time(),
            )
            name = f"{state_key(session.context)}-{secrets.token_hex(4)}{SUFFIX}"
            partial.replace(self.directory / name)
        _unlink(grown)

    def _matches(self, session: Session, tokens: NDArray[np.int32]) -> Iterator[_Match]:
        """The kept sessions that begin as `tokens` do, of this sort of model."""
        for path in self._paths(f"{state_key(session.context)}-*"):
            if kept := self._read(path):
                with suppress(FileNotFoundError):
                    common = _common(read_tokens(kept), tokens)
                    if common:
                        yield _Match(kept, common)

    def _trusts(self, model: Model) -> bool:
        """Whether the states of this model can be kept, and its files are still what was opened."""
        if model.sliding_window:
            return False
        if changed_at(model) <= self._since:
            return True
        self._tell(f"{model.path} was changed after it was opened: what is read with it is not kept")
        return False

    def _hash(self, model: Model) -> str:
        """The hash of the model's bytes: remembered, found beside a kept session, or computed."""
        stamp = model_stamp(model)
        if stamp not in self._hashes:
            known = (kept.model for kept in self.kept() if kept.stamp == stamp)
            self._hashes[stamp] = next(known, None) or model_hash(model)
        return self._hashes[stamp]

    # ---- for people ------------------------------------------------------------------------------

    def kept(self) -> list[Kept]:
        """All kept sessions, the last used first.

        Raises:
            OSError: the directory cannot be read.
        """
        found = [kept for path in self._paths() if (kept := self._read(path))]
        return sorted(found, key=lambda kept: kept.used, reverse=True)

    def remove(self, sessions: Iterable[Kept]) -> None:
        """Remove kept sessions; one that is gone already is fine.

        Raises:
            OSError: a file cannot be removed.
        """
        for kept in sessions:
            kept.path.unlink(missing_ok=True)

    def clear(self) -> int:
        """Remove all kept sessions, whatever their state, and what killed processes left; how many they were.

        Raises:
            OSError: a file cannot be removed.
        """
        paths = self._paths()
        for path in paths:
            path.unlink(missing_ok=True)
        self._remove_leftovers()
        return len(paths)

    def budget(self) -> int:
        """Bytes that kept sessions may take: what was stated, or a share of what the disk has for them."""
        if self._stated_budget is not None:
            return self._stated_budget
        there = next(path for path in (self.directory, *self.directory.parents) if path.exists())
        room = shutil.disk_usage(there).free + sum(size for _, size, _ in self._sizes())
        return min(cache_directory.MOST_BYTES, int(cache_directory.DISK_SHARE * room))

    # ---- files -----------------------------------------------------------------------------------

    def _paths(self, pattern: str = "*") -> list[Path]:
        return [path for path in self.directory.glob(pattern + SUFFIX) if _is_plain(path)]

    def _sizes(self) -> list[tuple[float, int, Path]]:
        """Time of last use, bytes and path of each kept file, the longest unused first."""
        found = []
        for path in self._paths():
            with suppress(FileNotFoundError):
                stat = path.stat()
                found.append((stat.st_mtime, stat.st_size, path))
        return sorted(found)

    def _read(self, path: Path) -> Kept | None:
        """What a file says of itself; None where it is gone, or damaged and removed."""
        try:
            return read_kept(path)
        except FileNotFoundError:
            return None
        except Damaged as error:
            self._discard(path, error)
            return None

    def _discard(self, path: Path, error: Damaged) -> None:
        self._tell(f"{path} is no kept session any more and is removed: {error}")
        _unlink([path])

    def _make_room(self, needed: int, leaving: Sequence[Path]) -> None:
        """Evict what was not used for longest until `needed` bytes fit; `leaving` goes anyway.

        Raises:
            OutputError: more bytes than the budget has.
        """
        budget = self.budget()
        if needed > budget:
            raise OutputError(
                f"its state takes {in_words(needed)}, and kept sessions may take {in_words(budget)}",
                f"{cache_directory.BUDGET_VARIABLE} sets that, 0 keeps none",
            )
        staying = [(size, path) for _, size, path in self._sizes() if path not in leaving]
        excess = sum(size for size, _ in staying) + needed - budget
        for size, path in staying:
            if excess > 0:
                _unlink([path])
                excess -= size

    @contextmanager
    def _partial(self) -> Iterator[Path]:
        """A file to write into, locked, which is gone at the end of the block unless it has another name."""
        descriptor, path = self._new_partial()
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)
            os.close(descriptor)

    def _new_partial(self) -> tuple[int, Path]:
        while True:
            descriptor, name = tempfile.mkstemp(prefix=".", suffix=_PARTIAL, dir=self.directory)
            if fcntl is not None:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.fstat(descriptor).st_nlink:  # not taken for a leftover before it was locked
                return descriptor, Path(name)
            os.close(descriptor)

    def _remove_leftovers(self) -> None:
        """Remove the files that nobody writes any more."""
        for path in self.directory.glob(f".*{_PARTIAL}"):
            with suppress(OSError):  # locked by its writer, or gone
                descriptor = os.open(path, os.O_RDWR)
                try:
                    if fcntl is not None:
                        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink()
                finally:
                    os.close(descriptor)

    def _tell(self, message: str) -> None:
        """Warn, of each thing once."""
        if message not in self._told:
            self._told.add(message)
            _log.warning(message)


@dataclass(frozen=True)
class _Match:
    """A kept session, and how many tokens at its beginning are those that are wanted."""

    kept: Kept
    common: int


def _common(a: NDArray[np.int32], b: NDArray[np.int32]) -> int:
    shorter = min(len(a), len(b))
    different = np.flatnonzero(a[:shorter] != b[:shorter])
    return int(different[0]) if len(different) else shorter


def _fitted(state: bytearray, session: Session) -> bytearray:
    """The state as the session's context lays it out.

    Raises:
        EngineError: it is not laid out as kv_state knows.
    """
    context = session.context
    kv_state_layout.set_streams(state, context.options.sequences)
    if kv_state_layout.read_layout(state).transposed != context.values_transposed:
        kv_state_layout.transpose_values(state)
    return state


def _state_bytes(session: Session) -> int:
    """About what the session's state takes, without the little around its K and V."""
    options = session.context.options
    return session.context.model.cache_bytes(session.n_past, options.cache_k, options.cache_v)


def _is_plain(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _unlink(paths: Iterable[Path]) -> None:
    for path in paths:
        with suppress(OSError):
            path.unlink()


def _reason(error: Exception) -> str:
    if isinstance(error, PigError):
        return f"{error.message} ({error.hint})" if error.hint else error.message
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}"
    return "there is not enough memory"
