"""A tiny model with a long window, opened anew as another process would, and documents for it."""

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
    """The last sequence of a context with this store."""
    chosen = ContextOptions(**{"length": WINDOW, "cache_k": "f32", "cache_v": "f32", **options})  # type: ignore[arg-type]
    with Model.open(path, rope=rope) as model, Context(model, chosen, prompt_cache=store) as context:
        sessions = [context.sequence() for _ in range(chosen.sequences)]
        yield sessions[-1]


def answer(session: Session, prompt: list[int], count: int = 24) -> tuple[int, list[int], np.ndarray]:
    """How many tokens of the prompt were there, what follows greedily, and the logits after the prompt."""
    there = session.set_prompt(prompt)
    drawing = session.generate(GREEDY, count)
    drawn = [next(drawing)]
    logits = session.context.logits(-1).copy()
    return there, drawn + list(drawing), logits
