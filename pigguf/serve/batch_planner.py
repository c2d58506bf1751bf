"""Batch planning: how many tokens of which running requests are computed in the next step.

Every request that is generating gets its one token. The rest of the token budget goes to prompts (chunked
prefill). While answers are being generated, the budget is what is computed in about MAX_STEP_SECONDS, so that
they keep flowing. It is shared evenly between clients, then between the requests of each client; a share that
is too small to be computed efficiently is carried over to the next step, as credit.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Sequence

from pigguf.inference.engine.batch_decode import BatchEntry
from pigguf.serve.running_request import RunningRequest

MAX_STEP_SECONDS = 0.2
"""How long a step with prompt tokens may take, about, while answers are being generated."""

# Flash attention on a CPU handles a sequence's tokens in tiles of this size (ggml-cpu, GGML_FA_TILE_Q).
_TILE = 64
_MIN_TILES = 4  # of prompts in a step: fewer, divided over threads and heads, leave tiles half empty
_AVERAGING_RATE = 0.2  # weight of a new measurement in the moving average

PlannedBatch = list[tuple[RunningRequest, BatchEntry]]


class BatchPlanner:
    """Plans the batches of one context, and learns from them how long prompt tokens take.

    Args:
        batch_size: the most tokens of a batch.
    """

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self._seconds_per_token = 0.0  # of prompts, moving average; 0 before the first measurement
        self._prefill_from = 0.0  # time.perf_counter() before which a busy prefill backend has the CPU

    def plan(self, running: Sequence[RunningRequest], *, backend_is_busy: bool) -> PlannedBatch:
        """Return the entries of the next batch, in the order of `running`.

        llama.cpp computes sequences together that are next to each other in a batch.

        Args:
            running: the running requests, except one whose prompt a prefill backend is computing.
            backend_is_busy: whether a prefill backend is computing a prompt at the same time.
        """
        counts = {id(request): 1 for request in running if not request.is_prefilling}
        generating = len(counts)
        budget = self._batch_size - generating
        if generating:
            budget = min(budget, self._prefill_budget())
        may_prefill = not backend_is_busy or time.perf_counter() >= self._prefill_from
        prefilling = [request for request in running if request.is_prefilling and may_prefill]
        _add_credit(budget, prefilling)
        by_credit = sorted(prefilling, key=lambda request: -request.prefill_credit)
        for index, request in enumerate(by_credit):
            # In a mixed step, one token more completes a tile with the tokens of the answers.
            chunk = _chunk_size(request, extra=1 if generating else 0)
            fits = chunk <= budget or budget > _TILE or index == 0
            counts[id(request)] = min(chunk, budget) if fits else 0
            request.prefill_credit -= counts[id(request)]
            budget -= counts[id(request)]
        return [
            (request, request.batch_entry(counts[id(request)]))
            for request in running
            if counts.get(id(request))
        ]

    def record_step(self, prompt_tokens: int, seconds: float, *, backend_is_busy: bool) -> None:
        """Learn from a computed batch.

        Args:
            prompt_tokens: tokens of prompts in it.
            seconds: how long it took.
            backend_is_busy: as for plan. The backend then gets as much time as these prompts took.
        """
        if backend_is_busy and prompt_tokens:
            self._prefill_from = time.perf_counter() + seconds
        if prompt_tokens >= _TILE:
            measured = seconds / prompt_tokens
            rate = _AVERAGING_RATE if self._seconds_per_token else 1
            self._seconds_per_token += (measured - self._seconds_per_token) * rate

    def allow_prefill(self) -> None:
        """Let prompts into the next batch even while a prefill backend is busy."""
        self._prefill_from = 0.0

    def _prefill_budget(self) -> int:
        """Return how many prompt tokens keep a step within MAX_STEP_SECONDS."""
        tiles = int(MAX_STEP_SECONDS / self._seconds_per_token) // _TILE if self._seconds_per_token else 0
        return max(_MIN_TILES, tiles) * _TILE + 1


def _chunk_size(request: RunningRequest, extra: int) -> int:
    """Return how many prompt tokens a request takes for its credit: whole tiles, or all that is left."""
    pending = len(request.pending_tokens)
    if request.prefill_credit >= pending:
        return pending
    return min(pending, max(_MIN_TILES, request.prefill_credit // _TILE) * _TILE + extra)


def _add_credit(budget: int, prefilling: Sequence[RunningRequest]) -> None:
    """Divide the budget of a step between clients, then between the requests of each client."""
    by_client: defaultdict[str, list[RunningRequest]] = defaultdict(list)
    for request in prefilling:
        by_client[request.client].append(request)
    pending = [sum(len(request.pending_tokens) for request in requests) for requests in by_client.values()]
    for requests, share in zip(by_client.values(), _fair_shares(budget, pending), strict=True):
        own_shares = _fair_shares(share, [len(request.pending_tokens) for request in requests])
        for request, tokens in zip(requests, own_shares, strict=True):
            request.prefill_credit += tokens


def _fair_shares(budget: int, wanted: Sequence[int]) -> list[int]:
    """Divide a budget into equal shares; what one does not want goes to the others (max-min fairness)."""
    shares = [0] * len(wanted)
    for served, index in enumerate(sorted(range(len(wanted)), key=lambda index: wanted[index])):
        shares[index] = min(wanted[index], math.ceil(budget / (len(wanted) - served)))
        budget -= shares[index]
    return shares
