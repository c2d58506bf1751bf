"""Save and restore KV states of prompts on disk: by their longest common prefix, evicted by last use.

Processes share a directory without waiting for each other: files appear and disappear atomically, are never
changed, and have random names. A file that is being written is locked by its writer. What a killed process
left is recognized by the missing lock, and removed by the next process that saves a prompt.

Models with sliding-window layers are not cached: llama.cpp saves only the cells inside their window, and such
a state cannot be truncated to a prefix.
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

from pigguf.common.format_bytes import format_memory
from pigguf.common.token_prefix import common_prefix_length
from pigguf.errors import EngineError, OutputError, PigError, UsageError
from pigguf.inference.engine import KVSequence, Model
from pigguf.inference.prompt_cache import location_and_budget
from pigguf.inference.prompt_cache.cache_key import changed_at, model_hash, model_stamp, state_key
from pigguf.inference.prompt_cache.state_file import (
    SUFFIX,
    CachedPrompt,
    DamagedStateFile,
    finalize,
    read_entry,
    read_state,
    read_tokens,
    verified,
)
from pigguf.llama_cpp_internals import kv_state_layout

try:
    import fcntl
except ImportError:  # on Windows an open file cannot be removed at all, which has the same effect
    fcntl = None  # type: ignore[assignment]

MIN_NEW_TOKENS = 1024
"""A prompt is saved if at least this many of its tokens are new: a second or more of any model's prefill."""

_LOADED_PER_COMPUTED = 32  # tokens whose state is loaded in the time that one takes to compute, at least
_PARTIAL = ".partial"

_log = logging.getLogger("pigguf")


def open_prompt_cache() -> PromptCacheStore | None:
    """Return the user's prompt cache; None if it is disabled, or, with a warning, if it has no directory.

    Open it before the model: a model whose file changes after this is not trusted.

    Raises:
        UsageError: the budget in the environment is not a size.
    """
    budget = location_and_budget.budget_from_environment()
    try:
        return None if budget == 0 else PromptCacheStore(location_and_budget.prompt_cache_directory(), budget)
    except UsageError as error:
        _log.warning("prompts are not cached: %s; %s", error.message, error.hint)
        return None


