"""Response bodies of OpenAI's API: whole answers, the chunks of a stream, embeddings, usage.

ChatResponseWriter writes chat completions, CompletionResponseWriter completions.
Source: OpenAI's API reference; `prompt_progress` is llama.cpp's server's (tools/server/server-task.cpp).
"""

from __future__ import annotations

import secrets
import string
import time
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pigguf.chat.tool_calls import TextDelta, ToolCallDelta, ToolCallParser
from pigguf.serve.events import Finished, PrefillProgress, QueuePosition, SampledToken

# Mistral's chat templates accept only tool call ids of this form.
_ID_CHARACTERS, _ID_LENGTH = string.ascii_letters + string.digits, 9
_FINISH_REASONS = {"end": "stop", "stop": "stop", "length": "length", "window": "length"}


@dataclass
class GeneratedChoice:
    """One answer of a response, as far as it is generated.

    Attributes:
        finished: its last event; None while it is being generated.
    """

    text: str = ""
    tokens: list[SampledToken] = field(default_factory=list)
    finished: Finished | None = None


def usage_counts(
    prompt_tokens: int, choices: Sequence[GeneratedChoice], choices_per_prompt: int
) -> dict[str, Any]:
    """Return OpenAI's `usage`: each prompt counts once, all choices' tokens together.

    Args:
        prompt_tokens: tokens of all prompts.
        choices: the choices of the first prompt, then of the second, and on.
    """
    finished = [choice.finished for choice in choices if choice.finished is not None]
    completion_tokens = sum(one.generated_tokens for one in finished)
    cached_tokens = sum(
        min(one.cached_tokens for one in finished[start : start + choices_per_prompt])
        for start in range(0, len(finished), choices_per_prompt)
    )
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens},
    }


def embeddings_body(
    model: str, vectors: NDArray[np.float32], tokens: int, *, is_base64: bool
) -> dict[str, Any]:
    """Return the body of /v1/embeddings.

    Args:
        model: the model's name.
        vectors: (n_inputs, n_embd).
        tokens: tokens of all inputs.
        is_base64: whether to encode vectors as base64 of little-endian float32.
    """
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": b64encode(vector.astype("<f4").tobytes()).decode() if is_base64 else vector.tolist(),
        }
        for index, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": model, "usage": usage}


@dataclass(frozen=True)
class _ResponseWriter:
    """What the bodies of one response have in common.

    Attributes:
        model: the model's name.
        token_bytes: returns the bytes of a token id.
        with_logprobs: whether tokens are reported.
        new_parser: makes a parser for tool calls; None if the request has no tools.
        key: the unique part of the response's id.
        created: Unix time.
    """

    model: str
    token_bytes: Callable[[int], bytes]
    with_logprobs: bool
    new_parser: Callable[[], ToolCallParser] | None = None
    key: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))

    def _body(self, kind: str, id_prefix: str, choices: list[Any], **others: Any) -> dict[str, Any]:
        return {
            "id": f"{id_prefix}-{self.key}",
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
            **others,
        }

    def _token_text(self, token: int) -> str:
        return self.token_bytes(token).decode("utf-8", "replace")


