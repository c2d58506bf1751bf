"""How the next token is drawn: a frozen recipe, and the C sampler chain made of it.

Upstream: llama.cpp src/llama-sampler.cpp; the order of the samplers is that of common/sampling.cpp.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pigguf.engine import library
from pigguf.errors import UsageError

_RANDOM_SEED = 0xFFFFFFFF  # LLAMA_DEFAULT_SEED: the library draws one itself


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. The defaults are llama.cpp's.

    Attributes:
        temperature: 0 always takes the likeliest token.
        top_k: keep the k likeliest tokens; 0 keeps all.
        top_p: keep the likeliest tokens that together reach this probability; 1 keeps all.
        min_p: drop tokens less likely than this fraction of the likeliest; 0 drops none.
        repeat_penalty: divides the positive logits of tokens seen lately, multiplies the negative; 1 is off.
        repeat_last: how many tokens back the penalties look; 0 turns them off.
        frequency_penalty: subtracted from a logit for each time the token was seen lately; 0 is off.
        presence_penalty: subtracted once; 0 is off.
        seed: None draws a new one for every generation.

    Raises:
        UsageError: a value outside its range.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    repeat_last: int = 64
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    seed: int | None = None

    def __post_init__(self) -> None:
        self._demand("temperature", 0 <= self.temperature < math.inf, "0 or more")
        self._demand("top_k", 0 <= self.top_k < 2**31, "0 (all) or more")
        self._demand("top_p", 0 < self.top_p <= 1, "above 0, and 1 at most")
        self._demand("min_p", 0 <= self.min_p <= 1, "between 0 and 1")
        self._demand("repeat_penalty", 0 < self.repeat_penalty < math.inf, "above 0; 1 is off")
        self._demand("repeat_last", 0 <= self.repeat_last < 2**31, "0 (off) or more")
        self._demand("frequency_penalty", math.isfinite(self.frequency_penalty), "a number")
        self._demand("presence_penalty", math.isfinite(self.presence_penalty), "a number")
        self._demand("seed", self.seed is None or 0 <= self.seed < _RANDOM_SEED, f"below {_RANDOM_SEED}")

    def _demand(self, name: str, right: bool, rule: str) -> None:
        if not right:
            raise UsageError(f"{name} is {getattr(self, name)}", f"{name} must be {rule}")


@contextmanager
def sampler_chain(sampling: Sampling, vocab_size: int, recent: Sequence[int]) -> Iterator[Any]:
    """A C sampler chain that has seen the tokens `recent`, freed at the end of the block."""
    llama = library.load()
    chain = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
    try:
        for sampler in _samplers(llama, sampling, vocab_size):
            llama.llama_sampler_chain_add(chain, sampler)
        for token in recent[-sampling.repeat_last :] if sampling.repeat_last else ():
            llama.llama_sampler_accept(chain, token)
        yield chain
    finally:
        llama.llama_sampler_free(chain)


def _samplers(llama: Any, sampling: Sampling, vocab_size: int) -> Iterator[Any]:
    yield llama.llama_sampler_init_penalties(
        vocab_size,
        sampling.repeat_last,
        sampling.repeat_penalty,
        sampling.frequency_penalty,
        sampling.presence_penalty,
    )
    if sampling.temperature == 0:
        yield llama.llama_sampler_init_greedy()
        return
    yield llama.llama_sampler_init_top_k(sampling.top_k)
    yield llama.llama_sampler_init_top_p(sampling.top_p, 1)
    yield llama.llama_sampler_init_min_p(sampling.min_p, 1)
    yield llama.llama_sampler_init_temp(sampling.temperature)
    yield llama.llama_sampler_init_dist(
        secrets.randbelow(_RANDOM_SEED) if sampling.seed is None else sampling.seed
    )
