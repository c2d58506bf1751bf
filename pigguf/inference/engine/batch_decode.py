"""Decode of one batch that mixes tokens of several sessions, for continuous batching (serve/scheduler.py)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pigguf.inference.engine.batch import BatchToken
from pigguf.inference.engine.kv_sequence import KVSequence
from pigguf.inference.engine.llama_context import LlamaContext


@dataclass(frozen=True)
class BatchEntry:
    """Tokens to append to a session in a batch.

    Attributes:
        session: the session.
        tokens: the token ids.
        wants_logits: a token is to be sampled after the last of them.
    """

    session: KVSequence
    tokens: Sequence[int]
    wants_logits: bool = True


def decode_batch(context: LlamaContext, entries: Sequence[BatchEntry]) -> list[int]:
    """Compute tokens of several sessions of a context in one batch, and append them to each.

    Returns:
        For each entry the index of its last token in the batch, for Sampler.sample and LlamaContext.logits;
        valid until the next decode.

    Raises:
        ContextOverflow, UsageError: tokens do not fit or do not exist; nothing was computed.
        EngineError: llama.cpp failed; each session holds what it held before.
    """
    with context.lock:
        batch: list[BatchToken] = []
        last_indices: list[int] = []
        for entry in entries:
            batch += entry.session.batch_tokens(entry.tokens, wants_logits=entry.wants_logits)
            last_indices.append(len(batch) - 1)
        try:
            context.decode_batch(batch)
            for entry in entries:
                entry.session.record(entry.tokens)
        except BaseException:
            for entry in entries:
                entry.session.truncate_cache(entry.session.n_past)
            raise
    return last_indices
