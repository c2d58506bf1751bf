"""The host: an open context and its scheduler, and another one in their place when a worker was lost.

    with Host("model.gguf", RunConfig(workers=("10.0.0.2:50052",)), sequences=4) as host:
        host.scheduler.submit(...)       a Refusal while there is none; host.trouble says why

A thread looks every second whether the workers live and the model's files are what was opened, busy or not,
and the scheduler before each step. When one is not, what runs and what waits fails with the reason, all is
closed, and opened again as soon as that works. The vocabulary is a model of its own, which stays. Where there
is nothing more to do, the thread gives freed memory back to the system.
Files: the engine maps them into memory. One that another takes the place of (a rename) stays in use, so that
nothing changes until the server is started again. One that is written to would answer with garbage, so it is
given up. One that becomes shorter in the middle of a step ends the process (SIGBUS), which no program can
prevent that maps files.
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
from pigguf.inference.open_context import RunConfig, open_context
from pigguf.progress import SILENT, Progress, Silent
from pigguf.serve import malloc_arenas
from pigguf.serve.errors import model_unavailable, shutting_down
from pigguf.serve.scheduler import SchedulerStats, Scheduler

_PULSE = 1.0  # seconds between two looks at workers and files
_LONGEST_PAUSE = 8.0  # seconds between two tries to open the model again

_log = logging.getLogger("pigguf")


class ModelHost:
    """Made open; a context manager.

    Args:
        settings: the window that they come to the first time stays.
        sequences: how many answers are written at once.
        queue: as Scheduler has it.

    Attributes:
        model: the vocabulary, without weights.
        context_length: window of each sequence in tokens.
        slots: how many answers are written at once.
        figures: what was done since the beginning.
        trouble: why there is no scheduler, or None.

    Raises:
        As runtime.open_context does.
    """

    def __init__(
        self,
        path: str | Path,
        settings: RunConfig | None = None,
        *,
        slots: int = 1,
        max_waiting: int = 64,
        progress: Progress = SILENT,
    ) -> None:
        self.slot_count = slots
        self.stats = SchedulerStats()
        self.failure: PigError | None = None
        self._path = path
        self._settings = settings or RunConfig()
        self._queue = max_waiting
        self._ending = threading.Event()
        self._closing = threading.Event()
        with ExitStack() as opened:
            self.model = opened.enter_context(Model.open(path, vocab_only=True, rope=self._settings.rope))
            self._files = opened.enter_context(_Files(self.model.file.parts))
            self._home: _Home | None = _Home(self, progress)
            self.context_length = self._home.context.length
            self._settings = replace(self._settings, ctx=self.context_length)
            self._opened = opened.pop_all()
        self._thread = threading.Thread(target=self._run, name="pigguf-host", daemon=True)
        self._thread.start()

    # ---- from any thread -------------------------------------------------------------------------

    @property
    def scheduler(self) -> Scheduler:
        """
        Raises:
            Refusal: there is none at the moment (503).
        """
        return self._open_home().scheduler

    @contextmanager
    def borrow_context(self) -> Iterator[Context]:
        """The open context, for who computes with its model in a context of his own: one at a time, and
        the model stays open until the end of the block.

        Raises:
            Refusal: there is none at the moment (503).
            WorkerLost, GGUFError: what was computed in the block is worthless.
        """
        home = self._open_home()
        with home.in_use:
            if self._open_home() is not home:
                raise shutting_down()
            yield home.context
            home.check()

    def _open_home(self) -> _Home:
        home, trouble = self._home, self.failure
        if trouble is not None:
            raise model_unavailable(trouble)
        if home is None or self.is_shutting_down:
            raise shutting_down()
        return home

    @property
    def waiting(self) -> int:
        """How many answers wait for a slot."""
        home = self._home
        return home.scheduler.waiting if home else 0

    @property
    def running(self) -> int:
        """How many answers have a slot."""
        home = self._home
        return home.scheduler.running if home else 0

    @property
    def is_shutting_down(self) -> bool:
        """Whether it takes nothing more, for good."""
        return self._ending.is_set()

    def drain(self, timeout: float) -> None:
        """Take nothing more, and refuse what waits; what runs goes on, for so long at most."""
        self._ending.set()
        home = self._home
        if home is not None:
            home.scheduler.drain(timeout)

    def close(self) -> None:
        """Stop after this step; what runs fails. Twice is fine."""
        self._ending.set()
        self._closing.set()
        self._thread.join()
        self._opened.close()

    def __enter__(self) -> ModelHost:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---- the thread ------------------------------------------------------------------------------

    def _run(self) -> None:
        while (home := self._home) is not None:
            self.failure = self._trouble_of(home)
            self._home = None
            if self.failure is not None:
                _log.warning("%s; the model is opened again when that is over", self.failure.message)
            home.close(self.failure)
            del home  # its memory is needed
            malloc_arenas.release_free_memory()
            self._open_again()

    def _trouble_of(self, home: _Home) -> PigError | None:
        """What befell it, once it does; None at the end."""
        given_back_at = self.stats.steps
        while not self._closing.wait(_PULSE):
            try:
                home.check()
            except PigError as error:
                return error.with_traceback(None)  # whose frames have the home, which has the error
            if self.running == self.waiting == 0 and given_back_at != self.stats.steps:
                given_back_at = self.stats.steps
                malloc_arenas.release_free_memory()
        return None

    def _open_again(self) -> None:
        """Another home, as soon as there can be one; none at the end."""
        pause = _PULSE
        while not self._ending.wait(pause):
            try:
                self._files.refuse_replaced()
                home = _Home(self, _Until(self._ending))
            except PigError as error:
                self.failure = error
                pause = min(2 * pause, _LONGEST_PAUSE)
            else:
                _log.warning("the model is open again")
                self._home, self.failure = home, None
                return


class _Home:
    """A context and its scheduler, open.

    Attributes:
        check: raises WorkerLost if a worker failed, GGUFError if the model's file was written to. No method,
            so that no scheduler refers to its home: in a circle, what was lost would stay for long.
    """

    def __init__(self, host: ModelHost, progress: Progress) -> None:
        self.in_use = threading.Lock()
        with ExitStack() as opened:
            self.context = opened.enter_context(
                open_context(host._path, host._settings, progress, sequences=host.slot_count)
            )
            self.check = partial(_check, self.context.model, host._files)
            self.check()
            self.scheduler = opened.enter_context(
                Scheduler(self.context, host._queue, stats=host.stats, check_model=self.check)
            )
            self._opened = opened.pop_all()

    def close(self, why: PigError | None) -> None:
        self.scheduler.close(why)
        with self.in_use:
            self._opened.close()


def _check(model: Model, files: _Files) -> None:
    model.check_workers()
    files.refuse_changed()


class _Files:
    """The model's files, held open: what the engine maps, whatever has their names now. A context manager.

    Raises:
        ReadError: one cannot be opened.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        with ExitStack() as opened:
            try:
                held = [(path, opened.enter_context(open(path, "rb", buffering=0))) for path in paths]
            except OSError as error:
                raise ReadError(f"{error.filename}: {error.strerror}") from error
            self._held = [(path, file.fileno(), os.fstat(file.fileno())) for path, file in held]
            self._opened = opened.pop_all()

    def refuse_changed(self) -> None:
        """
        Raises:
            GGUFError: a file was written to since; what is computed from it is worthless.
        """
        for path, descriptor, then in self._held:
            now = os.fstat(descriptor)
            if (now.st_size, now.st_mtime_ns) != (then.st_size, then.st_mtime_ns):
                raise GGUFError(
                    f"{path} was written to while it was in use",
                    "start the server again; give a new version another name first, and then this one",
                )

    def refuse_replaced(self) -> None:
        """
        Raises:
            GGUFError: another file has its name now, or none; or it was changed.
        """
        self.refuse_changed()
        for path, _, then in self._held:
            try:
                now = os.stat(path)
            except OSError as error:
                raise GGUFError(f"{path} is gone: {error.strerror}", "put it back") from error
            if (now.st_dev, now.st_ino) != (then.st_dev, then.st_ino):
                raise GGUFError(f"{path} is another file than it was", "start the server again")

    def __enter__(self) -> _Files:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._opened.close()


class _Until(Silent):
    """Gives up loading when something is set."""

    def __init__(self, event: threading.Event) -> None:
        self._event = event

    def advance(self, amount: float) -> None:
        if self._event.is_set():
            raise Interrupted("loading was given up, as the server is about to end")
