"""Requests and answers as OpenAI's clients write and read them.

`chat_request` and `completion_request` read a body into an Asked; `ChatForm` and `TextForm` write the answer,
whole or in chunks. What is refused here: a parameter that is unknown and might change the answer, and values
of the wrong sort; ranges are Sampling's to refuse.
Left out: tokens (service.py), tools, images and sound, which are refused.
Source: OpenAI's API reference, /v1/chat/completions and /v1/completions.
"""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pigguf.chat_format import Message
from pigguf.engine import Sampling
from pigguf.grammar import json_grammar
from pigguf.serve.errors import Refusal
from pigguf.serve.scheduler import Done, Drawn, Reading, Waiting

MOST_CHOICES = 16
MOST_STOPS = 16
_MOST_LIKELIEST = 20
_DEFAULT_COMPLETION = 16  # tokens, OpenAI's
_SEEDS = 2**32 - 1  # of the engine
_MOST = 3e38  # a float's in C
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_NAME = re.compile("[a-zA-Z0-9_-]{1,64}")

# Parameters that say nothing about the answer, whatever they are.
_HARMLESS = frozenset(
    (
        *("metadata", "parallel_tool_calls", "prompt_cache_key", "prompt_cache_retention"),
        *("service_tier", "store"),
    )
)
# Parameters that are known and not supported -> the values with which they say nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "echo": (False,),
    "functions": ([],),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
}
# Sampling's fields that are numbers; OpenAI's, and what llama.cpp's server takes besides.
_SAMPLING = ("temperature", "top_p", "frequency_penalty", "presence_penalty", "min_p", "repeat_penalty")
_REASONS = {"end": "stop", "stop": "stop", "length": "length", "window": "length"}


@dataclass(frozen=True)
class Asked:
    """A request, read.

    Attributes:
        messages: a conversation, or None for a completion.
        prompts: of a completion: texts or tokens.
        model: the name that was asked for, or None.
        sampling: its seed is of the first choice; the next have the next ones.
        choices: answers to each prompt.
        logprobs: how many of the likeliest tokens are told with each; None tells nothing.
        stream, usage: whether it comes in chunks, and whether token counts come with them.
        progress: whether chunks tell how much of the prompt is read, as llama.cpp's server's do.
        user: whom it is for, in the client's words.
    """

    messages: tuple[Message, ...] | None
    prompts: tuple[str | tuple[int, ...], ...]
    model: str | None
    sampling: Sampling
    max_tokens: int | None
    stop: tuple[str, ...]
    choices: int
    logprobs: int | None
    stream: bool
    usage: bool
    progress: bool
    user: str


# ---- reading -------------------------------------------------------------------------------------


def parse(data: bytes) -> Any:
    """The JSON of a body.

    Raises:
        Refusal: it is none.
    """
    try:
        return json.loads(data, parse_constant=_no_number)
    except RecursionError:
        raise Refusal(400, "the JSON is nested too deeply") from None
    except ValueError as error:
        raise Refusal(400, f"the body is not JSON: {error}") from None


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no number in JSON")


def chat_request(body: Any) -> Asked:
    """A body of /v1/chat/completions.

    Raises:
        Refusal: what it says is not understood, or not supported.
        UsageError: a value out of its range, or a schema that no grammar can hold to.
    """
    fields = Fields(body)
    messages = _messages(fields.take("messages"))
    most = [fields.integer(name, 1) for name in ("max_completion_tokens", "max_tokens")]
    told = fields.flag("logprobs")
    likeliest = fields.integer("top_logprobs", 0, _MOST_LIKELIEST)
    if likeliest is not None and not told:
        raise Refusal(400, "top_logprobs is given without logprobs", param="top_logprobs")
    grammar = _grammar(fields.take("response_format"))
    return _asked(
        fields,
        messages=messages,
        prompts=(),
        max_tokens=most[0] if most[0] is not None else most[1],
        logprobs=(likeliest or 0) if told else None,
        grammar=grammar,
    )


