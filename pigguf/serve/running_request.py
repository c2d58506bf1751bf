"""A request that has a slot: the tokens it computes next, its sampler, its text, and why it ends."""

from __future__ import annotations

import time
from contextlib import ExitStack

import numpy as np
from numpy.typing import NDArray

from pigguf.common.softmax_and_kl import log_sum_exp
from pigguf.inference.detokenizer import StreamingDetokenizer
from pigguf.inference.engine import Context, Session
from pigguf.inference.engine.batch_decode import BatchEntry
from pigguf.inference.engine.sampler import Sampler
from pigguf.serve.errors import RequestRefused
from pigguf.serve.events import FinishReason, PrefillProgress, RequestEvent, SampledToken, TextChunk
from pigguf.serve.generation_request import QueuedRequest

_PROGRESS_SECONDS = 0.25  # least time between two PrefillProgress events
_MAX_SAMPLING_SECONDS = 1.0  # CPU time that sampling one token may take under a grammar


class RunningRequest:
    """A request in a slot. Made when the slot's cache holds what could be reused of the prompt.

    Args:
        queued: the request.
        session: the slot's sequence.
        sampler: made for this request.
        resources: closed with the request.

    Attributes:
        cached_tokens: prompt tokens that were in a KV cache already.
        pending_tokens: token ids to compute next: the rest of the prompt, then the last sampled token.
        generated_tokens: how many tokens were sampled.
        prefill_credit: prompt tokens that this request may compute, and has not taken yet (batch_planner.py).
    """

    def __init__(
        self, queued: QueuedRequest, session: Session, sampler: Sampler, resources: ExitStack
    ) -> None:
        request, model = queued.request, session.context.model
        self.queued = queued
        self.session = session
        self.cached_tokens = session.n_past
        self.pending_tokens = list(request.prompt[session.n_past :])
        self.generated_tokens = 0
        self.prefill_credit = 0
        self._sampler = sampler
        self._started_at = self._progress_at = time.monotonic()
        self._detokenizer = StreamingDetokenizer(
            model,
            request.stop,
            strip_first_space=request.strip_leading_space,
            visible_token=request.sampling.visible_control_token,
        )
        self._resources = resources

    @property
    def client(self) -> str:
        """The client whose request it is."""
        return self.queued.client

    @property
    def is_prefilling(self) -> bool:
        """Whether its prompt is still being computed: no token was sampled yet."""
        return self.generated_tokens == 0

    def deliver(self, event: RequestEvent) -> None:
        """Hand an event to whoever submitted the request."""
        self.queued.deliver(event)

    def close(self) -> None:
        """Free the sampler."""
        self._resources.close()

    # ---- prefill ---------------------------------------------------------------------------------

    def batch_entry(self, count: int) -> BatchEntry:
        """Return its next `count` pending tokens for a batch, with logits if they are all that is pending."""
        return BatchEntry(
            self.session, self.pending_tokens[:count], wants_logits=count >= len(self.pending_tokens)
        )

    def mark_computed(self, count: int) -> None:
        """Remove the first `count` pending tokens, which are in the KV cache now, and report progress."""
        del self.pending_tokens[:count]
        if self.is_prefilling and not self.pending_tokens:
            self.report_progress()
        elif self.is_prefilling:
            self.report_progress_if_due()

    def report_progress_if_due(self, extra_tokens: int = 0) -> None:
        """Do as report_progress does, but not more than four times a second."""
        if time.monotonic() >= self._progress_at + _PROGRESS_SECONDS:
            self.report_progress(extra_tokens)

    def report_progress(self, extra_tokens: int = 0) -> None:
        """Deliver PrefillProgress, if the client asked for progress.

        Args:
            extra_tokens: pending tokens that count as processed: a prefill backend is computing them.
        """
        if self.queued.request.report_progress:
            self._progress_at = time.monotonic()
            total = len(self.queued.prompt)
            processed = total - len(self.pending_tokens) + extra_tokens
            seconds = self._progress_at - self._started_at
            self.deliver(PrefillProgress(total, self.cached_tokens, processed, seconds))

    # ---- decode ----------------------------------------------------------------------------------

    def sample(self, context: Context, logits_index: int) -> int:
        """Return the next token id.

        Raises:
            RequestRefused: sampling took so long that it holds up the other requests. An ambiguous grammar
                can be parsed in exponentially many ways, and the engine follows all of them.
            EngineError: the grammar allows no token of the vocabulary.
        """
        started = time.thread_time()
        token = self._sampler.sample(context, logits_index)
        has_grammar = self.queued.request.sampling.grammar is not None
        if has_grammar and time.thread_time() - started > _MAX_SAMPLING_SECONDS:
            raise RequestRefused(
                400,
                "constraining the answer to its JSON schema takes the engine too long",
                "make fewer alternatives of the schema (anyOf, references) begin alike",
                code="schema_too_large",
            )
        return token

    def accept(self, token: int, logits: NDArray[np.float32]) -> FinishReason | None:
        """Record a sampled token, and deliver its text.

        Returns:
            Why it was the last token; None if it was not.

        Args:
            logits: what it was sampled from, (vocab_size,).
        """
        self.generated_tokens += 1
        request = self.queued.request
        if self.session.context.model.is_eog(token):
            self._deliver_text(self._detokenizer.finalize())
            return "end"
        self.pending_tokens = [token]
        sampled = () if request.logprobs is None else (_with_logprobs(token, logits, request.logprobs),)
        self._deliver_text(self._detokenizer.add_token(token), sampled)
        if self._detokenizer.stopped:
            return "stop"
        reason: FinishReason | None = None
        if self.generated_tokens == request.max_tokens:
            reason = "length"
        elif self.session.tokens_left == 0:
            reason = "window"
        if reason is not None:
            self._deliver_text(self._detokenizer.finalize())
        return reason

    def _deliver_text(self, text: str, tokens: tuple[SampledToken, ...] = ()) -> None:
        if text or tokens:
            self.deliver(TextChunk(text, tokens))


def _with_logprobs(token: int, logits: NDArray[np.float32], top: int) -> SampledToken:
    """Return a token with its log-probability, and the `top` most likely ones, from logits (vocab_size,)."""
    normalizer = log_sum_exp(logits)
    top_tokens: NDArray[np.intp] = np.empty(0, np.intp)
    if top:
        # Partition first: sorting the whole vocabulary would take as long as a decode step.
        candidates = np.flatnonzero(logits >= np.partition(logits, -top)[-top])
        top_tokens = candidates[np.argsort(-logits[candidates], kind="stable")][:top]
    return SampledToken(
        token,
        float(logits[token]) - normalizer,
        tuple((int(other), float(logits[other]) - normalizer) for other in top_tokens),
    )