@dataclass(frozen=True)
class ChatResponseWriter(_ResponseWriter):
    """Writes responses of /v1/chat/completions.

    Attributes:
        stream_parsers: for a stream, the tool call parser of each choice.
    """

    stream_parsers: dict[int, ToolCallParser] = field(default_factory=dict)

    def whole(self, choices: Sequence[GeneratedChoice], usage: Mapping[str, Any]) -> dict[str, Any]:
        """Return the body of a response that is not a stream."""
        written = [self._choice(index, choice) for index, choice in enumerate(choices)]
        return self._body("chat.completion", "chatcmpl", written, usage=usage)

    def _choice(self, index: int, choice: GeneratedChoice) -> dict[str, Any]:
        deltas: list[TextDelta | ToolCallDelta] = [TextDelta(choice.text)]
        if self.new_parser is not None:
            parser = self.new_parser()
            deltas = [*parser.feed(choice.text), *parser.finish()]
        merged = _merge_deltas(deltas)
        calls = [{key: call[key] for key in call if key != "index"} for call in merged.get("tool_calls", ())]
        content = merged.get("content", None if calls else "")
        message = {"role": "assistant", "content": content, "refusal": None}
        return {
            "index": index,
            "message": {**message, "tool_calls": calls} if calls else message,
            "logprobs": self._logprobs(choice.tokens),
            "finish_reason": _finish_reason(choice, bool(calls)),
        }

    def first_chunk(self, index: int) -> dict[str, Any] | None:
        """Return the chunk that opens a choice: its role."""
        return self._chunk(index, {"role": "assistant", "content": ""}, (), None)

    def progress_chunk(self, index: int, progress: QueuePosition | PrefillProgress) -> dict[str, Any]:
        """Return a chunk that reports the queue position or prefill progress of a choice."""
        empty = self._chunk(index, {"role": "assistant", "content": None}, (), None)
        return {**empty, **_progress_fields(progress)}

    def text_chunk(self, index: int, text: str, tokens: Sequence[SampledToken]) -> dict[str, Any] | None:
        """Return a chunk of new text; None if the text is held back because a tool call may begin in it."""
        if self.new_parser is None:
            return self._chunk(index, {"content": text}, tokens, None)
        if index not in self.stream_parsers:
            self.stream_parsers[index] = self.new_parser()
        delta = _merge_deltas(self.stream_parsers[index].feed(text))
        return self._chunk(index, delta, tokens, None) if delta or tokens else None

    def last_chunk(self, index: int, choice: GeneratedChoice) -> dict[str, Any]:
        """Return the chunk that ends a choice: text that was held back, and the finish reason."""
        parser = self.stream_parsers.get(index)
        delta = _merge_deltas(parser.finish()) if parser else {}
        has_calls = parser is not None and parser.call_count > 0
        return self._chunk(index, delta, (), _finish_reason(choice, has_calls))

    def usage_chunk(self, usage: Mapping[str, Any]) -> dict[str, Any]:
        """Return the chunk after all choices: token counts."""
        return self._body("chat.completion.chunk", "chatcmpl", [], usage=usage)

    def _chunk(
        self, index: int, delta: dict[str, Any], tokens: Sequence[SampledToken], finish_reason: str | None
    ) -> dict[str, Any]:
        logprobs = self._logprobs(tokens) if tokens else None
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        return self._body("chat.completion.chunk", "chatcmpl", [choice])

    def _logprobs(self, tokens: Sequence[SampledToken]) -> dict[str, Any] | None:
        if not self.with_logprobs:
            return None
        content = [
            {
                **self._token_logprob(sampled.token, sampled.logprob),
                "top_logprobs": [self._token_logprob(*other) for other in sampled.top_logprobs],
            }
            for sampled in tokens
        ]
        return {"content": content, "refusal": None}

    def _token_logprob(self, token: int, logprob: float) -> dict[str, Any]:
        return {
            "token": self._token_text(token),
            "logprob": logprob,
            "bytes": list(self.token_bytes(token)),
        }


