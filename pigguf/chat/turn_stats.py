"""Statistics of an answer, and the text that they are taken from."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from pigguf.inference.detokenizer import stream_text
from pigguf.inference.engine import Model, StopReason


@dataclass(frozen=True)
class TurnStats:
    """Statistics of one question and its answer.

    Attributes:
        prompt_tokens: tokens of the whole prompt.
        cached_tokens: tokens of it that the KV cache held already.
        generated_tokens: tokens of the answer.
        prefill_seconds: time to compute the prompt.
        first_token_seconds: time from the question to the first token of the answer.
        decode_seconds: time from the first token to the last.
        stop_reason: "end", "length" (`max_tokens`), "window" (the context window is full) or "interrupted".
        notices: what was done to the conversation to make room; each was also logged ("pigguf") at once.
    """

    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    prefill_seconds: float
    first_token_seconds: float
    decode_seconds: float
    stop_reason: StopReason
    notices: tuple[str, ...] = ()

    @property
    def prefill_tokens_per_second(self) -> float:
        """Prompt tokens per second, of those that were not cached."""
        return (self.prompt_tokens - self.cached_tokens) / max(self.prefill_seconds, 1e-9)

    @property
    def decode_tokens_per_second(self) -> float:
        """Answer tokens per second, after the first."""
        return max(self.generated_tokens - 1, 0) / max(self.decode_seconds, 1e-9)


class AnswerText:
    """Collects an answer's text, and counts and times its tokens."""

    def __init__(self, model: Model) -> None:
        self.text = ""
        self.token_count = 0
        self.first_token_at = self.last_token_at = time.monotonic()
        self._model = model

    def stream(self, tokens: Iterable[int]) -> Iterator[str]:
        """Yield the tokens' text as it becomes complete characters, without leading white space."""
        for text in stream_text(self._model, self._counted(tokens)):
            # The template has already put the space with which a sentencepiece vocabulary begins.
            stripped = text if self.text else text.lstrip()
            if stripped:
                self.text += stripped
                yield stripped

    def _counted(self, tokens: Iterable[int]) -> Iterator[int]:
        for token in tokens:
            self.token_count += 1
            self.last_token_at = time.monotonic()
            if self.token_count == 1:
                self.first_token_at = self.last_token_at
            yield token