def completion_request(body: Any) -> Asked:
    """A body of /v1/completions.

    Raises:
        As chat_request does.
    """
    fields = Fields(body)
    prompts = _prompts(fields.take("prompt"))
    most = fields.integer("max_tokens", 1)
    return _asked(
        fields,
        messages=None,
        prompts=prompts,
        max_tokens=_DEFAULT_COMPLETION if most is None else most,
        logprobs=fields.integer("logprobs", 0, _MOST_LIKELIEST),
        grammar=_grammar(fields.take("response_format")),
    )


def _asked(fields: Fields, *, grammar: str | None, **rest: Any) -> Asked:
    """What both sorts of requests have; everything in the body must have been read then."""
    stream, options = fields.flag("stream"), fields.take("stream_options")
    seed = fields.integer("seed")
    given: dict[str, Any] = {name: fields.number(name) for name in _SAMPLING}
    given["top_k"] = fields.integer("top_k", 0)
    asked = Asked(
        model=fields.text("model"),
        sampling=Sampling(
            **{name: value for name, value in given.items() if value is not None},
            seed=None if seed is None else seed % _SEEDS,
            grammar=grammar,
        ),
        stop=_stop(fields.take("stop")),
        choices=fields.integer("n", 1, MOST_CHOICES) or 1,
        stream=stream,
        usage=_wants_usage(options, stream),
        progress=fields.flag("return_progress") and stream,
        user=" ".join(fields.text(name) or "" for name in ("safety_identifier", "user")).strip(),
        **rest,
    )
    fields.refuse_rest()
    if asked.choices * max(1, len(asked.prompts)) > MOST_CHOICES:
        raise _wrong("n", f"such that all prompts have {MOST_CHOICES} choices together at most")
    return asked


class Fields:
    """A body's parameters, each read once; what is null is as if it were not there.

    Raises:
        Refusal: the body is no object.
    """

    def __init__(self, body: Any) -> None:
        if not isinstance(body, dict):
            raise Refusal(400, "the body is no JSON object")
        self._left = {name: value for name, value in body.items() if value is not None}

    def take(self, name: str) -> Any:
        return self._left.pop(name, None)

    def text(self, name: str) -> str | None:
        value = self.take(name)
        if value is not None and not isinstance(value, str):
            raise _wrong(name, "a string")
        return value

    def flag(self, name: str) -> bool:
        value = self.take(name)
        if value is not None and not isinstance(value, bool):
            raise _wrong(name, "true or false")
        return bool(value)

    def number(self, name: str) -> float | None:
        value = self.take(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > _MOST:
            raise _wrong(name, "a number")
        return float(value)

    def integer(self, name: str, least: int | None = None, most: int | None = None) -> int | None:
        value = self.take(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int):
            raise _wrong(name, "a whole number")
        if (least is not None and value < least) or (most is not None and value > most):
            raise _wrong(name, f"at least {least}" + (f" and at most {most}" if most is not None else ""))
        return value

    def refuse_rest(self) -> None:
        """
        Raises:
            Refusal: a parameter is left that might change the answer.
        """
        for name, value in self._left.items():
            if name in _NEUTRAL and value not in _NEUTRAL[name]:
                raise Refusal(400, f"{name} is not supported", param=name, code="unsupported_parameter")
            if name not in _NEUTRAL and name not in _HARMLESS:
                raise Refusal(
                    400,
                    f"the parameter {name[:80]!r} is unknown",
                    "it is refused because it might be meant to change the answer",
                    param=name[:80],
                    code="unknown_parameter",
                )


def _wrong(name: str, rule: str) -> Refusal:
    return Refusal(400, f"{name} must be {rule}", param=name, code="invalid_value")


def _messages(value: Any) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise _wrong("messages", "a list of messages")
    return tuple(_message(message, f"messages[{index}]") for index, message in enumerate(value))


def _message(value: Any, where: str) -> Message:
    """A message in the words of templates; what the user may write is its content alone."""
    if not isinstance(value, dict):
        raise _wrong(where, "an object")
    given = {key: part for key, part in value.items() if part is not None and part != []}
    role = _ROLES.get(given.pop("role", "")) if isinstance(value.get("role"), str) else None
    if role is None:
        raise _wrong(f"{where}.role", f"one of {', '.join(_ROLES)}")
    message = {"role": role, "content": _content(given.pop("content", None), f"{where}.content")}
    name = given.pop("name", None)
    if name is not None:
        if not (isinstance(name, str) and _NAME.fullmatch(name)):
            raise _wrong(f"{where}.name", "letters, digits, _ and -, 64 at most")
        message["name"] = name
    for key in given:
        raise Refusal(400, f"{where}.{key[:80]} is not supported", param=f"{where}.{key[:80]}")
    return message


def _content(value: Any, where: str) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise _wrong(where, "a string, or a list of parts")
    for index, part in enumerate(value):
        if not (isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)):
            raise _wrong(f"{where}[{index}]", "a part of type text")
    return "".join(part["text"] for part in value)


