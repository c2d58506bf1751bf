"""How the next token is drawn: a frozen recipe, and the C sampler chain made of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. The defaults are llama.cpp's.

    Attributes:
        temperature: 0 always takes the likeliest token.
        top_k: keep the k likeliest tokens; 0 keeps all.
        top_p: keep the likeliest tokens that together reach this probability; 1 keeps all.
        min_p: drop tokens less likely than this fraction of the likeliest; 0 drops none.
        repeat_penalty: divides the logits of tokens seen lately; 1 is off.
        repeat_last: how many tokens back the penalties look; 0 is none, -1 the whole window.
        frequency_penalty, presence_penalty: subtracted per occurrence, and once; 0 is off.
        seed: None draws a new one each time.

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
