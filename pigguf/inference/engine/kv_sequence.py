"""KVSequence: the tokens of one sequence in a context's KV cache, and what changes them.

After every call `tokens` are what the cache holds, whether the call ended, failed or was interrupted. Tokens
that do not fit are refused before anything is computed. Prompt lookup decoding may leave accepted draft
tokens in the cache behind `tokens`; they are removed before anything else is appended.

Not here: prompts (prompt_prefill.py), logits at positions (prompt_logits.py), generation (generation.py),
text (inference/local_model.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import index

from pigguf.common.token_prefix import common_prefix_length
from pigguf.errors import ContextOverflow, EngineError, Interrupted, UsageError
from pigguf.inference.engine.batch import BatchToken
from pigguf.inference.engine.llama_context import LlamaContext
from pigguf.inference.engine.sigint import defer_sigint
from pigguf.progress import SILENT, Progress, stage


class KVSequence:
    """One sequence of a context.

    Attributes:
        seq_id: llama.cpp's number of the sequence.
        n_ahead: tokens in the cache behind `tokens`: drafts that were accepted and not yet asked for.
        shifted_from: the first position whose tokens were computed from tokens that are gone since, or None.
        owner: the iterator whose tokens these are, or None.
    """

    def __init__(self, context: LlamaContext, seq_id: int) -> None:
        self.seq_id = seq_id
        self.n_ahead = 0
        self.shifted_from: int | None = None
        self.owner: object = None
        self._context: LlamaContext | None = context
        self._tokens: list[int] = []
        self._interrupted = False

    @property
    def tokens(self) -> list[int]:
        """A copy of the tokens in the cache; the token at position i is at index i."""
        return list(self._tokens)

    @property
    def n_past(self) -> int:
        """The number of tokens in the cache."""
        return len(self._tokens)

    @property
    def tokens_left(self) -> int:
        """The number of tokens that still fit into the context window."""
        return self.context.length - len(self._tokens)

    @property
    def interrupted(self) -> bool:
        """Whether interrupt() was called and the work in progress has not stopped yet."""
        return self._interrupted

    @property
    def context(self) -> LlamaContext:
        """The context that the sequence belongs to.

        Raises:
            EngineError: the session was closed.
        """
        if self._context is None:
            raise EngineError("the session was closed", "keep its `with` block open while it is used")
        return self._context

    # ---- appending -------------------------------------------------------------------------------

    def prefill(self, tokens: Sequence[int], progress: Progress = SILENT) -> None:
        """Append tokens to the cache with llama.cpp, a batch at a time.

        Ctrl-C stops it within a moment; the batches that were computed stay in the cache.

        Args:
            tokens: the token ids.
            progress: one stage, "prefill", in tokens.

        Raises:
            ContextOverflow: they do not fit; nothing was appended.
            UsageError: the vocabulary has no such token; nothing was appended.
            Interrupted: interrupt() was called.
            EngineError: the session is closed, or llama.cpp failed.
        """
        tokens = self.begin_append(tokens)
        size = self.context.batch_size
        self.claim(None)
        with self.context.lock, stage(progress, "prefill", len(tokens), "tokens"):
            for start in range(0, len(tokens), size):
                batch = tokens[start : start + size]
                is_last = start + size >= len(tokens)
                self.context.choose_flash_attention(len(self._tokens), len(tokens) - start)
                self.append_batch(batch, (len(batch) - 1,) if is_last else ())
                progress.advance(len(batch))

    def begin_append(self, tokens: Sequence[int]) -> list[int]:
        """Return tokens as a list if they can be appended, and clear an earlier request to stop.

        Raises:
            ContextOverflow: they do not fit.
            UsageError: the vocabulary has no such token.
        """
        tokens = [index(token) for token in tokens]
        self.check_fits(len(self._tokens), len(tokens))
        self.context.model.check_token_ids(tokens)
        self._interrupted = False
        return tokens

    def check_fits(self, n_past: int, n_tokens: int) -> None:
        """Raise if `n_tokens` tokens after `n_past` exceed the context window.

        Raises:
            ContextOverflow: they do.
        """
        window = self.context.length
        if n_past + n_tokens > window:
            already = f" and {n_past:,} are there already" if n_past else ""
            raise ContextOverflow(
                f"{n_tokens:,} tokens do not fit: the window is {window:,} tokens{already}",
                "shorten the text, or take a larger context if the model has one",
            )

    def append_batch(self, tokens: list[int], outputs: Sequence[int]) -> None:
        """Decode one batch and append it; Ctrl-C and interrupt() abort it.

        If the handler of Ctrl-C does not raise, the batch is computed again.

        Args:
            tokens: at most batch_size token ids.
            outputs: indices into tokens whose logits are kept.

        Raises:
            Interrupted: interrupt() was called.
            EngineError: llama.cpp failed.
        """
        is_done = False
        while not is_done:
            with defer_sigint() as sigint:
                is_done = self.context.decode(
                    self.seq_id,
                    tokens,
                    len(self._tokens),
                    outputs,
                    should_abort=lambda sigint=sigint: sigint.received or self._interrupted,  # type: ignore[misc]
                )
                if is_done:
                    self._tokens += tokens
            if self._interrupted:
                self._interrupted = False
                raise Interrupted(f"prefill was interrupted after {len(self._tokens):,} tokens")

    def append_token(self, token: int) -> None:
        """Decode one token and append it.

        An abort callback between operators would cost as much as a small model's decode, and deferring SIGINT
        a hundredth of it. So neither is done: where Ctrl-C comes between the decode and the record of it, the
        record is taken from the cache.

        Raises:
            EngineError: llama.cpp failed.
        """
        n_past = len(self._tokens)
        try:
            self.context.decode(self.seq_id, (token,), n_past, (0,))
            self._tokens.append(token)
        except BaseException:
            self._tokens[n_past:] = [token] * (self.context.n_past(self.seq_id) - n_past)
            raise

    def batch_tokens(self, tokens: Sequence[int], *, wants_logits: bool) -> list[BatchToken]:
        """Return tokens to append as entries of a batch of several sequences.

        Args:
            tokens: the token ids.
            wants_logits: keep the logits after the last of them.

        Raises:
            ContextOverflow, UsageError: they cannot be appended.
        """
        tokens = self.begin_append(tokens)
        self.claim(None)
        last, n_past = len(tokens) - 1, len(self._tokens)
        return [
            BatchToken(token, n_past + i, self.seq_id, wants_logits and i == last)
            for i, token in enumerate(tokens)
        ]

    def record(self, tokens: Sequence[int]) -> None:
        """Append tokens that a decode has put into the cache."""
        self._tokens += tokens

    def recompute_last(self) -> None:
        """Compute the last token again, for its logits."""
        last = self._tokens[-1]
        self.truncate_cache(len(self._tokens) - 1)
        self.append_token(last)

    def recompute(self) -> None:
        """Compute all tokens again; the owner stays the same."""
        tokens, owner = list(self._tokens), self.owner
        self.truncate_cache(0)
        self.prefill(tokens)
        self.owner = owner

    # ---- owner -----------------------------------------------------------------------------------

    def claim(self, owner: object) -> None:
        """Make an iterator the owner, after which those before it raise; and remove draft tokens."""
        self.owner = owner
        self.discard_drafts()

    def check_owner(self, owner: object) -> None:
        """Raise if the tokens are no longer those of this iterator.

        Raises:
            EngineError: the session was closed or used for something else.
        """
        _ = self.context
        if self.owner is not owner:
            raise EngineError(
                "the session was put to another use before this generation or evaluation ended",
                "let one end before the next begins; two at once take two sessions or two open models",
            )

    def discard_drafts(self) -> None:
        """Remove accepted draft tokens that were not asked for."""
        if self.n_ahead:
            self.truncate_cache(len(self._tokens))

    # ---- truncating, copying, shifting -----------------------------------------------------------

    def common_prefix_length(self, tokens: Sequence[int]) -> int:
        """Return how many tokens at the beginning of `tokens` the cache already holds."""
        return common_prefix_length(self._tokens, tokens)

    def truncate(self, n_tokens: int) -> None:
        """Remove all tokens after the first `n_tokens`; 0 empties the sequence.

        Raises:
            UsageError: the cache does not hold that many.
        """
        if not 0 <= n_tokens <= len(self._tokens):
            raise UsageError(f"{n_tokens} tokens cannot be kept of {len(self._tokens)}")
        self.claim(None)
        self.truncate_cache(n_tokens)

    def truncate_cache(self, n_tokens: int) -> None:
        """Remove all tokens after the first `n_tokens`, and drafts; the owner stays the same."""
        with self.context.lock, defer_sigint():
            self.context.truncate(self.seq_id, n_tokens)
            del self._tokens[n_tokens:]
            self.n_ahead = 0
            if self.shifted_from is not None and n_tokens <= self.shifted_from:
                self.shifted_from = None

    def copy_prefix_from(self, other: KVSequence, n_tokens: int) -> None:
        """Replace this sequence with the first `n_tokens` tokens of another of the same context.

        The next decode of any sequence moves the data: until then the state of neither may be exported or
        imported.

        Raises:
            UsageError: the other does not hold that many.
            EngineError: a session is closed, or this model's memory cannot remove a part.
        """
        if not 0 < n_tokens <= len(other._tokens):
            raise UsageError(f"{n_tokens} tokens cannot be copied of {len(other._tokens)}")
        with self.context.lock, defer_sigint():
            self.claim(None)
            self._tokens = []
            self.context.copy_prefix(other.seq_id, self.seq_id, n_tokens)
            self._tokens = other._tokens[:n_tokens]
            shifted = other.shifted_from
            self.shifted_from = shifted if shifted is not None and shifted < n_tokens else None

    def shift(self, start: int, stop: int) -> None:
        """Remove the tokens at [start, stop) and move those after them to the positions before (K shift).

        Their keys are rotated to the new positions by the model's rope. What they were computed from stays:
        after the first layer they depend on the removed tokens.

        Raises:
            UsageError: the cache does not hold them, or no token comes after them.
            EngineError: this model's KV cache cannot be shifted.
        """
        if not 0 <= start < stop < len(self._tokens):
            raise UsageError(f"tokens {start} to {stop} cannot be dropped of {len(self._tokens)}")
        self.claim(None)
        with self.context.lock, defer_sigint():
            self.context.shift(self.seq_id, start, stop)
            del self._tokens[start:stop]
            self.shifted_from = start if self.shifted_from is None else min(start, self.shifted_from)
            # llama.cpp rotates the keys at its next decode: a state exported before that would be wrong.
            last = self._tokens.pop()
            self.context.truncate(self.seq_id, len(self._tokens))
            self.append_token(last)

    # ---- states ----------------------------------------------------------------------------------

    def export_state(self) -> bytearray:
        """Return the sequence's KV state, laid out as kv_state_layout.py describes.

        Raises:
            EngineError: the session is empty or closed, or llama.cpp failed.
        """
        with self.context.lock:
            self.discard_drafts()
            return self.context.export_state(self.seq_id)

    def import_state(self, state: bytearray, tokens: Sequence[int]) -> None:
        """Replace the sequence with a KV state and the tokens that it is of.

        V must be laid out as `context.values_transposed` says.

        Raises:
            EngineError: llama.cpp rejects it, or it is of another number of tokens; the session is empty
                then.
        """
        with self.context.lock, defer_sigint():
            self.claim(None)
            self._tokens = []
            self.context.import_state(self.seq_id, state)
            self._record_imported(tokens)

    def save_state(self, path: str) -> int:
        """Write tokens and KV state to a file, streamed, and return the bytes written.

        Raises:
            EngineError: the file could not be written completely.
        """
        with self.context.lock:
            self.discard_drafts()
            return self.context.save_state(self.seq_id, path, self._tokens)

    def load_state(self, path: str, tokens: Sequence[int]) -> None:
        """Replace the sequence with a file of save_state that holds `tokens`.

        The file must be known to be complete and of a context like this one, with V laid out alike.

        Raises:
            EngineError: llama.cpp rejects it, or it holds other tokens; the session is empty then.
        """
        with self.context.lock, defer_sigint():
            self.claim(None)
            self._tokens, self.shifted_from = [], None
            loaded = self.context.load_state(self.seq_id, path, len(tokens))
            self._record_imported(loaded if loaded == list(tokens) else [])

    def _record_imported(self, tokens: Sequence[int]) -> None:
        """Record the tokens of an imported state if the cache holds as many, and raise otherwise."""
        if not tokens or self.context.n_past(self.seq_id) != len(tokens):
            self.context.truncate(self.seq_id, 0)
            raise EngineError("the KV state holds other tokens than expected")
        self._tokens = [index(token) for token in tokens]

    # ---- logits ----------------------------------------------------------------------------------

    def check_logits_finite(self, output_index: int = -1) -> None:
        """Raise if the logits after the last batch's token `output_index` are not finite.

        To be called before a token is sampled: C samplers sort, and a sort of NaN may leave the array.

        Raises:
            EngineError: the logits are not numbers.
        """
        # The maximum of values with a NaN is NaN. Minus infinity alone is valid, and never sampled.
        if not math.isfinite(self.context.logits(output_index).max()):
            raise self.nonfinite_logits_error()

    def nonfinite_logits_error(self) -> EngineError:
        """Return the error to raise where logits are not finite."""
        return EngineError(
            f"{self.context.model.path} computes logits that are not numbers",
            "the file is damaged: download or convert it again",
        )

    # ---- stopping and closing --------------------------------------------------------------------

    def interrupt(self) -> None:
        """Stop the prefill or generation in progress, from another thread or a signal handler.

        prefill then raises Interrupted, and generate ends. If nothing is in progress, nothing happens.
        """
        self._interrupted = True

    def clear_interrupt(self) -> None:
        """Forget a request to stop that came before the work began."""
        self._interrupted = False

    def close(self) -> None:
        """Empty the sequence; a second call does nothing."""
        context = self._context
        if context is not None:
            with context.lock:
                context.truncate(self.seq_id, 0)
                self._context = None
                self._tokens = []
                self.n_ahead = 0
