"""Embeddings: a vector for a text, pooled over the last layer's states as the model's file says.

    embed(model, [tokens, tokens], ContextOptions(threads=4)) -> (2, width)

Contract: the states are those after the last norm, which transformers calls last_hidden_state; a vector has
length 1. They are pooled here and not in the library, which pools what one batch holds: a text may be as long
as the window. The context is an own one, as long as the longest text, and freed at the end.
Left out: rerankers, whose pooling gives a score; several texts in one batch.
Upstream: llama.cpp src/llama-graph.cpp, build_pooling; common/common.cpp, common_embd_normalize.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from pigguf.common.system_memory import available_memory, in_words
from pigguf.errors import DoesNotFit, Interrupted, UsageError
from pigguf.gguf_io.metadata import get
from pigguf.inference.engine.context import Context, ContextOptions
from pigguf.inference.engine.memory_estimate import DryRun
from pigguf.inference.engine.model import Model

Pooling = Literal["mean", "cls", "last"]
_PLANNED_FROM = 1024  # tokens; a shorter text takes little
_POOLINGS: Final[dict[int | None, Pooling]] = {1: "mean", 2: "cls", 3: "last"}  # llama.h, llama_pooling_type


def pooling_of(model: Model) -> Pooling | None:
    """How the model's file pools states, None where it does not say, and the model gives no embeddings."""
    return _POOLINGS.get(get(model.file.metadata, f"{model.file.architecture}.pooling_type", int))


def embed(
    model: Model,
    texts: Sequence[Sequence[int]],
    options: ContextOptions | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> NDArray[np.float32]:
    """The vectors of texts that are tokens: (len(texts), width).

    Args:
        texts: none of them empty, or longer than the model's window.
        options: of which threads and the batch are taken.
        stop: asked often; True gives it up.

    Raises:
        UsageError: the model gives none.
        ContextOverflow, DoesNotFit: a text is too long for the model, or the memory.
        Interrupted: it was given up.
    """
    pooling = pooling_of(model)
    if pooling is None:
        raise UsageError(
            f"{model.path} gives no embeddings: it has no {model.file.architecture}.pooling_type of "
            f"{', '.join(_POOLINGS.values())}",
            "take a model that is made for embeddings",
        )
    own = replace(
        options or ContextOptions(),
        length=max(map(len, texts)),
        sequences=1,
        handoff=None,
        embeddings=True,
    )
    _refuse_too_large(model, own)
    with Context(model, own) as context:
        return np.stack([_embedded(context, tokens, pooling, stop) for tokens in texts])


def _refuse_too_large(model: Model, options: ContextOptions) -> None:
    """Memory is taken here that nobody has planned with; Context itself looks at the cache alone.

    Raises:
        DoesNotFit: there is too little for the context of a long text.
    """
    available = available_memory()
    assert options.length is not None
    if available is None or options.length < _PLANNED_FROM:
        return
    with DryRun(model.file, model.gpu_layers) as run:
        host = run.sizes(options)[0]
    needed = host.cache + host.compute + host.output
    if needed > available:
        raise DoesNotFit(
            f"a text of {options.length:,} tokens takes {in_words(needed)} of memory, and "
            f"{in_words(available)} are free",
            "take a shorter text, or ask again when there is more",
        )


def _embedded(
    context: Context, tokens: Sequence[int], pooling: Pooling, stop: Callable[[], bool]
) -> NDArray[np.float32]:
    wanted = {"mean": range(len(tokens)), "cls": range(1), "last": range(len(tokens))[-1:]}[pooling]
    total = np.zeros(context.embedding_width, np.float64)
    with context.turn:
        context.cut(0, 0)
        size = min(context.batch_size, context.most_outputs)
        for start in range(0, len(tokens), size):
            part = tokens[start : start + size]
            outputs = [place for place in range(len(part)) if start + place in wanted]
            if not context.decode(0, part, start, outputs, stop):
                raise Interrupted("the embeddings were given up")
            for place in outputs:
                total += context.embedding(place)
    length = float(np.linalg.norm(total))  # the mean's direction is the sum's
    return (total / length if length else total).astype(np.float32)