class PromptCacheStore:
    """A PromptCache (inference/engine/prefill_protocols.py) in a directory.

    Attributes:
        directory: where the files are, readable by the user only; it is created with the first file.
    """

    def __init__(self, directory: Path, budget: int | None = None) -> None:
        self.directory = directory
        self._budget = budget
        self._opened_at = time.time_ns()
        self._hashes: dict[str, str] = {}  # of models, by their stamp
        self._warned: set[str] = set()

    # ---- for sessions ----------------------------------------------------------------------------

    def restore(self, session: KVSequence, tokens: Sequence[int]) -> None:
        """Restore the longest cached prefix of `tokens` into the session.

        Nothing happens if the session has as long a prefix already, or if computing it is faster than loading
        it. A damaged or foreign state never raises: it is removed, with a warning. If llama.cpp rejects a
        state, the session may be empty afterwards.
        """
        try:
            if self._is_cacheable(session.context.model):
                self._restore_longest(session, np.array(tokens, np.int32))
        except (OSError, PigError, MemoryError) as error:
            self._warn_once(f"no cached prompt was restored: {_reason(error)}")

    def save(self, session: KVSequence) -> None:
        """Save the session's state if enough of its tokens are new; warn if it cannot be written."""
        try:
            if session.n_past >= MIN_NEW_TOKENS and self._is_cacheable(session.context.model):
                self._save(session)
        except (OSError, PigError, MemoryError) as error:
            self._warn_once(f"the prompt is not cached: {_reason(error)}")

    def _restore_longest(self, session: KVSequence, tokens: NDArray[np.int32]) -> None:
        context = session.context
        matches = [m for m in self._matches(session, tokens) if m.entry.tokens <= context.length]
        for match in sorted(matches, key=lambda match: (-match.length, match.entry.tokens)):
            gain = match.length - session.common_prefix_length(tokens.tolist())
            if gain * _LOADED_PER_COMPUTED <= match.entry.tokens:
                continue
            if match.entry.model == self._model_hash(context.model) and self._load(session, match.entry):
                session.truncate(match.length)
                return

    def _load(self, session: KVSequence, entry: CachedPrompt) -> bool:
        """Load a state into the session, and return whether that succeeded."""
        try:
            with verified(entry) as path:
                tokens = read_tokens(entry).tolist()
                try:
                    session.load_state(str(path), tokens)
                except EngineError:  # of a context with another layout of V, or with more sequences
                    session.import_state(_convert_layout(read_state(path, entry), session), tokens)
        except FileNotFoundError:  # evicted by another process
            return False
        except DamagedStateFile as error:
            self._discard(entry.path, error)
            return False
        with suppress(OSError):
            os.utime(entry.path)
        return True

    def _save(self, session: KVSequence) -> None:
        model, tokens = session.context.model, np.array(session.tokens, np.int32)
        stamp, model_hash_ = model_stamp(model), self._model_hash(model)
        matches = [m for m in self._matches(session, tokens) if m.entry.model == model_hash_]
        if len(tokens) - max((match.length for match in matches), default=0) < MIN_NEW_TOKENS:
            return
        replaced = [match.entry.path for match in matches if match.length == match.entry.tokens]
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._remove_leftovers()
        self._evict(_estimate_state_bytes(session), replaced)
        with self._partial_file() as partial:
            finalize(
                partial,
                session.save_state(str(partial)),
                model=model_hash_,
                stamp=stamp,
                model_path=os.path.realpath(model.path),
                made=time.time(),
            )
            name = f"{state_key(session.context)}-{secrets.token_hex(4)}{SUFFIX}"
            partial.replace(self.directory / name)
        _unlink(replaced)

    def _matches(self, session: KVSequence, tokens: NDArray[np.int32]) -> Iterator[PrefixMatch]:
        """Yield the cached prompts with this state key that have a common prefix with `tokens`."""
        for path in self._paths(f"{state_key(session.context)}-*"):
            if entry := self._read_entry(path):
                with suppress(FileNotFoundError):
                    length = common_prefix_length(read_tokens(entry), tokens)
                    if length:
                        yield PrefixMatch(entry, length)

    def _is_cacheable(self, model: Model) -> bool:
        """Return whether the model's states can be cached, and its files are still those that were opened."""
        if model.sliding_window:
            return False
        if changed_at(model) <= self._opened_at:
            return True
        self._warn_once(f"{model.path} was changed after it was opened: its prompts are not cached")
        return False

    def _model_hash(self, model: Model) -> str:
        """Return the hash of the model's bytes: remembered, from a cached prompt's metadata, or computed."""
        stamp = model_stamp(model)
        if stamp not in self._hashes:
            known = (entry.model for entry in self.entries() if entry.stamp == stamp)
            self._hashes[stamp] = next(known, None) or model_hash(model)
        return self._hashes[stamp]

    # ---- for the user ----------------------------------------------------------------------------

    def entries(self) -> list[CachedPrompt]:
        """Return all cached prompts, the last used first.

        Raises:
            OSError: the directory cannot be read.
        """
        found = [entry for path in self._paths() if (entry := self._read_entry(path))]
        return sorted(found, key=lambda entry: entry.used, reverse=True)

    def remove(self, entries: Iterable[CachedPrompt]) -> None:
        """Remove cached prompts; one that does not exist any more is skipped.

        Raises:
            OSError: a file cannot be removed.
        """
        for entry in entries:
            entry.path.unlink(missing_ok=True)

    def clear(self) -> int:
        """Remove all cached prompts, damaged ones and leftovers too, and return how many there were.

        Raises:
            OSError: a file cannot be removed.
        """
        paths = self._paths()
        for path in paths:
            path.unlink(missing_ok=True)
        self._remove_leftovers()
        return len(paths)

    def budget(self) -> int:
        """Return the bytes that cached prompts may take: as configured, or a fraction of the disk space."""
        if self._budget is not None:
            return self._budget
        existing = next(path for path in (self.directory, *self.directory.parents) if path.exists())
        usable = shutil.disk_usage(existing).free + sum(size for _, size, _ in self._sizes())
        return min(location_and_budget.DEFAULT_BUDGET_BYTES, int(location_and_budget.DISK_FRACTION * usable))

    # ---- files -----------------------------------------------------------------------------------

    def _paths(self, pattern: str = "*") -> list[Path]:
        return [path for path in self.directory.glob(pattern + SUFFIX) if _is_regular_file(path)]

    def _sizes(self) -> list[tuple[float, int, Path]]:
        """Return the time of last use, bytes and path of each file, the least recently used first."""
        sizes = []
        for path in self._paths():
            with suppress(FileNotFoundError):
                stat = path.stat()
                sizes.append((stat.st_mtime, stat.st_size, path))
        return sorted(sizes)

    def _read_entry(self, path: Path) -> CachedPrompt | None:
        """Return a file's metadata; None if it does not exist any more, or was damaged and is removed."""
        try:
            return read_entry(path)
        except FileNotFoundError:
            return None
        except DamagedStateFile as error:
            self._discard(path, error)
            return None

    def _discard(self, path: Path, error: DamagedStateFile) -> None:
        self._warn_once(f"{path} is a damaged cached prompt and is removed: {error}")
        _unlink([path])

    def _evict(self, needed: int, replaced: Sequence[Path]) -> None:
        """Remove the least recently used files until `needed` bytes fit; `replaced` will be removed anyway.

        Raises:
            OutputError: more bytes than the whole budget.
        """
        budget = self.budget()
        if needed > budget:
            raise OutputError(
                f"its state needs {format_memory(needed)}, and the prompt cache has a budget of "
                f"{format_memory(budget)}",
                f"set {location_and_budget.BUDGET_VARIABLE} to more, or to 0 to cache no prompts",
            )
        remaining = [(size, path) for _, size, path in self._sizes() if path not in replaced]
        excess = sum(size for size, _ in remaining) + needed - budget
        for size, path in remaining:
            if excess > 0:
                _unlink([path])
                excess -= size

    @contextmanager
    def _partial_file(self) -> Iterator[Path]:
        """Yield a locked file to write to; it is removed at the end of the block unless it was renamed."""
        descriptor, path = self._create_partial()
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)
            os.close(descriptor)

    def _create_partial(self) -> tuple[int, Path]:
        while True:
            descriptor, name = tempfile.mkstemp(prefix=".", suffix=_PARTIAL, dir=self.directory)
            if fcntl is not None:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.fstat(descriptor).st_nlink:  # not removed as a leftover before it was locked
                return descriptor, Path(name)
            os.close(descriptor)

    def _remove_leftovers(self) -> None:
        """Remove partial files that no process writes any more."""
        for path in self.directory.glob(f".*{_PARTIAL}"):
            with suppress(OSError):  # locked by its writer, or gone
                descriptor = os.open(path, os.O_RDWR)
                try:
                    if fcntl is not None:
                        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink()
                finally:
                    os.close(descriptor)

    def _warn_once(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            _log.warning(message)


@dataclass(frozen=True)
class PrefixMatch:
    """A cached prompt, and how many of its first tokens are those of a prompt."""

    entry: CachedPrompt
    length: int


def _convert_layout(state: bytearray, session: KVSequence) -> bytearray:
    """Convert a state in place to the layout of the session's context.

    Raises:
        EngineError: its layout is not the one that kv_state_layout knows.
    """
    context = session.context
    kv_state_layout.set_stream_count(state, context.options.sequences)
    if kv_state_layout.read_layout(state).transposed != context.values_transposed:
        kv_state_layout.transpose_values(state)
    return state


def _estimate_state_bytes(session: KVSequence) -> int:
    """Return about how many bytes the session's state takes: its K and V."""
    options = session.context.options
    return session.context.model.kv_cache_bytes(session.n_past, options.cache_k, options.cache_v)


def _is_regular_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _unlink(paths: Iterable[Path]) -> None:
    for path in paths:
        with suppress(OSError):
            path.unlink()


def _reason(error: Exception) -> str:
    if isinstance(error, PigError):
        return f"{error.message} ({error.hint})" if error.hint else error.message
    if isinstance(error, OSError):
        filename = f"{error.filename}: " if error.filename else ""
        return f"{filename}{error.strerror or error}"
    return "there is not enough memory"