def _prompts(value: Any) -> tuple[str | tuple[int, ...], ...]:
    """OpenAI's: a text, texts, tokens, or lists of tokens."""
    if isinstance(value, str):
        return (value,)
    if _is_tokens(value):
        return (tuple(value),)
    if isinstance(value, list) and value and all(isinstance(part, str) or _is_tokens(part) for part in value):
        return tuple(part if isinstance(part, str) else tuple(part) for part in value)
    raise _wrong("prompt", "a string, a list of token ids, or a list of these")


def _is_tokens(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(token) is int for token in value)


def _stop(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value or []
    right = isinstance(stops, list) and len(stops) <= MOST_STOPS
    if not right or not all(isinstance(stop, str) and stop for stop in stops):
        raise _wrong("stop", f"a string that is not empty, or {MOST_STOPS} of them at most")
    return tuple(stops)


def _wants_usage(options: Any, stream: bool) -> bool:
    if options is None:
        return False
    if not stream:
        raise Refusal(400, "stream_options is given without stream", param="stream_options")
    fields = Fields(options)
    wanted = fields.flag("include_usage")
    fields.take("include_obfuscation")  # of lengths, against who listens on the way: loopback has none
    fields.refuse_rest()
    return wanted


def _grammar(value: Any) -> str | None:
    """What the text must be, as a grammar."""
    if value is None:
        return None
    fields = Fields(value)
    kind, described = fields.text("type"), fields.take("json_schema")
    fields.refuse_rest()
    if kind == "text":
        return None
    if kind == "json_object":
        return json_grammar({"type": "object"})
    if kind == "json_schema" and isinstance(described, dict) and described.get("schema") is not None:
        return json_grammar(described["schema"])
    raise _wrong("response_format", "of type text, json_object, or json_schema with a json_schema.schema")


# ---- writing -------------------------------------------------------------------------------------


@dataclass
class Choice:
    """An answer as it grows."""

    text: str = ""
    drawn: list[Drawn] = field(default_factory=list)
    done: Done | None = None

    @property
    def finish_reason(self) -> str | None:
        return _REASONS[self.done.reason] if self.done else None


def usage(prompt_tokens: int, choices: Sequence[Choice]) -> dict[str, Any]:
    """OpenAI's counts: prompts once, all answers together."""
    done = [choice.done for choice in choices if choice.done is not None]
    completion = sum(one.drawn for one in done)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion,
        "total_tokens": prompt_tokens + completion,
        "prompt_tokens_details": {"cached_tokens": min((one.reused for one in done), default=0)},
    }


def _progress(told: Waiting | Reading) -> dict[str, Any]:
    """Of reading as llama.cpp's server tells it, tools/server/server-task.cpp; of waiting it says nothing."""
    if isinstance(told, Waiting):
        return {"queue_position": told.before}
    counts = {"total": told.total, "cache": told.reused, "processed": told.read}
    return {"prompt_progress": {**counts, "time_ms": round(told.seconds * 1000)}}


@dataclass(frozen=True)
class _Form:
    """What all objects of an answer have in common.

    Attributes:
        model: the name that the answer says it is of.
        piece: a token's bytes.
        with_logprobs: whether tokens are told.
    """

    model: str
    piece: Callable[[int], bytes]
    with_logprobs: bool
    key: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))

    def _object(self, kind: str, prefix: str, choices: list[Any], **more: Any) -> dict[str, Any]:
        return {
            "id": f"{prefix}-{self.key}",
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
            **more,
        }

    def _written(self, token: int) -> str:
        return self.piece(token).decode("utf-8", "replace")


