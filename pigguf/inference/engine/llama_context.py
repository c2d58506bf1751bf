"""LlamaContext: a llama_context with its KV cache for one or many sequences, and the buffers to compute in.

Every decode of the engine goes through here, at explicit positions: `decode` computes a batch of one
sequence's tokens, `decode_batch` one of several sequences'. With a FlashAttentionSwitch the context changes
between flash attention and none, as either is faster at a depth: the sequences' states move from a
llama_context that is freed into the one that replaces it, so that there is one KV cache at a time.

Not here: the tokens that a sequence holds (kv_sequence.py), and which sequences are in use (context.py).
Upstream: llama.cpp include/llama.h, src/llama-context.cpp.
"""

from __future__ import annotations

import ctypes
import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pigguf.common.format_bytes import format_memory
from pigguf.errors import ContextOverflow, DoesNotFit, EngineError
from pigguf.inference.engine import library, state_save_load
from pigguf.inference.engine.batch import AbortCheck, BatchToken, LlamaBatch
from pigguf.inference.engine.context_options import (
    UNQUANTIZED_CACHE_TYPES,
    ContextOptions,
    FlashAttentionSwitch,
    context_parameters,
    kv_cells,
    max_outputs,
)
from pigguf.inference.engine.memory_checks import check_kv_cache_fits
from pigguf.inference.engine.model import Model
from pigguf.inference.engine.protocols import BatchObserver
from pigguf.inference.engine.sigint import defer_sigint
from pigguf.llama_cpp_internals import kv_state_layout
from pigguf.llama_cpp_internals.limits import (
    ATTN_ROTATION_MULTIPLE,
    DECODE_ABORTED,
    DECODE_OK,
    SHIFTABLE_ROPE_TYPES,
)

_log = logging.getLogger("pigguf")

# How a model gets a longer window, by its kind of positions.
_LONGER_WINDOW = {
    "learned": "`pigguf convert --context N`, which resamples its table of positions",
    "alibi": "override its context length",
}
_LONGER_ROTARY_WINDOW = "override its rope scaling (`rope.factor`)"


