"""The scheduler: one thread computes one batch a step for all clients (continuous batching).

    with Scheduler(context) as scheduler:
        handle = scheduler.submit([GenerationRequest(prompt)], deliver)   # deliver(request index, event)
        handle.cancel()

A step admits waiting requests to free slots, plans a batch, computes it, and samples a token for each request
whose logits it has. A long prompt goes to the context's prefill backend, if it has one
(inference/engine/prefill_protocols.py). Steps for all other requests are taken in between, whenever the
backend reports progress: in the same thread, as both would compete for the same CPU cores.
When there is nothing to compute, the KV caches of free slots are saved to the prompt cache on disk; that
takes about a second for each gigabyte. A running request is never preempted.

The parts: request_queue.py (waiting requests, turns between clients), slots.py (which slot, prefix reuse),
batch_planner.py (which tokens share a batch), running_request.py (sampling, text, end), events.py.
Not here: HTTP (app.py), tokenization (service.py), KV sequences in llama.cpp (inference/engine/).
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType

from pigguf.errors import Interrupted, PigError
from pigguf.inference.engine import Context
from pigguf.inference.engine.batch_decode import decode_batch
from pigguf.inference.engine.prefill_protocols import Prefiller
from pigguf.progress import SilentProgress
from pigguf.serve.batch_planner import BatchPlanner, PlannedBatch
from pigguf.serve.errors import RequestRefused, shutting_down
from pigguf.serve.events import Finished, RequestEvent, RequestFailed
from pigguf.serve.generation_request import GenerationRequest, QueuedRequest, RequestHandle, request_failure
from pigguf.serve.request_queue import RequestQueue
from pigguf.serve.running_request import RunningRequest
from pigguf.serve.scheduler_stats import SchedulerStats
from pigguf.serve.slots import Slot, SlotPool


class Scheduler:
    """Generates answers for many clients at once on one context. A context manager.

    Args:
        context: an open context, all of whose sequences are the scheduler's.
        max_waiting: the most waiting requests of one client; all clients together may have four times as
            many.
        stats: where to count; a new SchedulerStats by default.
        check_model: called before each step; a PigError that it raises fails the requests of that step.

    Attributes:
        stats: counters of the work done.
        slot_count: how many requests run at once.
    """

    def __init__(
        self,
        context: Context,
        max_waiting: int = 64,
        *,
        stats: SchedulerStats | None = None,
        check_model: Callable[[], None] = lambda: None,
    ) -> None:
        self.stats = stats or SchedulerStats()
        self.slot_count = context.options.sequences
        self._context = context
        self._queue = RequestQueue(max_waiting, self.slot_count)
        self._slots = SlotPool(context, self.stats)
        self._planner = BatchPlanner(context.batch_size)
        self._check_model = check_model
        self._stop_at = math.inf  # time.monotonic() at which running requests fail, once draining
        self._in_backend: RunningRequest | None = None  # its prompt is in the prefill backend
        self._thread = threading.Thread(target=self._run, name="pigguf-scheduler", daemon=True)
        self._thread.start()

    # ---- from any thread -------------------------------------------------------------------------

    def submit(
        self,
        requests: Sequence[GenerationRequest],
        deliver: Callable[[int, RequestEvent], None],
        timeout: float = math.inf,
    ) -> RequestHandle:
        """Queue requests of one client, all of them or none.

        Args:
            deliver: called from the scheduler's thread with a request's index and an event; it must not
                raise, nor block.
            timeout: seconds after which unfinished requests fail.

        Raises:
            RequestRefused: the queue is full (429), or the server is shutting down (503).
        """
        deadline = time.monotonic() + timeout
        queued = [
            QueuedRequest(request, lambda event, index=index: deliver(index, event), deadline)  # type: ignore[misc]
            for index, request in enumerate(requests)
        ]
        self._queue.add(queued)
        return RequestHandle(queued)

    @property
    def waiting(self) -> int:
        """How many requests wait for a slot."""
        return len(self._queue)

    @property
    def running(self) -> int:
        """How many requests have a slot."""
        return len(self._slots.running)

    def drain(self, timeout: float = math.inf, reason: PigError | None = None) -> None:
        """Refuse new and waiting requests; running ones go on.

        Args:
            timeout: seconds after which running requests fail.
            reason: the error for refused requests; None says that the server is shutting down.
        """
        refused, reason = self._queue.stop_accepting(reason)
        self._stop_at = time.monotonic() + timeout
        for queued in refused:
            queued.deliver(RequestFailed(reason))

    def close(self, reason: PigError | None = None) -> None:
        """Stop after the current step; running requests fail with `reason`. May be called twice."""
        self.drain(reason=reason)
        self._queue.close()
        self._thread.join()

    def __enter__(self) -> Scheduler:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # ---- the scheduler's thread ------------------------------------------------------------------

    def _run(self) -> None:
        is_closed = False
        while not is_closed:
            with self._fail_all_on_error():
                is_closed = not self._wait_for_work()
                if not is_closed:
                    self._step()
        for running in self._slots.running:
            self._finish(running, self._shutdown_failure())
        for slot in self._slots:
            # After another error than a regular shutdown, what is in the cache cannot be trusted.
            if slot.is_unsaved and isinstance(self._queue.shutdown_reason, RequestRefused):
                self._save(slot)
            slot.session.close()

    def _wait_for_work(self) -> bool:
        """Return True when there is a step to take, False once the scheduler is closed.

        Meanwhile, caches are saved to the prompt cache.
        """
        while True:
            with self._queue.changed:
                if self._queue.is_closed or self.waiting or self.running:
                    return not self._queue.is_closed
                unsaved = self._slots.unsaved
                if unsaved is None:
                    self._queue.changed.wait()
            if unsaved is not None:
                self._save(unsaved)

    def _save(self, slot: Slot) -> None:
        slot.is_unsaved = False
        if self._context.prompt_cache is not None:
            self._context.prompt_cache.save(slot.session)

    @contextmanager
    def _fail_all_on_error(self) -> Iterator[None]:
        """Fail all running requests on an unexpected error, except one that is in the prefill backend."""
        try:
            yield
        except Exception as error:
            failure = request_failure(error)
            for running in self._slots.running:
                if running is not self._in_backend:
                    self._finish(running, failure)

    def _step(self) -> None:
        self._remove_over()
        if self._slots.admit(self._queue):
            self._planner.allow_prefill()
        for requests_ahead, queued in enumerate(self._queue.in_turn(self._slots.running_clients)):
            queued.report_position(requests_ahead)
        backend = self._context.prefiller
        if backend is not None and self._in_backend is None and (running := self._next_for(backend)):
            self._prefill_in_backend(backend, running)
        else:
            others = [running for running in self._slots.running if running is not self._in_backend]
            batch = self._planner.plan(others, backend_is_busy=self._in_backend is not None)
            if batch:
                self._compute(batch)

    def _remove_over(self) -> None:
        """End requests that were cancelled, are past their deadline, or have no time left to drain."""
        now = time.monotonic()
        for queued in self._queue.remove_over(now):
            queued.deliver(queued.fail_as_over())
        for running in self._slots.running:
            if running is self._in_backend:
                continue  # it has to leave the backend first
            if running.queued.is_over(now):
                self._finish(running, running.queued.fail_as_over())
            elif now > self._stop_at:
                self._finish(running, self._shutdown_failure())

    def _compute(self, batch: PlannedBatch) -> None:
        """Compute a batch, and sample the next token of each request whose logits it has."""
        started = time.perf_counter()
        try:
            self._check_model()
            logits_indices = decode_batch(self._context, [entry for _, entry in batch])
        except PigError as error:
            for running, _ in batch:
                self._finish(running, RequestFailed(error))
            return
        self._record_step(batch, time.perf_counter() - started)
        for (running, entry), logits_index in zip(batch, logits_indices, strict=True):
            running.mark_computed(len(entry.tokens))
            if entry.wants_logits:
                self._sample(running, logits_index)

    def _record_step(self, batch: PlannedBatch, seconds: float) -> None:
        prompt_tokens = sum(len(entry.tokens) for running, entry in batch if running.is_prefilling)
        self.stats.prompt_tokens += prompt_tokens
        self.stats.steps += 1
        if self._in_backend is None:  # else the time counts with the backend's
            self.stats.step_seconds += seconds
        self._planner.record_step(prompt_tokens, seconds, backend_is_busy=self._in_backend is not None)

    def _sample(self, running: RunningRequest, logits_index: int) -> None:
        try:
            running.session.check_logits_finite(logits_index)
            token = running.sample(self._context, logits_index)
        except PigError as error:
            self._finish(running, RequestFailed(error))
            return
        self.stats.generated_tokens += 1
        reason = running.accept(token, self._context.logits(logits_index))
        if reason is not None:
            self._finish(running, Finished(reason, running.cached_tokens, running.generated_tokens))

    def _finish(self, running: RunningRequest, event: Finished | RequestFailed) -> None:
        """Free a request's slot, and deliver its last event."""
        slot = self._slots.release(running)
        running.deliver(event)
        if isinstance(event, Finished):
            self._queue.note_duration(time.monotonic() - running.queued.submitted_at)
            slot.is_unsaved = True

    def _shutdown_failure(self) -> RequestFailed:
        return RequestFailed(self._queue.shutdown_reason or shutting_down())

    # ---- long prompts in the prefill backend -----------------------------------------------------

    def _next_for(self, backend: Prefiller) -> RunningRequest | None:
        """Return a request whose prompt is long enough for the prefill backend; None if there is none."""
        for running in self._slots.running:
            pending = len(running.pending_tokens) - 1
            if running.is_prefilling and backend.should_prefill(running.session.n_past, pending):
                return running
        return None

    def _prefill_in_backend(self, backend: Prefiller, running: RunningRequest) -> None:
        """Compute a prompt in the prefill backend, except its last token, whose logits a step computes.

        Other requests get steps meanwhile; their prompts take no more of the time than the backend gets.
        """
        session = running.session
        n_past, started, self._in_backend = session.n_past, time.perf_counter(), running

        def step_for_others() -> None:
            self._check_model()
            now = time.monotonic()
            if running.queued.is_over(now) or now > self._stop_at or self._queue.is_closed:
                raise Interrupted("the request of this prompt is over")
            if self.waiting or self.running > 1:
                with self._fail_all_on_error():
                    self._step()

        try:
            progress = _BackendProgress(running, step_for_others)
            backend.prefill(session, running.pending_tokens[:-1], progress)
        except Interrupted:
            pass  # the next step ends the request
        except PigError as error:
            self._finish(running, RequestFailed(error))
            return
        finally:
            self._in_backend = None
        running.mark_computed(session.n_past - n_past)
        self.stats.prompt_tokens += session.n_past - n_past
        self.stats.step_seconds += time.perf_counter() - started


class _BackendProgress(SilentProgress):
    """Reports a prefill backend's progress to the client, and takes steps for other requests in between.

    Args:
        step_for_others: called at each report; raises Interrupted to stop the backend.
    """

    def __init__(self, running: RunningRequest, step_for_others: Callable[[], None]) -> None:
        self._running = running
        self._step_for_others = step_for_others
        self._computed = 0.0

    def advance(self, amount: float) -> None:
        """Take a step for others, then report `amount` more tokens."""
        self._step_for_others()
        self._computed += amount
        self._running.report_progress_if_due(int(self._computed))
