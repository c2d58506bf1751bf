"""Slots: the sequences of a context, which waiting request gets which one, and reuse of cached prefixes.

A free slot is chosen by how much of the prompt its KV cache already holds. A longer prefix in another slot's
cache is copied. A request whose prefix is just being computed for another one waits for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np
from numpy.typing import NDArray

from pigguf.common.token_prefix import common_prefix_length
from pigguf.inference.engine import Context, Session
from pigguf.inference.engine.sampler import create_sampler
from pigguf.serve.generation_request import QueuedRequest, request_failure
from pigguf.serve.request_queue import RequestQueue
from pigguf.serve.running_request import RunningRequest
from pigguf.serve.scheduler_stats import SchedulerStats

_CELLS_COPIED_PER_TOKEN = 64  # KV cells that are copied, at least, in the time one token takes to compute


class Slot:
    """One sequence of the context.

    Attributes:
        session: the sequence and its KV cache.
        running: the request that it runs; None while it is free.
        is_unsaved: whether its cache holds tokens that the prompt cache on disk was not given.
        last_used: how many requests had ended when its last one did.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.running: RunningRequest | None = None
        self.is_unsaved = False
        self.last_used = 0

    def reusable_tokens(self, prompt: NDArray[np.int32]) -> int:
        """Return the length of the cached prefix of a prompt; 0 where reuse would lose most of the cache."""
        common = self.session.common_prefix_length(prompt.tolist())
        return common if 2 * common >= self.session.n_past else 0


class SlotPool:
    """All slots of a context.

    Args:
        context: an open context, all of whose sequences are the pool's.
        stats: cached tokens are counted here.
    """

    def __init__(self, context: Context, stats: SchedulerStats) -> None:
        self._context = context
        self._stats = stats
        self._slots = [Slot(context.sequence()) for _ in range(context.options.sequences)]
        self._requests_ended = 0

    def __iter__(self) -> Iterator[Slot]:
        return iter(self._slots)

    @property
    def running(self) -> list[RunningRequest]:
        """The running requests, in the order of their slots."""
        return [slot.running for slot in self._slots if slot.running is not None]

    @property
    def running_clients(self) -> list[str]:
        """The client of each running request."""
        return [running.client for running in self.running]

    @property
    def unsaved(self) -> Slot | None:
        """A slot whose cache was not saved to the prompt cache; None if all were."""
        return next((slot for slot in self._slots if slot.is_unsaved), None)

    def release(self, running: RunningRequest) -> Slot:
        """Free and return the slot of a request. Its KV cache stays for the next prompt that begins alike."""
        slot = next(slot for slot in self._slots if slot.running is running)
        slot.running = None
        self._requests_ended += 1
        slot.last_used = self._requests_ended
        running.close()
        return slot

    def admit(self, queue: RequestQueue) -> bool:
        """Give the free slots to waiting requests, in turn.

        Returns:
            Whether a prefix was copied from one slot to another. Only the next batch moves the data: until
            then no sequence's state may be read or set, so no further request is admitted.
        """
        while free := [slot for slot in self._slots if slot.running is None]:
            in_turn = queue.in_turn(self.running_clients)
            queued = next((queued for queued in in_turn if not self._shares_running_prefill(queued)), None)
            if queued is None:
                return False
            if not queue.remove(queued):
                continue
            queue.note_admission(queued.client, self.running_clients)
            slot = max(free, key=lambda slot: (slot.reusable_tokens(queued.prompt), -slot.last_used))
            try:
                if self._start(slot, queued):
                    return True
            except Exception as error:
                queued.deliver(request_failure(error))
        return False

    def _start(self, slot: Slot, queued: QueuedRequest) -> bool:
        """Start a request in a slot with the longest cached prefix. Return whether it was copied.

        Raises:
            UsageError: the grammar is not valid.
        """
        session, prompt = slot.session, list(queued.request.prompt)
        slot.is_unsaved = False
        with ExitStack() as resources:
            sampler = resources.enter_context(
                create_sampler(queued.request.sampling, self._context.model, prompt)
            )
            own = session.reuse_prefix(prompt)
            others = (other.session for other in self._slots if other is not slot)
            best = max(others, key=lambda other: other.common_prefix_length(prompt), default=session)
            common = best.common_prefix_length(prompt)
            is_copied = self._is_worth_copying(common - own)
            if is_copied:
                session.copy_prefix_from(best, common)
            # The last token is computed in any case: its logits are needed.
            session.truncate(min(session.n_past, len(prompt) - 1))
            slot.running = RunningRequest(queued, session, sampler, resources.pop_all())
        self._stats.cached_tokens += session.n_past
        slot.running.report_progress()
        return is_copied

    def _shares_running_prefill(self, queued: QueuedRequest) -> bool:
        """Return whether it pays to wait for a running prefill that begins like this prompt."""
        for running in self.running:
            common = common_prefix_length(running.queued.prompt, queued.prompt)
            if running.is_prefilling and common > running.session.n_past:
                prompt = queued.prompt.tolist()
                cached = max(slot.session.common_prefix_length(prompt) for slot in self._slots)
                if self._is_worth_copying(common - cached):
                    return True
        return False

    def _is_worth_copying(self, tokens: int) -> bool:
        """Return whether copying `tokens` is faster than computing them.

        llama.cpp copies all cells of a sequence, however many of them are in use.
        """
        return tokens * _CELLS_COPIED_PER_TOKEN > self._context.length