@dataclass(frozen=True)
class CompletionResponseWriter(_ResponseWriter):
    """Writes responses of /v1/completions.

    Attributes:
        stream_offsets: for a stream, the characters of each choice whose tokens were reported.
    """

    stream_offsets: Counter[int] = field(default_factory=Counter)

    def whole(self, choices: Sequence[GeneratedChoice], usage: Mapping[str, Any]) -> dict[str, Any]:
        """Return the body of a response that is not a stream."""
        written = [
            self._choice(index, choice.text, choice.tokens, _finish_reason(choice))
            for index, choice in enumerate(choices)
        ]
        return self._body("text_completion", "cmpl", written, usage=usage)

    def first_chunk(self, index: int) -> dict[str, Any] | None:
        """Return None: a completion has no opening chunk."""
        return None

    def progress_chunk(self, index: int, progress: QueuePosition | PrefillProgress) -> dict[str, Any]:
        """Return a chunk that reports the queue position or prefill progress of a choice."""
        return {**self.text_chunk(index, "", ()), **_progress_fields(progress)}

    def text_chunk(self, index: int, text: str, tokens: Sequence[SampledToken]) -> dict[str, Any]:
        """Return a chunk of new text."""
        choice = self._choice(index, text, tokens, None, self.stream_offsets[index])
        self.stream_offsets[index] += sum(len(self._token_text(sampled.token)) for sampled in tokens)
        return self._body("text_completion", "cmpl", [choice])

    def last_chunk(self, index: int, choice: GeneratedChoice) -> dict[str, Any]:
        """Return the chunk that ends a choice: the finish reason."""
        return self._body("text_completion", "cmpl", [self._choice(index, "", (), _finish_reason(choice))])

    def usage_chunk(self, usage: Mapping[str, Any]) -> dict[str, Any]:
        """Return the chunk after all choices: token counts."""
        return self._body("text_completion", "cmpl", [], usage=usage)

    def _choice(
        self,
        index: int,
        text: str,
        tokens: Sequence[SampledToken],
        finish_reason: str | None,
        first_offset: int = 0,
    ) -> dict[str, Any]:
        logprobs = self._logprobs(tokens, first_offset) if self.with_logprobs else None
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}

    def _logprobs(self, tokens: Sequence[SampledToken], first_offset: int) -> dict[str, Any]:
        """Return the tokens' log-probabilities; the first one is `first_offset` characters into the text."""
        texts = [self._token_text(sampled.token) for sampled in tokens]
        return {
            "tokens": texts,
            "token_logprobs": [sampled.logprob for sampled in tokens],
            "top_logprobs": [
                {self._token_text(token): logprob for token, logprob in sampled.top_logprobs}
                for sampled in tokens
            ],
            "text_offset": [*accumulate(map(len, texts), initial=first_offset)][: len(texts)],
        }


ResponseWriter = ChatResponseWriter | CompletionResponseWriter


def _finish_reason(choice: GeneratedChoice, has_calls: bool = False) -> str | None:
    if choice.finished is None:
        return None
    reason = _FINISH_REASONS[choice.finished.reason]
    return "tool_calls" if has_calls and reason == "stop" else reason


def _merge_deltas(deltas: Iterable[TextDelta | ToolCallDelta]) -> dict[str, Any]:
    """Return deltas as one OpenAI delta: the joined text, and the tool calls with their indices."""
    content, calls = "", dict[int, dict[str, Any]]()
    for delta in deltas:
        if isinstance(delta, TextDelta):
            content += delta.text
            continue
        call = calls.setdefault(delta.index, {"index": delta.index, "function": {"arguments": ""}})
        if delta.name is not None:
            call_id = "".join(secrets.choice(_ID_CHARACTERS) for _ in range(_ID_LENGTH))
            call |= {"id": call_id, "type": "function", "function": {"name": delta.name, "arguments": ""}}
        call["function"]["arguments"] += delta.arguments
    return {
        **({"content": content} if content else {}),
        **({"tool_calls": [*calls.values()]} if calls else {}),
    }


def _progress_fields(progress: QueuePosition | PrefillProgress) -> dict[str, Any]:
    """Return the chunk fields of progress: llama.cpp's server's for prefill, our own for the queue."""
    if isinstance(progress, QueuePosition):
        return {"queue_position": progress.requests_ahead}
    counts = {
        "total": progress.prompt_tokens,
        "cache": progress.cached_tokens,
        "processed": progress.processed_tokens,
    }
    return {"prompt_progress": {**counts, "time_ms": round(progress.seconds * 1000)}}
