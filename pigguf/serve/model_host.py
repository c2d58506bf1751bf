"""ModelHost: keeps a model loaded with its scheduler, and loads it again after a worker or a file failed.

    with ModelHost("model.gguf", RunConfig(workers=("10.0.0.2:50052",)), slots=4) as host:
        host.scheduler.submit(...)       # raises RequestRefused while the model is unavailable; see
        host.failure

A thread checks every second, busy or not, that the workers respond and that the model's files are unchanged;
the scheduler checks it before each step. On a failure, running and waiting requests fail with the reason, the
model is closed, and it is loaded again as soon as that works. The vocabulary is a separate Model that stays
open. While the server is idle, the thread gives freed memory back to the system.

The engine maps the model's files into memory. A file that is replaced (renamed over) stays in use until the
server is restarted. A file that is written to would give garbage, so the model is closed. A file that is
truncated during a step kills the process (SIGBUS); a program that maps files cannot prevent that.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType

from pigguf.errors import GGUFError, Interrupted, PigError, ReadError
from pigguf.inference.engine import Context, Model
from pigguf.inference.open_context import open_context
from pigguf.inference.run_config import RunConfig
from pigguf.progress import SILENT, Progress, SilentProgress
from pigguf.serve import malloc_arenas
from pigguf.serve.errors import model_unavailable, shutting_down
from pigguf.serve.scheduler import Scheduler
from pigguf.serve.scheduler_stats import SchedulerStats

_CHECK_SECONDS = 1.0  # between two checks of workers and files
_MAX_RETRY_SECONDS = 8.0  # between two attempts to load the model again

_log = logging.getLogger("pigguf")


class ModelHost:
    """A loaded model for many clients. The constructor loads it; a context manager.

    Args:
        path: the GGUF file.
        config: how the model is run. The context window that it resolves to first is kept when it is
            reloaded.
        slots: how many requests run at once.
        max_waiting: the most waiting requests of one client (Scheduler).
        progress: of loading the model.

    Attributes:
        model: the vocabulary, without weights.
        context_length: context window of each request in tokens.
        slot_count: how many requests run at once.
        stats: counters since the start.
        failure: why the model is unavailable; None while it is loaded.

    Raises:
        As open_context.
    """

    def __init__(
        self,
        path: str | Path,
        config: RunConfig | None = None,
        *,
        slots: int = 1,
        max_waiting: int = 64,
        progress: Progress = SILENT,
    ) -> None:
        self.slot_count = slots
        self.stats = SchedulerStats()
        self.failure: PigError | None = None
        self._path = path
        self._config = config or RunConfig()
        self._max_waiting = max_waiting
        self._draining = threading.Event()
        self._closing = threading.Event()
        with ExitStack() as resources:
            self.model = resources.enter_context(Model.open(path, vocab_only=True, rope=self._config.rope))
            self._files = resources.enter_context(_OpenFiles(self.model.file.shards))
            self._loaded: _LoadedModel | None = _LoadedModel(self, progress)
            self.context_length = self._loaded.context.length
            self._config = replace(self._config, ctx=self.context_length)
            self._resources = resources.pop_all()
        self._thread = threading.Thread(target=self._run, name="pigguf-host", daemon=True)
        self._thread.start()

    # ---- from any thread -------------------------------------------------------------------------

    @property
    def scheduler(self) -> Scheduler:
        """The scheduler of the loaded model.

        Raises:
            RequestRefused: the model is unavailable (503).
        """
        return self._require_loaded().scheduler

    @contextmanager
    def borrow_context(self) -> Iterator[Context]:
        """Keep the model loaded for a block that computes with it in a context of its own.

        One block runs at a time.

        Yields:
            The scheduler's context: its model and its options may be used, the context itself may not.

        Raises:
            RequestRefused: the model is unavailable (503).
            WorkerLost, GGUFError: a worker or a file failed meanwhile; discard what was computed in the
                block.
        """
        loaded = self._require_loaded()
        with loaded.in_use:
            if self._require_loaded() is not loaded:
                raise shutting_down()
            yield loaded.context
            loaded.check()

    def _require_loaded(self) -> _LoadedModel:
        loaded, failure = self._loaded, self.failure
        if failure is not None:
            raise model_unavailable(failure)
        if loaded is None or self.is_shutting_down:
            raise shutting_down()
        return loaded

    @property
    def waiting(self) -> int:
        """How many requests wait for a slot."""
        loaded = self._loaded
        return loaded.scheduler.waiting if loaded else 0

    @property
    def running(self) -> int:
        """How many requests have a slot."""
        loaded = self._loaded
        return loaded.scheduler.running if loaded else 0

    @property
    def is_shutting_down(self) -> bool:
        """Whether new requests are refused for good."""
        return self._draining.is_set()

    def drain(self, timeout: float) -> None:
        """Refuse new and waiting requests; running ones go on, for `timeout` seconds at most."""
        self._draining.set()
        loaded = self._loaded
        if loaded is not None:
            loaded.scheduler.drain(timeout)

    def close(self) -> None:
        """Stop after the current step; running requests fail. May be called twice."""
        self._draining.set()
        self._closing.set()
        self._thread.join()
        self._resources.close()

    def __enter__(self) -> ModelHost:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # ---- the host's thread -----------------------------------------------------------------------

    def _run(self) -> None:
        while (loaded := self._loaded) is not None:
            self.failure = self._watch(loaded)
            self._loaded = None
            if self.failure is not None:
                _log.warning("%s; the model is loaded again once that is over", self.failure.message)
            loaded.close(self.failure)
            del loaded  # its memory is needed to load the model again
            malloc_arenas.release_free_memory()
            self._reload()

    def _watch(self, loaded: _LoadedModel) -> PigError | None:
        """Check the model until it fails, and return the error; None when the host is closed."""
        released_at_step = self.stats.steps
        while not self._closing.wait(_CHECK_SECONDS):
            try:
                loaded.check()
            except PigError as error:
                # Its traceback refers to the loaded model, which would keep it in memory.
                return error.with_traceback(None)
            if self.running == self.waiting == 0 and released_at_step != self.stats.steps:
                released_at_step = self.stats.steps
                malloc_arenas.release_free_memory()
        return None

    def _reload(self) -> None:
        """Load the model again, and retry until it works or the host shuts down."""
        pause = _CHECK_SECONDS
        while not self._draining.wait(pause):
            try:
                self._files.check_not_replaced()
                loaded = _LoadedModel(self, _StopLoading(self._draining))
            except PigError as error:
                self.failure = error
                pause = min(2 * pause, _MAX_RETRY_SECONDS)
            else:
                _log.warning("the model is loaded again")
                self._loaded, self.failure = loaded, None
                return


class _LoadedModel:
    """An open context and its scheduler.

    Attributes:
        in_use: held by whoever uses the model outside the scheduler; the model is not closed meanwhile.
        check: raises WorkerLost if a worker failed, GGUFError if a file was changed. It is not a method, so
            that the scheduler does not refer back to this object: memory in a reference cycle would only be
            freed by a later garbage collection.
    """

    def __init__(self, host: ModelHost, progress: Progress) -> None:
        self.in_use = threading.Lock()
        with ExitStack() as resources:
            self.context = resources.enter_context(
                open_context(host._path, host._config, progress, sequences=host.slot_count)
            )
            self.check = partial(_check_model, self.context.model, host._files)
            self.check()
            self.scheduler = resources.enter_context(
                Scheduler(self.context, host._max_waiting, stats=host.stats, check_model=self.check)
            )
            self._resources = resources.pop_all()

    def close(self, reason: PigError | None) -> None:
        """Close the scheduler, whose requests fail with `reason`, and then the model."""
        self.scheduler.close(reason)
        with self.in_use:
            self._resources.close()


def _check_model(model: Model, files: _OpenFiles) -> None:
    model.check_workers()
    files.check_unchanged()


class _OpenFiles:
    """The model's files, held open: those that the engine maps, even if their names are given to other files.

    A context manager.

    Raises:
        ReadError: a file cannot be opened.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        with ExitStack() as resources:
            try:
                files = [(path, resources.enter_context(open(path, "rb", buffering=0))) for path in paths]
            except OSError as error:
                raise ReadError(f"{error.filename}: {error.strerror}") from error
            self._files = [(path, file.fileno(), os.fstat(file.fileno())) for path, file in files]
            self._resources = resources.pop_all()

    def check_unchanged(self) -> None:
        """Raise if a file was written to.

        Raises:
            GGUFError: what is computed from it is wrong.
        """
        for path, descriptor, opened in self._files:
            now = os.fstat(descriptor)
            if (now.st_size, now.st_mtime_ns) != (opened.st_size, opened.st_mtime_ns):
                raise GGUFError(
                    f"{path} was written to while it was in use",
                    "restart the server; to update a model, write another file and rename it",
                )

    def check_not_replaced(self) -> None:
        """Raise if a file's name now belongs to another file.

        Raises:
            GGUFError: a file was replaced, removed, or written to.
        """
        self.check_unchanged()
        for path, _, opened in self._files:
            try:
                now = os.stat(path)
            except OSError as error:
                raise GGUFError(f"{path} is gone: {error.strerror}", "restore the file") from error
            if (now.st_dev, now.st_ino) != (opened.st_dev, opened.st_ino):
                raise GGUFError(f"{path} was replaced by another file", "restart the server to use it")

    def __enter__(self) -> _OpenFiles:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._resources.close()


class _StopLoading(SilentProgress):
    """A Progress that stops loading a model once an event is set."""

    def __init__(self, event: threading.Event) -> None:
        self._event = event

    def advance(self, amount: float) -> None:
        """Raise Interrupted if the event is set."""
        if self._event.is_set():
            raise Interrupted("loading was stopped because the server is shutting down")
