"""Logits at chosen positions of a prompt, batch by batch; for perplexity, log-likelihood, KL divergence."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from pigguf.errors import UsageError
from pigguf.inference.engine.kv_sequence import KVSequence
from pigguf.inference.engine.llama_context import LlamaContext
from pigguf.progress import Progress, stage

T = TypeVar("T")


def prompt_logits(
    sequence: KVSequence,
    tokens: Sequence[int],
    indices: Iterable[int],
    reduce: Callable[[list[int], list[NDArray[np.float32]]], T],
    progress: Progress,
) -> Iterator[T]:
    """Append tokens, and yield what `reduce` returns for the logits at the wanted indices of each batch.

    Session.evaluate_batches has the arguments and what it raises.
    """
    tokens = sequence.begin_append(tokens)
    wanted = sorted(set(indices))
    if wanted and not 0 <= wanted[0] <= wanted[-1] < len(tokens):
        raise UsageError(f"logits were asked for at {wanted[0]}..{wanted[-1]} of {len(tokens)} tokens")
    owner = object()
    sequence.claim(owner)
    return _evaluate(sequence, owner, tokens, wanted, reduce, progress)


def copy_rows(indices: list[int], rows: list[NDArray[np.float32]]) -> list[tuple[int, NDArray[np.float32]]]:
    """Return pairs of an index and a copy of its logits."""
    return [(i, row.copy()) for i, row in zip(indices, rows, strict=True)]


def _evaluate(
    sequence: KVSequence,
    owner: object,
    tokens: list[int],
    wanted: list[int],
    reduce: Callable[[list[int], list[NDArray[np.float32]]], T],
    progress: Progress,
) -> Iterator[T]:
    with stage(progress, "prefill", len(tokens), "tokens"):
        for start, stop, indices in _split_into_batches(len(tokens), wanted, sequence.context):
            outputs = [i - start for i in indices]
            with sequence.context.lock:
                sequence.check_owner(owner)
                sequence.append_batch(tokens[start:stop], outputs)
                rows = [sequence.context.logits(i) for i in outputs]
                result = reduce(indices, rows) if indices else None
            progress.advance(stop - start)
            if result is not None:
                yield result


def _split_into_batches(
    n_tokens: int, wanted: list[int], context: LlamaContext
) -> Iterator[tuple[int, int, list[int]]]:
    """Yield ranges [start, stop) that cover `n_tokens` tokens, each with the wanted indices in it.

    A full batch with more of these than logits are kept for is split into as few equal parts as it takes: a
    remainder of a few tokens would cost nearly as much as a whole batch.
    """
    size, max_outputs = context.batch_size, context.max_outputs
    for begin in range(0, n_tokens, size):
        end = min(n_tokens, begin + size)
        inside = wanted[bisect_left(wanted, begin) : bisect_left(wanted, end)]
        n_parts = max(1, -(-len(inside) // max_outputs))
        outputs_per_part = -(-len(inside) // n_parts)
        start = begin
        for part in range(1, n_parts + 1):
            indices = inside[(part - 1) * outputs_per_part : part * outputs_per_part]
            stop = inside[part * outputs_per_part] if part < n_parts else end
            yield start, stop, indices
            start = stop
