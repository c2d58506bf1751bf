"""Text embeddings: the last layer's hidden states of a text, pooled as the model's file states.

    embed(model, [tokens, tokens], ContextOptions(threads=4)) -> (2, embedding_length)

The states are those after the last norm, which transformers calls last_hidden_state. An embedding has length
1. Pooling is done here and not by the library, which pools what one batch holds, and a text may be as long as
the context window. The context is a temporary one, as long as the longest text.
Not supported: rerankers, whose pooling returns a score; several texts in one batch.
Upstream: llama.cpp src/llama-graph.cpp, build_pooling; common/common.cpp, common_embd_normalize.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pigguf.common.format_bytes import format_memory
from pigguf.common.system_memory import available_memory
from pigguf.errors import DoesNotFit, Interrupted, UsageError
from pigguf.gguf_io.metadata import get_value
from pigguf.inference.engine.context_options import ContextOptions
from pigguf.inference.engine.llama_context import LlamaContext
from pigguf.inference.engine.memory_estimate import MemoryEstimator
from pigguf.inference.engine.model import Model
from pigguf.llama_cpp_internals.limits import POOLING_TYPES

PoolingType = Literal["mean", "cls", "last"]
_MIN_CHECKED_LENGTH = 1024  # tokens; shorter texts take little memory


def pooling_type(model: Model) -> PoolingType | None:
    """Return how the model's file pools hidden states, or None if the model gives no embeddings."""
    return POOLING_TYPES.get(get_value(model.file.metadata, f"{model.file.architecture}.pooling_type", int))


def embed(
    model: Model,
    texts: Sequence[Sequence[int]],
    options: ContextOptions | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> NDArray[np.float32]:
    """Return the embeddings of texts given as token ids.

    Args:
        model: an embedding model.
        texts: token ids of each text, none of them empty or longer than the model's context window.
        options: threads and batch are used.
        should_stop: called often; True stops the work.

    Returns:
        (n_texts, embedding_length), float32, each row of length 1.

    Raises:
        UsageError: the model gives no embeddings.
        ContextOverflow, DoesNotFit: a text is too long for the model, or for the free memory.
        Interrupted: `should_stop` returned True.
    """
    pooling = pooling_type(model)
    if pooling is None:
        raise UsageError(
            f"{model.path} gives no embeddings: its {model.file.architecture}.pooling_type is not one of "
            f"{', '.join(POOLING_TYPES.values())}",
            "take a model that is made for embeddings",
        )
    own_options = replace(
        options or ContextOptions(),
        length=max(map(len, texts)),
        sequences=1,
        flash_attention_switch=None,
        embeddings=True,
    )
    _check_memory(model, own_options)
    context = LlamaContext(model, own_options)
    try:
        return np.stack([_embed_text(context, tokens, pooling, should_stop) for tokens in texts])
    finally:
        context.close()


def _check_memory(model: Model, options: ContextOptions) -> None:
    """Raise if the context takes more than the free memory; LlamaContext itself only checks the KV cache.

    Raises:
        DoesNotFit: it does.
    """
    available = available_memory()
    assert options.length is not None
    if available is None or options.length < _MIN_CHECKED_LENGTH:
        return
    with MemoryEstimator(model.file, model.gpu_layers) as estimator:
        host = estimator.estimate(options)[0]
    needed = host.cache + host.compute + host.output
    if needed > available:
        raise DoesNotFit(
            f"a text of {options.length:,} tokens takes {format_memory(needed)} of memory, and "
            f"{format_memory(available)} are free",
            "take a shorter text, or ask again when there is more",
        )


def _embed_text(
    context: LlamaContext, tokens: Sequence[int], pooling: PoolingType, should_stop: Callable[[], bool]
) -> NDArray[np.float32]:
    wanted = {"mean": range(len(tokens)), "cls": range(1), "last": range(len(tokens))[-1:]}[pooling]
    total = np.zeros(context.embedding_length, np.float64)
    with context.lock:
        context.truncate(0, 0)
        size = min(context.batch_size, context.max_outputs)
        for start in range(0, len(tokens), size):
            batch = tokens[start : start + size]
            outputs = [i for i in range(len(batch)) if start + i in wanted]
            if not context.decode(0, batch, start, outputs, should_stop):
                raise Interrupted("the embeddings were interrupted")
            for i in outputs:
                total += context.embedding(i)
    length = float(np.linalg.norm(total))  # a mean has the direction of the sum
    return (total / length if length else total).astype(np.float32)
