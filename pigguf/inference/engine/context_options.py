"""ContextOptions: how a context is made, checked; and llama_context_params from it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from pigguf.common.parallel import usable_cores
from pigguf.errors import DoesNotFit, UsageError
from pigguf.gguf_io import TensorType
from pigguf.inference.engine import library
from pigguf.llama_cpp_internals.limits import (
    FLASH_ATTN_TYPES,
    KV_CELL_PADDING,
    MAX_KV_CELLS,
    MAX_SEQUENCES,
    MAX_THREADS,
    POOLING_NONE,
)

CacheType = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"]
UNQUANTIZED_CACHE_TYPES = ("f32", "f16", "bf16")

MAX_LOGITS_BYTES = 64 << 20  # logits of one batch; llama.cpp reserves twice as much for them


@dataclass(frozen=True)
class FlashAttentionSwitch:
    """At which depths a context leaves flash attention and returns to it, because the other is faster there.

    Attributes:
        decode: tokens in the cache from which single tokens are computed without flash attention.
        prefill: tokens in the cache from which prompts are computed without it too; None is never.
        prompt: the shortest prompt in tokens for which the KV cache is converted; shorter ones are computed
            with whatever layout it has.
    """

    decode: int
    prefill: int | None = None
    prompt: int = 512

    def wants_flash_attention(self, n_past: int, n_tokens: int) -> bool | None:
        """Return whether `n_tokens` tokens after `n_past` are faster with flash attention; None is either."""
        if n_tokens == 1:
            return None if n_past < self.decode else False
        if n_tokens < self.prompt:
            return None
        return self.prefill is None or n_past < self.prefill


@dataclass(frozen=True)
class ContextOptions:
    """How a context is made.

    Attributes:
        length: context window of each sequence in tokens; None is the model's own.
        threads: CPU threads for decode; None is the number of cores.
        prefill_threads: CPU threads for prefill; None is as many as for decode.
        batch: most tokens of one decode call; progress is reported after each.
        cache_k, cache_v: types of the KV cache.
        flash_attention: None lets llama.cpp choose. A quantized V cache needs it.
        flash_attention_switch: prefill with flash attention and decode without it, where that is faster; None
            never changes.
        sequences: most sessions that are open at once.
        embeddings: keep the hidden states of tokens besides their logits.

    Raises:
        UsageError: a value is out of range, or two contradict each other.
    """

    length: int | None = None
    threads: int | None = None
    prefill_threads: int | None = None
    batch: int = 512
    cache_k: CacheType = "f16"
    cache_v: CacheType = "f16"
    flash_attention: bool | None = None
    flash_attention_switch: FlashAttentionSwitch | None = None
    sequences: int = 1
    embeddings: bool = False

    def __post_init__(self) -> None:
        for name, maximum in (
            ("length", 2**31 - 1),
            ("threads", MAX_THREADS),
            ("prefill_threads", MAX_THREADS),
            ("batch", 2**16),
            ("sequences", MAX_SEQUENCES),
        ):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= maximum:
                raise UsageError(f"{name} is {value}", f"{name} must be between 1 and {maximum}")
        for name in ("cache_k", "cache_v"):
            if getattr(self, name) not in get_args(CacheType):
                raise UsageError(
                    f"the KV cache type {getattr(self, name)!r} is unknown",
                    f"one of {', '.join(get_args(CacheType))}",
                )
        if self.cache_v not in UNQUANTIZED_CACHE_TYPES and self.flash_attention is False:
            raise UsageError(
                f"a V cache of type {self.cache_v} needs flash attention, which is off",
                "leave flash attention on, or take f16 for the V cache",
            )
        if self.flash_attention_switch is not None and (
            self.flash_attention is not None or self.cache_v not in UNQUANTIZED_CACHE_TYPES
        ):
            raise UsageError(
                "a flash attention switch needs flash attention to be off at times, which another option "
                "or a quantized V cache rules out",
                "leave `flash_attention` unset, and the V cache unquantized",
            )


def context_parameters(options: ContextOptions, vocab_size: int) -> Any:
    """Return the llama_context_params of options that have a length.

    Raises:
        DoesNotFit: the KV cache has more cells than llama.cpp can count.
    """
    threads = options.threads or default_threads()
    parameters = library.load().llama_context_default_params()  # every rope value "from the model"
    parameters.n_ctx = kv_cells(options)
    parameters.n_seq_max = options.sequences
    parameters.n_batch = parameters.n_ubatch = options.batch
    parameters.n_outputs_max = max_outputs(options, vocab_size)
    parameters.n_threads = threads
    parameters.n_threads_batch = options.prefill_threads or threads
    parameters.type_k = getattr(TensorType, options.cache_k.upper())
    parameters.type_v = getattr(TensorType, options.cache_v.upper())
    parameters.flash_attn_type = FLASH_ATTN_TYPES[options.flash_attention]
    if options.embeddings:
        parameters.embeddings, parameters.pooling_type = True, POOLING_NONE
    return parameters


def kv_cells(options: ContextOptions) -> int:
    """Return the number of cells of the KV cache: tokens of all sequences together, padded.

    Raises:
        DoesNotFit: there are more than llama.cpp can count.
    """
    assert options.length is not None
    count = -(-options.length // KV_CELL_PADDING) * KV_CELL_PADDING * options.sequences
    if count > MAX_KV_CELLS:
        raise DoesNotFit(
            f"{options.sequences} sequences of {options.length:,} tokens are more than llama.cpp can count"
        )
    return count


def max_outputs(options: ContextOptions, vocab_size: int) -> int:
    """Return how many tokens of a batch have their logits kept."""
    return max(options.sequences, min(options.batch, MAX_LOGITS_BYTES // (4 * vocab_size)))


def default_threads() -> int:
    """Return the number of physical cores this process may run on.

    Two hardware threads of one core count once, because they share its arithmetic units.
    """
    if not hasattr(os, "sched_getaffinity"):
        return usable_cores()
    try:
        return len({_thread_siblings(cpu) for cpu in os.sched_getaffinity(0)})
    except OSError:
        return usable_cores()


def _thread_siblings(cpu: int) -> str:
    return Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text()