class ChatForm(_Form):
    """Answers of /v1/chat/completions."""

    def whole(self, choices: Sequence[Choice], counts: Mapping[str, Any]) -> dict[str, Any]:
        """The whole answer."""
        written = [
            {
                "index": index,
                "message": {"role": "assistant", "content": choice.text, "refusal": None},
                "logprobs": self._logprobs(choice.drawn),
                "finish_reason": choice.finish_reason,
            }
            for index, choice in enumerate(choices)
        ]
        return self._object("chat.completion", "chatcmpl", written, usage=counts)

    def first(self, index: int) -> dict[str, Any]:
        """The chunk before a choice's text."""
        return self._chunk(index, {"role": "assistant", "content": ""}, (), None)

    def progress(self, index: int, told: Waiting | Reading) -> dict[str, Any]:
        """A chunk while a choice waits, or its prompt is read."""
        return {**self._chunk(index, {"role": "assistant", "content": None}, (), None), **_progress(told)}

    def piece_of(self, index: int, text: str, drawn: Sequence[Drawn]) -> dict[str, Any]:
        """A chunk of a choice's text."""
        return self._chunk(index, {"content": text}, drawn, None)

    def last(self, index: int, choice: Choice) -> dict[str, Any]:
        """The chunk after a choice's text."""
        return self._chunk(index, {}, (), choice.finish_reason)

    def counts(self, counts: Mapping[str, Any]) -> dict[str, Any]:
        """The chunk after all choices."""
        return self._object("chat.completion.chunk", "chatcmpl", [], usage=counts)

    def _chunk(
        self, index: int, delta: dict[str, Any], drawn: Sequence[Drawn], reason: str | None
    ) -> dict[str, Any]:
        logprobs = self._logprobs(drawn) if drawn else None
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return self._object("chat.completion.chunk", "chatcmpl", [choice])

    def _logprobs(self, drawn: Sequence[Drawn]) -> dict[str, Any] | None:
        if not self.with_logprobs:
            return None
        content = [
            {
                **self._token(one.token, one.logprob),
                "top_logprobs": [self._token(*other) for other in one.likeliest],
            }
            for one in drawn
        ]
        return {"content": content, "refusal": None}

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        return {"token": self._written(token), "logprob": logprob, "bytes": list(self.piece(token))}


class TextForm(_Form):
    """Answers of /v1/completions."""

    def whole(self, choices: Sequence[Choice], counts: Mapping[str, Any]) -> dict[str, Any]:
        """The whole answer."""
        written = [
            self._choice(index, choice.text, choice.drawn, choice.finish_reason)
            for index, choice in enumerate(choices)
        ]
        return self._object("text_completion", "cmpl", written, usage=counts)

    def first(self, index: int) -> None:
        """Nothing comes before a choice's text."""

    def progress(self, index: int, told: Waiting | Reading) -> dict[str, Any]:
        """A chunk while a choice waits, or its prompt is read."""
        return {**self.piece_of(index, "", ()), **_progress(told)}

    def piece_of(self, index: int, text: str, drawn: Sequence[Drawn]) -> dict[str, Any]:
        """A chunk of a choice's text."""
        return self._object("text_completion", "cmpl", [self._choice(index, text, drawn, None)])

    def last(self, index: int, choice: Choice) -> dict[str, Any]:
        """The chunk after a choice's text."""
        return self._object("text_completion", "cmpl", [self._choice(index, "", (), choice.finish_reason)])

    def counts(self, counts: Mapping[str, Any]) -> dict[str, Any]:
        """The chunk after all choices."""
        return self._object("text_completion", "cmpl", [], usage=counts)

    def _choice(self, index: int, text: str, drawn: Sequence[Drawn], reason: str | None) -> dict[str, Any]:
        logprobs = self._logprobs(drawn) if self.with_logprobs else None
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}

    def _logprobs(self, drawn: Sequence[Drawn]) -> dict[str, Any]:
        tokens = [self._written(one.token) for one in drawn]
        ends = [sum(map(len, tokens[: index + 1])) for index in range(len(tokens))]
        return {
            "tokens": tokens,
            "token_logprobs": [one.logprob for one in drawn],
            "top_logprobs": [
                {self._written(token): logprob for token, logprob in one.likeliest} for one in drawn
            ],
            "text_offset": [0, *ends][: len(tokens)],
        }
