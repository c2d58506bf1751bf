"""Compare the logits of a GGUF in the engine with those of a checkpoint in transformers, by position."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, DynamicCache

from pigguf.inference.engine import Context, ContextOptions, Model

CHUNK = 512


@dataclass(frozen=True)
class Agreement:
    """Mean KL divergence (transformers || engine, in nats) and how often the top token is the same."""

    mean_kl: float
    same_top: float


def agreement(gguf: Path, checkpoint: Path, tokens: Sequence[int]) -> Agreement:
    """Compare the next-token distributions at every position, both in float32 with a float32 cache."""
    divergences, same = [], 0
    pairs = zip(engine_logits(gguf, tokens), transformers_logits(checkpoint, tokens), strict=True)
    for ours, theirs in pairs:
        p, q = log_softmax(theirs), log_softmax(ours)
        divergences.append(float((np.exp(p) * (p - q)).sum()))
        same += int(p.argmax() == q.argmax())
    return Agreement(float(np.mean(divergences)), same / len(tokens))


def engine_logits(gguf: Path, tokens: Sequence[int]) -> Iterator[NDArray[np.float32]]:
    options = ContextOptions(length=len(tokens), cache_k="f32", cache_v="f32", flash_attention=False)
    with Model.open(gguf) as model, Context(model, options) as context, context.sequence() as session:
        for _, logits in session.evaluate(tokens, range(len(tokens))):
            yield logits


def transformers_logits(checkpoint: Path, tokens: Sequence[int]) -> Iterator[NDArray[np.float32]]:
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    cache = DynamicCache(config=model.config)
    for start in range(0, len(tokens), CHUNK):
        yield from continued_logits(model, tokens[start : start + CHUNK], cache).numpy()


@torch.no_grad()
def continued_logits(model: Any, tokens: Sequence[int], cache: DynamicCache) -> torch.Tensor:
    """Return transformers' logits, (n_tokens, vocab_size), of tokens after those in a cache, and append them.

    The cache's keyword is `cache` since transformers 5.24, and was past_key_values.
    """
    keyword = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    logits: torch.Tensor = model(torch.tensor([list(tokens)]), use_cache=True, **{keyword: cache}).logits[0]
    return logits


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max()
    return shifted - np.log(np.exp(shifted).sum())
