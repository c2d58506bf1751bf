"""Events of a request in the scheduler: queue position, prefill progress, text, and its end.

A request's events come in this order: QueuePosition and PrefillProgress (only if `report_progress` was set),
TextChunk for each new piece of text, and last either Finished or RequestFailed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from pigguf.errors import PigError

FinishReason = Literal["end", "stop", "length", "window"]


class SampledToken(NamedTuple):
    """A generated token with log-probabilities of the model itself, before any sampler changes them.

    Attributes:
        token: the token's id.
        logprob: its natural log-probability.
        top_logprobs: the most likely tokens as (token id, log-probability), the most likely first.
    """

    token: int
    logprob: float
    top_logprobs: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class QueuePosition:
    """How many waiting requests get a slot before this one, if no other client submits meanwhile."""

    requests_ahead: int


@dataclass(frozen=True)
class PrefillProgress:
    """How much of a prompt is computed. The first event counts the cached tokens, the last one all tokens.

    Attributes:
        prompt_tokens: tokens of the prompt.
        cached_tokens: tokens of it that were in a KV cache when the request got its slot.
        processed_tokens: tokens of it that are in the KV cache now.
        seconds: time since the request got its slot.
    """

    prompt_tokens: int
    cached_tokens: int
    processed_tokens: int
    seconds: float


@dataclass(frozen=True)
class TextChunk:
    """New text of an answer, with its tokens if log-probabilities were requested."""

    text: str
    tokens: tuple[SampledToken, ...] = ()


@dataclass(frozen=True)
class Finished:
    """The regular end of an answer.

    Attributes:
        reason: "end" (end-of-generation token), "stop" (a stop string), "length" (`max_tokens`) or "window"
            (the context window is full).
        cached_tokens: tokens of the prompt that were in a KV cache already.
        generated_tokens: tokens of the answer, the end-of-generation token included.
    """

    reason: FinishReason
    cached_tokens: int
    generated_tokens: int


@dataclass(frozen=True)
class RequestFailed:
    """The end of a request by an error."""

    error: PigError


RequestEvent = QueuePosition | PrefillProgress | TextChunk | Finished | RequestFailed