class LlamaContext:
    """An open llama_context; using it after close raises EngineError.

    Several threads may use it; `lock` is held around calls that belong together.

    Attributes:
        lock: a reentrant lock to hold around `decode`, `logits` and `truncate` calls that belong together.
        model, options: what it was made of.
        activation_collector: what reads the inputs of weights during decode, or None.
        length: context window of each sequence in tokens.
        cache_bytes: the size of the KV cache.
        batch_size: most tokens of one decode; max_outputs: most of them whose logits are kept.

    Raises:
        UsageError: the options do not fit the model.
        ContextOverflow: the length exceeds the model's context_length.
        DoesNotFit: there is not enough memory; the message has the sizes.
        EngineError: the model is closed or has no weights.
    """

    def __init__(
        self,
        model: Model,
        options: ContextOptions | None = None,
        activation_collector: BatchObserver | None = None,
    ) -> None:
        self.model = model
        self.options = options or ContextOptions()
        self.activation_collector = activation_collector
        self._switch = _flash_attention_switch(model, self.options)
        self._flash_attention = True if self._switch else self.options.flash_attention
        self.length = _context_length(model, self.options)
        self.cache_bytes = _checked_cache_bytes(model, self.options, self.length)
        self._llama = library.load()
        self.lock = threading.RLock()
        self.max_outputs = max_outputs(self.options, model.vocab_size)
        self._handle = self._create()
        model.register_context(self)
        self.batch_size: int = self._llama.llama_n_batch(self._handle)
        self._batch = LlamaBatch(self._llama, self.batch_size, self.options.sequences)
        self._memory = self._llama.llama_get_memory(self._handle)
        self._logits_after: tuple[int, int] | None = None  # seq_id and n_past that logits(-1) belong to
        self._abort_check = AbortCheck()
        self._abort_callback = self._llama.ggml_abort_callback(self._abort_check)  # C only has its address
        self._no_abort_callback = self._llama.ggml_abort_callback()

    def _create(self) -> Any:
        if self.model.vocab_only:
            raise EngineError(f"{self.model.path} was opened for its vocabulary only")
        options = replace(
            self.options,
            length=self.length,
            flash_attention_switch=None,
            flash_attention=self._flash_attention,
        )
        parameters = context_parameters(options, self.model.vocab_size)
        if self.activation_collector is not None:
            parameters.cb_eval = self.activation_collector.callback
        handle = None
        try:
            # Ctrl-C in the log's callback would be lost, because no exception passes through C.
            with library.capture_errors() as errors, defer_sigint():
                handle = self._llama.llama_init_from_model(self.model.handle, parameters)
        except BaseException:
            if handle:
                self._llama.llama_free(handle)
            raise
        if not handle:
            self.model.check_workers()
            raise self._creation_error(errors)
        return handle

    def _creation_error(self, errors: list[str]) -> EngineError:
        reason = library.failure_reason(errors)
        if library.is_out_of_memory(errors):
            return DoesNotFit(
                f"no memory for a context of {self.length:,} tokens, whose KV cache takes "
                f"{format_memory(self.cache_bytes)}: {reason}",
                "take a shorter context, a quantized KV cache, or fewer layers on the GPU",
            )
        return EngineError(f"llama.cpp cannot make a context of {self.length:,} tokens: {reason}")

    def close(self) -> None:
        """Free the KV cache; a second call does nothing."""
        with self.lock:
            if self._handle is not None:
                self._llama.llama_free(self._handle)
                self._handle = None
            self.model.unregister_context(self)

    @property
    def handle(self) -> Any:
        """The library's llama_context pointer.

        Raises:
            EngineError: the context was closed.
        """
        if self._handle is None:
            raise EngineError("the context was closed", "keep its `with` block open while it is used")
        return self._handle

    # ---- decode ----------------------------------------------------------------------------------

    def decode(
        self,
        seq_id: int,
        tokens: Sequence[int],
        position: int,
        outputs: Sequence[int],
        should_abort: Callable[[], bool] | None = None,
    ) -> bool:
        """Compute one batch of a sequence and put it into the KV cache, all of it or nothing.

        Args:
            seq_id: the sequence.
            tokens: at most batch_size token ids of the vocabulary.
            position: the first token's position.
            outputs: indices into tokens whose logits are kept, at most max_outputs.
            should_abort: called often while the CPU computes; True aborts the batch. It must not raise.

        Returns:
            False if `should_abort` aborted it.

        Raises:
            EngineError: llama.cpp failed, or the activation collector did.
            WorkerLost: a worker of the model's failed.
        """
        self._batch.fill(seq_id, tokens, position, outputs)
        if not self._compute(should_abort, bool(outputs)):
            return False
        if outputs and outputs[-1] == len(tokens) - 1:
            self._logits_after = (seq_id, position + len(tokens))
        return True

    def decode_batch(self, batch: Sequence[BatchToken]) -> None:
        """Compute one batch of several sequences' tokens; `logits(i)` are then those after batch[i].

        Args:
            batch: at most batch_size tokens, a sequence's together and in order; at most max_outputs want
                logits.

        Raises:
            EngineError: llama.cpp failed, or the activation collector did; the cache may hold part of the
                batch.
        """
        self._batch.fill_mixed(batch)
        self._compute(None, any(entry.wants_logits for entry in batch))

    def _compute(self, should_abort: Callable[[], bool] | None, has_outputs: bool) -> bool:
        """Compute the filled batch, and return whether it was computed to its end."""
        handle = self.handle
        self._logits_after = None
        if should_abort is not None:
            self._abort_check.should_abort = should_abort
            self._llama.llama_set_abort_callback(handle, self._abort_callback, None)
        with library.capture_errors() as errors:
            status = self._llama.llama_decode(handle, self._batch.c)
            if has_outputs and self.model.workers is not None:  # else it continues until logits are read
                self._llama.llama_synchronize(handle)
        if should_abort is not None:
            self._llama.llama_set_abort_callback(handle, self._no_abort_callback, None)
            self._abort_check.should_abort = None
        if self.activation_collector is not None:
            self.activation_collector.end_batch(status == DECODE_OK)
        self.model.check_workers()
        if status == DECODE_ABORTED:
            return False
        if status != DECODE_OK:
            reason = f": {errors[0]}" if errors else ""
            raise EngineError(f"llama.cpp failed to compute (llama_decode: {status}){reason}")
        return True

    def logits(self, index: int) -> NDArray[np.float32]:
        """Return a view of the last batch's logits after its token `index`, or after the last kept for -1.

        Returns:
            (vocab_size,), valid until the next decode. Whether they are finite is not checked.
        """
        address = ctypes.addressof(self._llama.llama_get_logits_ith(self.handle, index).contents)
        return np.frombuffer((ctypes.c_float * self.model.vocab_size).from_address(address), np.float32)

    @property
    def embedding_length(self) -> int:
        """The dimensions of what `embedding` returns."""
        return int(self._llama.llama_model_n_embd(self.model.handle))

    def embedding(self, index: int) -> NDArray[np.float32]:
        """Return a view of the hidden state of the last batch's token `index` after the last norm.

        Only with `options.embeddings`.

        Returns:
            (embedding_length,), valid until the next decode.
        """
        address = ctypes.addressof(self._llama.llama_get_embeddings_ith(self.handle, index).contents)
        return np.frombuffer((ctypes.c_float * self.embedding_length).from_address(address), np.float32)

    def has_logits_after(self, seq_id: int, n_past: int) -> bool:
        """Return whether logits(-1) are those after the first `n_past` tokens of this sequence."""
        return self._logits_after == (seq_id, n_past)

    # ---- flash attention -------------------------------------------------------------------------

    def choose_flash_attention(self, n_past: int, n_tokens: int) -> bool:
        """Convert the KV cache to the layout in which `n_tokens` tokens after `n_past` are computed fastest.

        Returns:
            Whether it was converted; the logits are gone then.

        Raises:
            EngineError: there is no memory for the other layout, nor for the old one again.
        """
        if not self.needs_flash_attention_change(n_past, n_tokens):
            return False
        wanted = not self._flash_attention
        try:
            self._set_flash_attention(wanted)
        except EngineError as error:
            self.disable_flash_attention_switch(error.message)
        return self._flash_attention == wanted

    def needs_flash_attention_change(self, n_past: int, n_tokens: int) -> bool:
        """Return whether `n_tokens` tokens after `n_past` are faster with the KV cache's other layout."""
        wanted = self._switch.wants_flash_attention(n_past, n_tokens) if self._switch else None
        return wanted is not None and wanted != self._flash_attention

    def disable_flash_attention_switch(self, reason: str) -> None:
        """Keep the KV cache's layout from now on, and log why."""
        self._switch = None
        _log.warning("flash attention stays %s: %s", "on" if self._flash_attention else "off", reason)

    def _set_flash_attention(self, flash_attention: bool) -> None:
        """Recreate the llama_context with or without flash attention, and give it the sequences' states."""
        with self.lock, defer_sigint():
            seq_ids = [seq_id for seq_id in range(self.options.sequences) if self.n_past(seq_id)]
            states = {seq_id: self.export_state(seq_id) for seq_id in seq_ids}
            for state in states.values():
                kv_state_layout.read_layout(state)  # raises before anything is freed
            is_changed = self._recreate(flash_attention)
            if not is_changed:
                self._recreate(not flash_attention)
            for seq_id, state in states.items():
                if is_changed:
                    kv_state_layout.transpose_values(state)
                self.import_state(seq_id, state)
            if not is_changed:
                raise EngineError("there is no memory for the other layout of the KV cache")

    def _recreate(self, flash_attention: bool) -> bool:
        """Free the llama_context and make another, and return whether there was memory for it."""
        if self._handle is not None:
            self._llama.llama_free(self._handle)
        self._handle, self._flash_attention, self._logits_after = None, flash_attention, None
        with suppress(DoesNotFit):
            self._handle = self._create()
            self._memory = self._llama.llama_get_memory(self._handle)
        return self._handle is not None

    # ---- the KV cache of a sequence --------------------------------------------------------------

    @property
    def values_transposed(self) -> bool:
        """Whether V is transposed in the states of this context, as it is without flash attention."""
        return self._flash_attention is False

    def n_past(self, seq_id: int) -> int:
        """Return how many tokens of a sequence the cache holds."""
        return int(self._llama.llama_memory_seq_pos_max(self._memory, seq_id)) + 1

    def truncate(self, seq_id: int, n_tokens: int) -> None:
        """Remove a sequence's tokens from position `n_tokens` on.

        Raises:
            EngineError: this model's memory cannot remove a part.
        """
        _ = self.handle
        if not self._llama.llama_memory_seq_rm(self._memory, seq_id, n_tokens, -1):
            raise EngineError(f"{self.model.path} cannot drop tokens from its cache")
        if self._logits_after is not None:
            logits_seq_id, logits_n_past = self._logits_after
            if logits_seq_id == seq_id and logits_n_past > n_tokens:
                self._logits_after = None

    def copy_prefix(self, source: int, target: int, n_tokens: int) -> None:
        """Replace a sequence with the first `n_tokens` tokens of another.

        The next decode moves the data: until then the state of neither may be exported or imported.

        Raises:
            EngineError: this model's memory cannot remove a part.
        """
        self.truncate(target, 0)
        self._llama.llama_memory_seq_cp(self._memory, source, target, -1, -1)
        self.truncate(target, n_tokens)

    def shift(self, seq_id: int, start: int, stop: int) -> None:
        """Remove the tokens at [start, stop) and move those after them to the positions before.

        llama.cpp rotates their keys to the new positions at its next decode (K shift).

        Raises:
            EngineError: this model's KV cache cannot be shifted.
        """
        if not self._can_shift() or not self._llama.llama_memory_seq_rm(self._memory, seq_id, start, stop):
            raise EngineError(
                f"{self.model.path} cannot move the tokens in its KV cache to other positions",
                "clear the conversation, or use another context overflow strategy",
            )
        self._logits_after = None
        self._llama.llama_memory_seq_add(self._memory, seq_id, stop, -1, start - stop)

    def _can_shift(self) -> bool:
        """Return whether llama.cpp shifts keys correctly.

        Where a rope type scales keys, it scales shifted ones once more each time; and it crashes on quantized
        keys that it does not store rotated (llama-kv-cache.cpp, attn_rot).
        """
        is_unquantized = self.options.cache_k in UNQUANTIZED_CACHE_TYPES
        return (
            (is_unquantized or self.model.head_dim % ATTN_ROTATION_MULTIPLE == 0)
            and self.model.rope.rope_type in SHIFTABLE_ROPE_TYPES
            and bool(self._llama.llama_memory_can_shift(self._memory))
        )

    # ---- states of sequences ---------------------------------------------------------------------

    def export_state(self, seq_id: int) -> bytearray:
        """Return a sequence's KV state, laid out as kv_state_layout.py describes.

        Raises:
            EngineError: llama.cpp failed.
        """
        state = state_save_load.export_state(self.handle, seq_id)
        self.model.check_workers()
        return state

    def import_state(self, seq_id: int, state: bytearray) -> None:
        """Replace a sequence with a KV state.

        Raises:
            EngineError: llama.cpp rejects it; the sequence is empty then.
        """
        self._logits_after = None
        try:
            state_save_load.import_state(self.handle, seq_id, state)
        except EngineError:
            self.truncate(seq_id, 0)
            raise

    def save_state(self, seq_id: int, path: str, tokens: Sequence[int]) -> int:
        """Write a sequence's tokens and KV state to a file, streamed, and return the bytes written.

        Raises:
            EngineError: the file could not be written completely.
        """
        return state_save_load.save_state(self.handle, seq_id, path, tokens, check=self.model.check_workers)

    def load_state(self, seq_id: int, path: str, n_tokens: int) -> list[int]:
        """Replace a sequence with a file of save_state, and return its `n_tokens` tokens.

        The file must be known to be complete and of a context like this one: the library does not check it.

        Raises:
            EngineError: llama.cpp rejects it; the sequence is empty then.
        """
        self._logits_after = None
        try:
            return state_save_load.load_state(self.handle, seq_id, path, n_tokens)
        except EngineError:
            self.truncate(seq_id, 0)
            raise


def _context_length(model: Model, options: ContextOptions) -> int:
    if options.length is None:
        return model.context_length
    if options.length > model.context_length:
        longer = _LONGER_WINDOW.get(model.rope.rope_type, _LONGER_ROTARY_WINDOW)
        raise ContextOverflow(
            f"a context of {options.length:,} tokens is longer than the {model.context_length:,} "
            f"that {model.path} is made for",
            f"use {model.context_length:,} at most, or {longer}",
        )
    return options.length


def _flash_attention_switch(model: Model, options: ContextOptions) -> FlashAttentionSwitch | None:
    """Return the switch, or None with sliding layers, whose states lack tokens that truncation may need."""
    return None if model.sliding_window else options.flash_attention_switch


def _checked_cache_bytes(model: Model, options: ContextOptions, length: int) -> int:
    """Return the size of the KV cache, if it fits into free memory; on a GPU its own allocation is the check.

    Sliding layers are counted as if they kept all tokens; inference/memory_planning/ has their true size.
    """
    n_cells = kv_cells(replace(options, length=length))
    needed = model.kv_cache_bytes(n_cells, options.cache_k, options.cache_v)
    if not model.gpu_layers and not model.sliding_window:
        check_kv_cache_fits(length, needed)
    return needed
