"""Generation: tokens sampled one after the other, with speculative decoding by prompt lookup.

Speculative decoding decodes the last token and a draft in one batch, samples after each of them, and keeps
the draft as long as it is what was sampled (Leviathan et al., arXiv 2211.17192, with a deterministic draft).
Not here: how drafts are found (prompt_lookup.py) and tokens are sampled (sampler.py).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Generator
from time import perf_counter
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pigguf.common.softmax_and_kl import kl_divergence
from pigguf.errors import UsageError
from pigguf.inference.engine.kv_sequence import KVSequence
from pigguf.inference.engine.prompt_lookup import DraftCostModel, PromptLookup
from pigguf.inference.engine.sampler import Sampler, create_sampler
from pigguf.inference.engine.sampling_params import SamplingParams

StopReason = Literal["end", "length", "window", "interrupted"]

# In nats, KL divergence of logits before and after the KV cache was converted: rounding stays far below it,
# and a cache that was converted wrongly is far above.
_MAX_LAYOUT_DIVERGENCE = 0.1
# In logits: mostly more than the difference between the kernels of a batch and those of a single token.
_MIN_LOGIT_MARGIN = 0.5


class TokenGenerator:
    """Generates tokens after what a sequence holds, one generation at a time.

    Attributes:
        stop_reason: why the last generation ended; None before the first and during one.
        n_drafted: draft tokens that were decoded; n_accepted: those of them that were what was sampled.
        draft_costs: measured costs of drafts, which outlive a generation.
    """

    def __init__(self, sequence: KVSequence) -> None:
        self.stop_reason: StopReason | None = None
        self.n_drafted = self.n_accepted = 0
        self.draft_costs = DraftCostModel()
        self._sequence = sequence

    def generate(
        self, sampling: SamplingParams, max_tokens: int | None, *, prompt_lookup: bool
    ) -> Generator[int, None, None]:
        """Return a generator of tokens; Session.generate has the arguments and what it raises."""
        sequence = self._sequence
        if max_tokens is not None and max_tokens < 0:
            raise UsageError(f"`max_tokens={max_tokens}` is negative", "give a number from 0")
        if sequence.context and not sequence.n_past:
            raise UsageError("there is nothing to continue", "prefill the session first")
        owner = object()
        sequence.claim(owner)
        # An activation collector would count drafts that are rejected.
        prompt_lookup = prompt_lookup and sequence.context.activation_collector is None
        limit = math.inf if max_tokens is None else max_tokens
        return self._generate(owner, sampling, limit, prompt_lookup)

    def _generate(
        self, owner: object, sampling: SamplingParams, max_tokens: float, prompt_lookup: bool
    ) -> Generator[int, None, None]:
        sequence = self._sequence
        context = sequence.context
        model = context.model
        lookup: PromptLookup | None = None
        n_generated = 0
        token: int | None = None
        accepted: deque[int] = deque()  # sampled tokens that were not yielded yet
        self.stop_reason = None
        sequence.clear_interrupt()
        try:
            with create_sampler(sampling, model, sequence.tokens) as sampler:
                while n_generated < max_tokens:
                    with context.lock:
                        sequence.check_owner(owner)
                        if token is not None and sequence.tokens_left == 0:
                            self.stop_reason = "window"
                            return
                        if token is None:
                            self._compute_logits()
                            sequence.check_logits_finite()
                            token = sampler.sample(context)
                        elif accepted:
                            self._append_accepted(token)
                            token = accepted.popleft()
                        else:
                            if lookup is None and prompt_lookup:
                                lookup = PromptLookup([*sequence.tokens, token], self.draft_costs)
                            max_step = min(
                                max_tokens - n_generated, sequence.tokens_left, context.max_outputs
                            )
                            accepted += self._step(token, sampler, lookup, int(max_step) - 1)
                            token = accepted.popleft()
                    if model.is_eog(token):
                        self.stop_reason = "end"
                        return
                    yield token
                    n_generated += 1
                    if sequence.interrupted:
                        return
                self.stop_reason = "length"
        finally:
            if sequence.owner is owner:
                sequence.claim(None)
                self.stop_reason = self.stop_reason or "interrupted"

    def _append_accepted(self, token: int) -> None:
        """Append an accepted draft token, which the cache holds, now that the next is asked for."""
        sequence = self._sequence
        if sequence.n_ahead:
            sequence.record((token,))
            sequence.n_ahead -= 1
        else:  # the drafts were discarded meanwhile, to export the state
            sequence.append_token(token)

    def _step(self, token: int, sampler: Sampler, lookup: PromptLookup | None, max_draft: int) -> list[int]:
        """Append a sampled token and return the one sampled after it, or several where a draft is right."""
        sequence = self._sequence
        self._choose_decode_layout()
        draft = lookup.draft(max_draft) if lookup else []
        begin = perf_counter()
        if draft:
            sampled = self._decode_draft(token, draft, sampler)
        else:
            sequence.append_token(token)
            sequence.check_logits_finite()
            sampled = [sampler.sample(sequence.context)]
        if lookup:
            lookup.record_step(1 + len(draft), perf_counter() - begin)
            lookup.extend(sampled)
        return sampled

    def _decode_draft(self, token: int, draft: list[int], sampler: Sampler) -> list[int]:
        """Decode a token and a draft in one batch, and return the tokens sampled while the draft is right.

        The rejected rest of the draft is removed from the cache; what was accepted is counted in n_ahead.
        """
        sequence = self._sequence
        context, n_past, batch = sequence.context, sequence.n_past, (token, *draft)
        sampled: list[int] = []
        try:
            context.decode(sequence.seq_id, batch, n_past, range(len(batch)))
            for i, drafted in enumerate((*draft, None)):
                sequence.check_logits_finite(i)
                clear = sampler.sample_if_clear(context, i, _MIN_LOGIT_MARGIN)
                if clear is None:
                    sampled.append(self._sample_single(batch[i], n_past + i, sampler))
                    break
                sampled.append(clear)
                if clear != drafted or context.model.is_eog(clear):
                    break
            if len(sampled) < len(batch):
                context.truncate(sequence.seq_id, n_past + len(sampled))
            sequence.record((token,))
            sequence.n_ahead = len(sampled) - 1
        except BaseException:
            sequence.truncate_cache(n_past)
            raise
        self.n_drafted += len(draft)
        self.n_accepted += sequence.n_ahead
        return sampled

    def _sample_single(self, token: int, position: int, sampler: Sampler) -> int:
        """Decode a token again by itself, as plain decoding does, and return what is sampled after it."""
        sequence = self._sequence
        sequence.context.truncate(sequence.seq_id, position)
        sequence.context.decode(sequence.seq_id, (token,), position, (0,))
        sequence.check_logits_finite()
        return sampler.sample(sequence.context)

    def _compute_logits(self) -> None:
        """Compute the last token again if its logits are gone.

        If they are there, the first token is sampled from them at once, and the KV cache is converted after
        it.
        """
        sequence = self._sequence
        if not sequence.context.has_logits_after(sequence.seq_id, sequence.n_past):
            self._choose_decode_layout()
            sequence.recompute_last()

    def _choose_decode_layout(self) -> None:
        """Convert the KV cache to the layout that is faster for decode.

        The last token's logits of before and after are compared, if they are there: if the engine's layout is
        not what we expect, that costs a second prefill, and never a wrong answer.
        """
        sequence = self._sequence
        context, n_past = sequence.context, sequence.n_past
        if not context.needs_flash_attention_change(n_past, 1):
            return
        has_logits = context.has_logits_after(sequence.seq_id, n_past)
        expected = context.logits(-1).copy() if has_logits else None
        if not context.choose_flash_attention(n_past, 1) or expected is None:
            return
        sequence.recompute_last()
        if not _is_same_distribution(expected, context.logits(-1)):
            context.disable_flash_attention_switch(
                "the engine computes other logits after the KV cache was converted"
            )
            sequence.recompute()


def _is_same_distribution(expected: NDArray[np.float32], computed: NDArray[np.float32]) -> bool:
    """Return whether two ways to compute logits, (vocab_size,), agree except for rounding."""
    return kl_divergence(expected, computed, 0)[0] < _MAX_LAYOUT_DIVERGENCE
