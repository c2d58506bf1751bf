"""A tiny model with a long context, opened again as another process would, and documents for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from support.tiny_gguf import linear, text_tokens, write_tiny

from pigguf.inference.engine import (
    Context,
    ContextOptions,
    Model,
    RuntimeRope,
    SamplingParams,
    Session,
)
from pigguf.inference.prompt_cache import PromptCacheStore

GREEDY = SamplingParams(temperature=0)
WINDOW = 4096
DOCUMENT = text_tokens(1500)
QUESTION = text_tokens(21, seed=2)[1:]
ANOTHER = text_tokens(31, seed=3)[1:]


def write_model(path: Path) -> Path:
    return write_tiny(path, linear(4.0, WINDOW))


@contextmanager
def opened(
    path: Path, store: PromptCacheStore | None, rope: RuntimeRope | None = None, **options: object
) -> Iterator[Session]:
    """Open a model with a prompt cache, and yield the last sequence of a context."""
    context_options = ContextOptions(**{"length": WINDOW, "cache_k": "f32", "cache_v": "f32", **options})  # type: ignore[arg-type]
    with Model.open(path, rope=rope) as model, Context(model, context_options, prompt_cache=store) as context:
        sessions = [context.sequence() for _ in range(context_options.sequences)]
        yield sessions[-1]


def answer(session: Session, prompt: list[int], count: int = 24) -> tuple[int, list[int], np.ndarray]:
    """Return how many tokens of the prompt were cached, the greedy continuation, and the logits before it."""
    cached = session.set_prompt(prompt)
    tokens = session.generate(GREEDY, count)
    first = next(tokens)
    logits = session.context.logits(-1).copy()
    return cached, [first, *tokens], logits
