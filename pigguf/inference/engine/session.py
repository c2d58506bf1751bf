"""Session: one sequence of a context with its prefill and its generation.

A session is a KVSequence (kv_sequence.py) that also makes the cache hold a prompt (prompt_prefill.py),
returns logits at positions (prompt_logits.py) and generates tokens (generation.py). One iterator at a time:
after the tokens were changed by something else, an earlier generate or evaluate raises at its next step.
Several sessions share a batch in batch_decode.py.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from types import TracebackType
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from pigguf.inference.engine.generation import StopReason, TokenGenerator
from pigguf.inference.engine.kv_sequence import KVSequence
from pigguf.inference.engine.llama_context import LlamaContext
from pigguf.inference.engine.prefill_protocols import Prefiller, PromptCache
from pigguf.inference.engine.prompt_logits import copy_rows, prompt_logits
from pigguf.inference.engine.prompt_lookup import DraftCostModel
from pigguf.inference.engine.prompt_prefill import PromptPrefill
from pigguf.inference.engine.sampling_params import SamplingParams
from pigguf.progress import SILENT, Progress

T = TypeVar("T")


class Session(KVSequence):
    """One sequence, made by Context.sequence(). A context manager that returns the sequence to the context.

    Attributes:
        prefiller: the prefill backend for long prompts, or None.
    """

    def __init__(
        self,
        context: LlamaContext,
        seq_id: int,
        prefiller: Prefiller | None = None,
        prompt_cache: PromptCache | None = None,
        on_close: Callable[[int], None] = lambda seq_id: None,
    ) -> None:
        super().__init__(context, seq_id)
        self.prefiller = prefiller
        self._prompt_prefill = PromptPrefill(self, prefiller, prompt_cache)
        self._generator = TokenGenerator(self)
        self._on_close = on_close

    @property
    def stop_reason(self) -> StopReason | None:
        """Why the last generate stopped; None before the first and while one runs.

        "end" (the model ended its answer), "length" (max_tokens), "window" (no token fits into the context
        window any more) or "interrupted".
        """
        return self._generator.stop_reason

    @property
    def n_drafted(self) -> int:
        """Draft tokens that prompt lookup decoding has decoded so far."""
        return self._generator.n_drafted

    @property
    def n_accepted(self) -> int:
        """Those of n_drafted that were what was sampled; the others only cost time."""
        return self._generator.n_accepted

    @property
    def draft_costs(self) -> DraftCostModel:
        """What drafts were measured to cost, by which their length is chosen."""
        return self._generator.draft_costs

    @draft_costs.setter
    def draft_costs(self, costs: DraftCostModel) -> None:
        self._generator.draft_costs = costs

    # ---- prompts ---------------------------------------------------------------------------------

    def set_prompt(self, tokens: Sequence[int], progress: Progress = SILENT) -> int:
        """Make the cache hold exactly `tokens`: keep the common prefix, prefill the rest.

        What was computed before Ctrl-C, interrupt() or a failure stays in the cache, and is saved to the
        prompt cache where that is worth it.

        Args:
            tokens: the token ids.
            progress: one stage, "prefill", in tokens, for each backend that takes part.

        Returns:
            How many tokens the cache or the prompt cache had already.

        Raises:
            ContextOverflow: they do not fit; nothing was dropped.
            UsageError: the vocabulary has no such token; nothing was dropped.
            Interrupted: interrupt() was called.
            EngineError: the session is closed, or llama.cpp failed.
        """
        return self._prompt_prefill.set_prompt(tokens, progress)

    def reuse_prefix(self, tokens: Sequence[int]) -> int:
        """Keep the longest prefix of `tokens` that the cache or the prompt cache has, and nothing else.

        Returns:
            Its length in tokens.

        Raises:
            EngineError: the session is closed.
        """
        return self._prompt_prefill.reuse_prefix(tokens)

    # ---- logits ----------------------------------------------------------------------------------

    def evaluate(
        self, tokens: Sequence[int], indices: Iterable[int], progress: Progress = SILENT
    ) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Append tokens and yield (i, logits after tokens[i]) for each index i, ascending.

        The logits are (vocab_size,), float32, and belong to the caller. Memory holds those of one batch at a
        time. Tokens are appended as the iterator is consumed.

        Raises:
            ContextOverflow, UsageError: as for prefill, or an index is outside of tokens; raised at once.
            Interrupted, EngineError: as for prefill.
        """
        batches = self.evaluate_batches(tokens, indices, copy_rows, progress)
        return (pair for batch in batches for pair in batch)

    def evaluate_batches(
        self,
        tokens: Sequence[int],
        indices: Iterable[int],
        reduce: Callable[[list[int], list[NDArray[np.float32]]], T],
        progress: Progress = SILENT,
    ) -> Iterator[T]:
        """Append tokens and yield `reduce(indices, logits)` for each batch with wanted indices.

        The logits are views, (vocab_size,) each, of llama.cpp's own memory: they are valid only inside
        `reduce`.

        Raises:
            ContextOverflow, UsageError, Interrupted, EngineError: as for evaluate.
        """
        return prompt_logits(self, tokens, indices, reduce, progress)

    # ---- generation ------------------------------------------------------------------------------

    def generate(
        self,
        sampling: SamplingParams | None = None,
        max_tokens: int | None = None,
        *,
        prompt_lookup: bool = True,
    ) -> Generator[int, None, None]:
        """Generate tokens until the model ends its answer, max_tokens, or the end of the context window.

        The end token is not yielded. A yielded token is appended to the cache when the next is asked for, so
        that `tokens` does not hold the last one; set_prompt computes what is missing. The last token that a
        full window allows is not in the cache.

        Args:
            sampling: how tokens are sampled; None is SamplingParams().
            max_tokens: most tokens to yield; None is up to the end of the context window.
            prompt_lookup: draft what repeats the text so far and decode it in one batch, where that is faster
                (prompt_lookup.py). Each token is sampled as without it. A batch rounds differently than
                single tokens do, so that at temperature 0 texts may differ where two tokens are about equally
                likely.

        Raises:
            UsageError: the cache is empty, or max_tokens is negative.
            EngineError: the session is closed, llama.cpp failed, or the logits are not finite.
        """
        return self._generator.generate(sampling or SamplingParams(), max_tokens, prompt_lookup=prompt_lookup)

    # ---- closing ---------------------------------------------------------------------------------

    def close(self) -> None:
        """Empty the sequence and return it to the context; a second call does nothing."""
        context = self._context
        if context is not None:
            with context.lock:
                super().close()
                on_close, self._on_close = self._on_close, lambda seq_id: None
                on_close(self.seq_id)
                # The session and its parts refer to each other: what they refer to besides would stay in
                # memory until a garbage collection, with all of the model.
                self.prefiller = None
                self._prompt_prefill.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
