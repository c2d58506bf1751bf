"""The prefill of a prompt: its prefix from the cache or the prompt cache, the rest by the fastest backend."""

from __future__ import annotations

from collections.abc import Sequence

from pigguf.inference.engine.kv_sequence import KVSequence
from pigguf.inference.engine.prefill_protocols import Prefiller, PromptCache
from pigguf.progress import Progress


class PromptPrefill:
    """Makes a sequence hold a prompt.

    Args:
        sequence: the sequence.
        prefiller: the prefill backend for long prompts, or None.
        prompt_cache: saved KV states of prompts, or None.
    """

    def __init__(
        self, sequence: KVSequence, prefiller: Prefiller | None, prompt_cache: PromptCache | None
    ) -> None:
        self._sequence = sequence
        self._prefiller = prefiller
        self._prompt_cache = prompt_cache

    def close(self) -> None:
        """Forget the prefill backend and the prompt cache."""
        self._prefiller = None
        self._prompt_cache = None

    def set_prompt(self, tokens: Sequence[int], progress: Progress) -> int:
        """Make the sequence hold exactly `tokens`, and return how many of them were cached.

        What was computed before Ctrl-C, interrupt() or a failure stays in the cache, and is saved to the
        prompt cache where that is worth it. Raises as KVSequence.prefill; nothing is dropped where they do
        not fit.
        """
        sequence = self._sequence
        context = sequence.context
        sequence.check_fits(0, len(tokens))
        context.model.check_token_ids(tokens)
        with context.lock:
            n_cached = self.reuse_prefix(tokens)
            try:
                self._compute_rest(tokens, progress)
            finally:
                # Shifted tokens depend on removed ones: their state is not that of the prompt.
                if self._prompt_cache is not None and sequence.shifted_from is None:
                    self._prompt_cache.save(sequence)
        return n_cached

    def reuse_prefix(self, tokens: Sequence[int]) -> int:
        """Keep the longest prefix of `tokens` in the cache or the prompt cache, and return its length."""
        sequence = self._sequence
        with sequence.context.lock:
            if self._prompt_cache is not None:
                if not sequence.n_past and self._backend_for(len(tokens)):
                    # States of the backend are saved in the layout they are used in: restore is a copy then.
                    sequence.context.choose_flash_attention(len(tokens), 1)
                self._prompt_cache.restore(sequence, tokens)
            n_cached = sequence.common_prefix_length(tokens)
            sequence.truncate(n_cached)
        return n_cached

    def _compute_rest(self, tokens: Sequence[int], progress: Progress) -> None:
        """Append what the cache lacks of `tokens`; llama.cpp computes the last one, for its logits."""
        sequence = self._sequence
        if backend := self._backend_for(len(tokens)):
            sequence.clear_interrupt()
            sequence.context.choose_flash_attention(len(tokens), 1)
            backend.prefill(sequence, tokens[sequence.n_past : -1], progress)
        sequence.prefill(tokens[sequence.n_past :], progress)

    def _backend_for(self, n_tokens: int) -> Prefiller | None:
        """Return the prefill backend if it is to compute `n_tokens` tokens, except for the last."""
        backend, n_past = self._prefiller, self._sequence.n_past
        return (
            backend if backend is not None and backend.should_prefill(n_past, n_tokens - 1 - n_past) else None
        )
