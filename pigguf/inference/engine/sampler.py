"""Sampler: the next token from logits, by llama.cpp's sampler chain and a grammar.

The samplers have the order of llama.cpp's common/sampling.cpp. As there, a token is sampled first, and only
if the grammar does not allow it another one is sampled of those that it allows. Upstream:
src/llama-sampler.cpp.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pigguf.inference.engine import library
from pigguf.inference.engine.grammar_sampler import GrammarSampler, apply_sampler, token_candidates
from pigguf.inference.engine.llama_context import LlamaContext
from pigguf.inference.engine.model import Model
from pigguf.inference.engine.sampling_params import SamplingParams
from pigguf.llama_cpp_internals.limits import RANDOM_SEED


class Sampler:
    """Samples tokens, and keeps what it sampled for penalties and grammar; made by `create_sampler`."""

    def __init__(self, sampling: SamplingParams, chain: Any, grammar: GrammarSampler | None) -> None:
        self._llama = library.load()
        self._sampling = sampling
        self._chain = chain
        self._grammar = grammar
        self._is_argmax = sampling.is_greedy and grammar is None and not sampling.has_penalties

    def sample(self, context: LlamaContext, output_index: int = -1) -> int:
        """Sample a token from the logits after the last batch's token `output_index`, or the last for -1.

        Raises:
            EngineError: the vocabulary has no token that the grammar allows.
        """
        if self._is_argmax:
            return int(context.logits(output_index).argmax())  # ten times as fast as the chain
        if self._grammar is None:
            return int(self._llama.llama_sampler_sample(self._chain, context.handle, output_index))
        token, _ = self._select_allowed(context.logits(output_index))
        self._accept(token)
        return token

    def sample_if_clear(self, context: LlamaContext, output_index: int, margin: float) -> int | None:
        """Sample as `sample`, but at temperature 0 return None if another token's logit is within `margin`.

        If it returns None, nothing was recorded as sampled.
        """
        if not self._sampling.is_greedy:
            return self.sample(context, output_index)
        logits = context.logits(output_index)
        if self._is_argmax:
            token = index = int(logits.argmax())
        else:
            token, candidates = self._select_allowed(logits)
            logits = candidates["logit"]
            index = int(np.flatnonzero(candidates["id"] == token)[0])
        if logits[index] - _largest_other(logits, index) < margin:
            return None
        self._accept(token)
        return token

    def _select_allowed(self, logits: NDArray[np.float32]) -> tuple[int, NDArray[Any]]:
        """Return the sampled token, and its candidates with the logits that the chain gave them."""
        candidates = token_candidates(logits)
        token, changed = self._select(candidates)
        while self._grammar is not None and not self._grammar.allows(token):
            candidates = self._grammar.allowed(candidates[candidates["id"] != token])
            token, changed = self._select(candidates)
        return token, changed

    def _accept(self, token: int) -> None:
        if self._grammar is not None:
            self._grammar.accept(token)
        self._llama.llama_sampler_accept(self._chain, token)

    def _select(self, candidates: NDArray[Any]) -> tuple[int, NDArray[Any]]:
        changed = candidates.copy()  # referenced here: C only has its address
        array = apply_sampler(self._llama, self._chain, changed)
        return int(array.data[array.selected].id), changed


@contextmanager
def create_sampler(sampling: SamplingParams, model: Model, recent_tokens: Sequence[int]) -> Iterator[Sampler]:
    """Open a sampler that has seen `recent_tokens`; its C objects are freed at the end of the block.

    Raises:
        UsageError: the grammar cannot be parsed.
    """
    llama = library.load()
    chain = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
    grammar: GrammarSampler | None = None
    try:
        if sampling.grammar is not None:
            grammar = GrammarSampler(
                model, sampling.grammar, sampling.grammar_trigger, sampling.visible_control_token
            )
        for sampler in _chain_samplers(llama, sampling, model.vocab_size):
            llama.llama_sampler_chain_add(chain, sampler)
        for token in recent_tokens[-sampling.repeat_last_n :] if sampling.repeat_last_n else ():
            llama.llama_sampler_accept(chain, token)
        yield Sampler(sampling, chain, grammar)
    finally:
        llama.llama_sampler_free(chain)
        if grammar is not None:
            grammar.free()


def _largest_other(logits: NDArray[np.float32], index: int) -> float:
    """Return the largest logit except for the one at `index`."""
    sides = logits[:index], logits[index + 1 :]
    return max(float(side.max(initial=-math.inf)) for side in sides)


def _chain_samplers(llama: Any, sampling: SamplingParams, vocab_size: int) -> Iterator[Any]:
    yield llama.llama_sampler_init_penalties(
        vocab_size,
        sampling.repeat_last_n,
        sampling.repeat_penalty,
        sampling.frequency_penalty,
        sampling.presence_penalty,
    )
    if sampling.is_greedy:
        yield llama.llama_sampler_init_greedy()
        return
    yield llama.llama_sampler_init_top_k(sampling.top_k)
    yield llama.llama_sampler_init_top_p(sampling.top_p, 1)
    yield llama.llama_sampler_init_min_p(sampling.min_p, 1)
    yield llama.llama_sampler_init_temp(sampling.temperature)
    yield llama.llama_sampler_init_dist(
        secrets.randbelow(RANDOM_SEED) if sampling.seed is None else sampling.seed
    )
