"""Requests and answers as OpenAI's clients write and read them.

`chat_request` and `completion_request` read a body into an Asked; `ChatForm` and `TextForm` write the answer,
whole or in chunks; `embedding_request` and `embeddings` do so for embeddings. What is refused here: a
parameter that is unknown and might change the answer, and values of the wrong sort; ranges are Sampling's to
refuse.
Left out: tokens (service.py), how a model writes calls (pigguf/chat/tool_calls.py); images and sound are refused.
Source: OpenAI's API reference, /v1/chat/completions, /v1/completions and /v1/embeddings.
"""

from __future__ import annotations

import json
import re
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

from pigguf.chat.prompt_format import Message
from pigguf.chat.tool_calls import ToolCallDelta, ToolCallParser, TextDelta, Tool
from pigguf.inference.engine import SamplingParams
from pigguf.serve.errors import RequestRefused
from pigguf.serve.scheduler import Finished, SampledToken, PrefillProgress, QueuePosition

MAX_CHOICES = 16
MAX_STOP_STRINGS = 16
MAX_TOP_LOGPROBS = 20
_DEFAULT_COMPLETION = 16  # tokens, OpenAI's
SEED_MODULUS = 2**32 - 1  # of the engine
_MOST = 3e38  # a float's in C
_ROLES = {role: role for role in ("system", "user", "assistant", "tool")} | {"developer": "system"}
MAX_TOOLS = 128  # OpenAI's
MAX_SCHEMA_CHARACTERS = 128 << 10  # characters of the JSON of a schema, or of all tools
MAX_EMBEDDING_INPUTS = 2048  # to embed in a request; OpenAI's
MAX_DETOKENIZED_TOKENS = 1 << 20  # to make text of; each may be hundreds of characters
_ID_LETTERS, _ID_LENGTH = string.ascii_letters + string.digits, 9  # Mistral's templates take no other ids
_NOTHING = {"type": "object", "properties": {}, "additionalProperties": False}
_NAME = re.compile("[a-zA-Z0-9_-]{1,64}")

# Parameters that say nothing about the answer, whatever they are.
IGNORED_PARAMETERS = frozenset(
    (
        *("metadata", "parallel_tool_calls", "prompt_cache_key", "prompt_cache_retention"),
        *("service_tier", "store"),
    )
)
# Parameters that are known and not supported -> the values with which they say nothing.
UNSUPPORTED_PARAMETERS: dict[str, tuple[Any, ...]] = {
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
class CompletionRequest:
    """A request, read.

    Attributes:
        messages: a conversation, or None for a completion.
        prompts: of a completion: texts or tokens.
        model: the name that was asked for, or None.
        sampling: its seed is of the first choice; the next have the next ones. Nothing of a grammar.
        schema: a JSON schema of the answer where it is no call; None is any text.
        choices: answers to each prompt.
        logprobs: how many of the likeliest tokens are told with each; None tells nothing.
        tools: functions that the model is told of and may call.
        forced: those of which it must call one; none where it may answer in words.
        several: whether it may call more than once.
        stream, usage: whether it comes in chunks, and whether token counts come with them.
        progress: whether chunks tell how much of the prompt is read, as llama.cpp's server's do.
        user: whom it is for, in the client's words.
    """

    messages: tuple[Message, ...] | None
    prompts: tuple[str | tuple[int, ...], ...]
    model: str | None
    sampling: SamplingParams
    json_schema: Any
    max_tokens: int | None
    stop: tuple[str, ...]
    choice_count: int
    logprobs: int | None
    stream: bool
    include_usage: bool
    return_progress: bool
    user: str
    tools: tuple[Tool, ...] = ()
    forced_tools: tuple[Tool, ...] = ()
    parallel_tool_calls: bool = False


# ---- reading -------------------------------------------------------------------------------------


def parse_json(data: bytes) -> Any:
    """The JSON of a body.

    Raises:
        Refusal: it is none.
    """
    try:
        return json.loads(data, parse_constant=_no_number)
    except RecursionError:
        raise RequestRefused(400, "the JSON is nested too deeply") from None
    except ValueError as error:
        raise RequestRefused(400, f"the body is not JSON: {error}") from None


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no number in JSON")


def parse_chat_request(body: Any) -> CompletionRequest:
    """A body of /v1/chat/completions.

    Raises:
        Refusal: what it says is not understood, or not supported.
        UsageError: a value out of its range, or a schema that no grammar can hold to.
    """
    fields = RequestFields(body)
    messages = _messages(fields.take("messages"))
    most = [fields.integer(name, 1) for name in ("max_completion_tokens", "max_tokens")]
    told = fields.flag("logprobs")
    likeliest = fields.integer("top_logprobs", 0, MAX_TOP_LOGPROBS)
    if likeliest is not None and not told:
        raise RequestRefused(400, "top_logprobs is given without logprobs", param="top_logprobs")
    tools, forced, several = _tools(fields)
    return _asked(
        fields,
        messages=messages,
        tools=tools,
        forced=forced,
        several=several,
        prompts=(),
        max_tokens=most[0] if most[0] is not None else most[1],
        logprobs=(likeliest or 0) if told else None,
    )


def parse_completion_request(body: Any) -> CompletionRequest:
    """A body of /v1/completions.

    Raises:
        As chat_request does.
    """
    fields = RequestFields(body)
    prompts = _prompts(fields.take("prompt"))
    most = fields.integer("max_tokens", 1)
    return _asked(
        fields,
        messages=None,
        prompts=prompts,
        max_tokens=_DEFAULT_COMPLETION if most is None else most,
        logprobs=fields.integer("logprobs", 0, MAX_TOP_LOGPROBS),
    )


@dataclass(frozen=True)
class EmbeddingRequest:
    """A request for embeddings, read.

    Attributes:
        texts: or tokens.
        model: the name that was asked for, or None.
        dimensions: how long the vectors are to be; None is as the model makes them.
        is_base64: whether a vector is written as base64 of its 32-bit floats, else as a list.
    """

    texts: tuple[str | tuple[int, ...], ...]
    model: str | None
    dimensions: int | None
    is_base64: bool


def parse_embedding_request(body: Any) -> EmbeddingRequest:
    """A body of /v1/embeddings.

    Raises:
        Refusal: what it says is not understood, or not supported.
    """
    fields = RequestFields(body)
    texts = _prompts(fields.take("input"), "input")
    written = fields.text("encoding_format") or "float"
    if len(texts) > MAX_EMBEDDING_INPUTS:
        raise _wrong("input", f"{MAX_EMBEDDING_INPUTS:,} texts at most")
    if written not in ("float", "base64"):
        raise _wrong("encoding_format", "float or base64")
    asked = EmbeddingRequest(texts, fields.text("model"), fields.integer("dimensions", 1), written == "base64")
    fields.text("user")
    fields.refuse_rest()
    return asked


def embeddings_body(name: str, vectors: NDArray[np.float32], tokens: int, *, is_base64: bool) -> dict[str, Any]:
    """The answer of /v1/embeddings; tokens are those of all texts."""
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": b64encode(vector.astype("<f4").tobytes()).decode() if is_base64 else vector.tolist(),
        }
        for index, vector in enumerate(vectors)
    ]
    counts = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": name, "usage": counts}


def _asked(fields: RequestFields, **rest: Any) -> CompletionRequest:
    """What both sorts of requests have; everything in the body must have been read then."""
    stream, options = fields.flag("stream"), fields.take("stream_options")
    seed = fields.integer("seed")
    given: dict[str, Any] = {name: fields.number(name) for name in _SAMPLING}
    given["top_k"] = fields.integer("top_k", 0)
    asked = CompletionRequest(
        model=fields.text("model"),
        sampling=SamplingParams(
            **{name: value for name, value in given.items() if value is not None},
            seed=None if seed is None else seed % SEED_MODULUS,
        ),
        json_schema=_schema(fields.take("response_format")),
        stop=_stop(fields.take("stop")),
        choice_count=fields.integer("n", 1, MAX_CHOICES) or 1,
        stream=stream,
        include_usage=_wants_usage(options, stream),
        return_progress=fields.flag("return_progress") and stream,
        user=" ".join(fields.text(name) or "" for name in ("safety_identifier", "user")).strip(),
        **rest,
    )
    fields.refuse_rest()
    if asked.choice_count * max(1, len(asked.prompts)) > MAX_CHOICES:
        raise _wrong("n", f"such that all prompts have {MAX_CHOICES} choices together at most")
    return asked


class RequestFields:
    """A body's parameters, each read once; what is null is as if it were not there.

    Raises:
        Refusal: the body is no object.
    """

    def __init__(self, body: Any) -> None:
        if not isinstance(body, dict):
            raise RequestRefused(400, "the body is no JSON object")
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
        if isinstance(value, float) and value.is_integer():
            value = int(value)  # JSON has one sort of number
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
            if name in UNSUPPORTED_PARAMETERS and value not in UNSUPPORTED_PARAMETERS[name]:
                raise RequestRefused(400, f"{name} is not supported", param=name, code="unsupported_parameter")
            if name not in UNSUPPORTED_PARAMETERS and name not in IGNORED_PARAMETERS:
                raise RequestRefused(
                    400,
                    f"the parameter {name[:80]!r} is unknown",
                    "it is refused because it might be meant to change the answer",
                    param=name[:80],
                    code="unknown_parameter",
                )


def _wrong(name: str, rule: str) -> RequestRefused:
    return RequestRefused(400, f"{name} must be {rule}", param=name, code="invalid_value")


def _messages(value: Any) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise _wrong("messages", "a list of messages")
    messages = [_message(message, f"messages[{index}]") for index, message in enumerate(value)]
    called: dict[str, str] = {}  # by id, the function
    for index, message in enumerate(messages):
        called |= {call["id"]: call["function"]["name"] for call in message.get("tool_calls", ())}
        if message["role"] == "tool":
            name = called.get(message["tool_call_id"])
            if name is None:
                raise _wrong(f"messages[{index}].tool_call_id", "the id of a call in a message before")
            message["name"] = name
    return tuple(messages)


def _message(value: Any, where: str) -> dict[str, Any]:
    """A message in the words of templates; what the user may write is its content alone."""
    if not isinstance(value, dict):
        raise _wrong(where, "an object")
    given = {key: part for key, part in value.items() if part is not None and part != []}
    role = _ROLES.get(given.pop("role", "")) if isinstance(value.get("role"), str) else None
    if role is None:
        raise _wrong(f"{where}.role", f"one of {', '.join(_ROLES)}")
    message: dict[str, Any] = {"role": role}
    if role == "assistant" and "tool_calls" in given:
        message["tool_calls"] = _made_calls(given.pop("tool_calls"), f"{where}.tool_calls")
        given.setdefault("content", "")
    if role == "tool":
        message["tool_call_id"] = _text_of(given.pop("tool_call_id", None), f"{where}.tool_call_id")
    message["content"] = _content(given.pop("content", None), f"{where}.content")
    if "name" in given:
        message["name"] = _function_name(given.pop("name"), f"{where}.name")
    for key in given:
        raise RequestRefused(400, f"{where}.{key[:80]} is not supported", param=f"{where}.{key[:80]}")
    return message


def _made_calls(value: Any, where: str) -> list[dict[str, Any]]:
    """Calls that an assistant made, with their arguments as an object, as templates want it."""
    calls = []
    for place, call in _objects(value, where):
        function = call.get("function")
        if call.get("type", "function") != "function" or not isinstance(function, dict):
            raise _wrong(place, "a call of type function")
        try:
            arguments = json.loads(_text_of(function.get("arguments"), f"{place}.function.arguments"))
        except (ValueError, RecursionError):
            arguments = None
        if not isinstance(arguments, dict):
            raise _wrong(f"{place}.function.arguments", "a JSON object as a string")
        name = _function_name(function.get("name"), f"{place}.function.name")
        key = _text_of(call.get("id"), f"{place}.id")
        calls.append({"id": key, "type": "function", "function": {"name": name, "arguments": arguments}})
    return calls


def _objects(value: Any, where: str) -> list[tuple[str, dict[str, Any]]]:
    """Each with its place."""
    if not isinstance(value, list) or not all(isinstance(part, dict) for part in value):
        raise _wrong(where, "a list of objects")
    return [(f"{where}[{index}]", part) for index, part in enumerate(value)]


def _text_of(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise _wrong(where, "a string")
    return value


def _function_name(value: Any, where: str) -> str:
    if not (isinstance(value, str) and _NAME.fullmatch(value)):
        raise _wrong(where, "letters, digits, _ and -, 64 at most")
    return value


def _tools(fields: RequestFields) -> tuple[tuple[Tool, ...], tuple[Tool, ...], bool]:
    """Asked's tools, forced and several."""
    described = _objects(fields.take("tools") or [], "tools")
    _refuse_long(described, "tools")
    choice, several = fields.take("tool_choice") or "auto", fields.take("parallel_tool_calls")
    if len(described) > MAX_TOOLS:
        raise _wrong("tools", f"{MAX_TOOLS} at most")
    if several is not None and not isinstance(several, bool):
        raise _wrong("parallel_tool_calls", "true or false")
    tools = {tool.name: tool for tool in (_tool(part, place) for place, part in described)}
    if len(tools) < len(described):
        raise _wrong("tools", "functions of different names")
    everything = tuple(tools.values())
    if choice == "none" or (choice == "auto" and not tools):
        return (), (), False
    if choice == "auto":
        return everything, (), several is not False
    if choice == "required" and tools:
        return everything, everything, several is not False
    function = (
        choice.get("function") if isinstance(choice, dict) and choice.get("type") == "function" else None
    )
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or name not in tools:
        raise _wrong("tool_choice", "none, auto, required, or a function of tools")
    return everything, (tools[name],), False


def _tool(value: dict[str, Any], where: str) -> Tool:
    function = value.get("function")
    if value.get("type") != "function" or not isinstance(function, dict):
        raise RequestRefused(400, f"{where} is no function", param=where, code="unsupported_parameter")
    fields = RequestFields(function)
    name = _function_name(fields.take("name"), f"{where}.function.name")
    described, schema = fields.text("description"), fields.take("parameters")
    fields.flag("strict")  # they always are
    fields.refuse_rest()
    if schema is None:
        schema = _NOTHING
    if not isinstance(schema, dict) or schema.get("type") != "object":
        raise _wrong(f"{where}.function.parameters", "a JSON schema of type object")
    return Tool(name, described, schema)


def _content(value: Any, where: str) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise _wrong(where, "a string, or a list of parts")
    for index, part in enumerate(value):
        if not (isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)):
            raise _wrong(f"{where}[{index}]", "a part of type text")
    return "".join(part["text"] for part in value)


def _prompts(value: Any, name: str = "prompt") -> tuple[str | tuple[int, ...], ...]:
    """OpenAI's: a text, texts, tokens, or lists of tokens."""
    if isinstance(value, str):
        return (value,)
    if _is_tokens(value):
        return (tuple(value),)
    if isinstance(value, list) and value and all(isinstance(part, str) or _is_tokens(part) for part in value):
        return tuple(part if isinstance(part, str) else tuple(part) for part in value)
    raise _wrong(name, "a string, a list of token ids, or a list of these")


def _is_tokens(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(token) is int for token in value)


def _stop(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value or []
    right = isinstance(stops, list) and len(stops) <= MAX_STOP_STRINGS
    if not right or not all(isinstance(stop, str) and stop for stop in stops):
        raise _wrong("stop", f"a string that is not empty, or {MAX_STOP_STRINGS} of them at most")
    return tuple(stops)


def _wants_usage(options: Any, stream: bool) -> bool:
    if options is None:
        return False
    if not stream:
        raise RequestRefused(400, "stream_options is given without stream", param="stream_options")
    fields = RequestFields(options)
    wanted = fields.flag("include_usage")
    fields.take("include_obfuscation")  # of lengths, against who listens on the way: loopback has none
    fields.refuse_rest()
    return wanted


def _schema(value: Any) -> Any:
    """Of the JSON that the text must be; None is any text."""
    if value is None:
        return None
    _refuse_long(value, "response_format")
    fields = RequestFields(value)
    kind, described = fields.text("type"), fields.take("json_schema")
    fields.refuse_rest()
    if kind == "text":
        return None
    if kind == "json_object":
        return {"type": "object"}
    if kind == "json_schema" and isinstance(described, dict) and described.get("schema") is not None:
        return described["schema"]
    raise _wrong("response_format", "of type text, json_object, or json_schema with a json_schema.schema")


def _refuse_long(value: Any, name: str) -> None:
    """What is made of a schema takes time that is more than in proportion."""
    if (length := len(json.dumps(value))) > MAX_SCHEMA_CHARACTERS:
        raise RequestRefused(
            400,
            f"{name} is {length:,} characters of JSON, and {MAX_SCHEMA_CHARACTERS:,} are taken",
            "ask for less at once",
            param=name,
            code="schema_too_large",
        )


# ---- writing -------------------------------------------------------------------------------------


@dataclass
class GeneratedChoice:
    """An answer as it grows."""

    text: str = ""
    tokens: list[SampledToken] = field(default_factory=list)
    finished: Finished | None = None


def _finish_reason(choice: GeneratedChoice, has_calls: bool = False) -> str | None:
    if choice.finished is None:
        return None
    reason = _REASONS[choice.finished.reason]
    return "tool_calls" if has_calls and reason == "stop" else reason


def _delta(parts: Iterable[TextDelta | ToolCallDelta]) -> dict[str, Any]:
    """Parts of an answer as one piece of a message: its text and its calls, each with its index."""
    content, calls = "", dict[int, dict[str, Any]]()
    for part in parts:
        if isinstance(part, TextDelta):
            content += part.text
            continue
        call = calls.setdefault(part.index, {"index": part.index, "function": {"arguments": ""}})
        if part.name is not None:
            key = "".join(secrets.choice(_ID_LETTERS) for _ in range(_ID_LENGTH))
            call |= {"id": key, "type": "function", "function": {"name": part.name, "arguments": ""}}
        call["function"]["arguments"] += part.arguments
    return {
        **({"content": content} if content else {}),
        **({"tool_calls": [*calls.values()]} if calls else {}),
    }


def usage_counts(prompt_tokens: int, choices: Sequence[GeneratedChoice], each: int) -> dict[str, Any]:
    """OpenAI's counts: prompts once, one for `each` so many choices; all answers together."""
    done = [choice.finished for choice in choices if choice.finished is not None]
    completion = sum(one.generated_tokens for one in done)
    cached = [min(one.cached_tokens for one in done[index : index + each]) for index in range(0, len(done), each)]
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion,
        "total_tokens": prompt_tokens + completion,
        "prompt_tokens_details": {"cached_tokens": sum(cached)},
    }


def _progress(told: QueuePosition | PrefillProgress) -> dict[str, Any]:
    """Of reading as llama.cpp's server tells it, tools/server/server-task.cpp; of waiting it says nothing."""
    if isinstance(told, QueuePosition):
        return {"queue_position": told.requests_ahead}
    counts = {"total": told.prompt_tokens, "cache": told.cached_tokens, "processed": told.processed_tokens}
    return {"prompt_progress": {**counts, "time_ms": round(told.seconds * 1000)}}


@dataclass(frozen=True)
class _Form:
    """What all objects of an answer have in common.

    Attributes:
        model: the name that the answer says it is of.
        piece: a token's bytes.
        with_logprobs: whether tokens are told.
        reader: makes what takes calls out of an answer; None where there are none.
    """

    model: str
    piece: Callable[[int], bytes]
    with_logprobs: bool
    reader: Callable[[], ToolCallParser] | None = None
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


@dataclass(frozen=True)
class ChatResponseWriter(_Form):
    """Answers of /v1/chat/completions."""

    readers: dict[int, ToolCallParser] = field(default_factory=dict)  # of the choices of a stream

    def whole(self, choices: Sequence[GeneratedChoice], counts: Mapping[str, Any]) -> dict[str, Any]:
        """The whole answer."""
        written = [self._choice(index, choice) for index, choice in enumerate(choices)]
        return self._object("chat.completion", "chatcmpl", written, usage=counts)

    def _choice(self, index: int, choice: GeneratedChoice) -> dict[str, Any]:
        parts: list[TextDelta | ToolCallDelta] = [TextDelta(choice.text)]
        if self.reader is not None:
            reader = self.reader()
            parts = [*reader.feed(choice.text), *reader.finish()]
        delta = _delta(parts)
        calls = [{key: call[key] for key in call if key != "index"} for call in delta.get("tool_calls", ())]
        content = delta.get("content", None if calls else "")
        message = {"role": "assistant", "content": content, "refusal": None}
        return {
            "index": index,
            "message": {**message, "tool_calls": calls} if calls else message,
            "logprobs": self._logprobs(choice.tokens),
            "finish_reason": _finish_reason(choice, bool(calls)),
        }

    def first(self, index: int) -> dict[str, Any]:
        """The chunk before a choice's text."""
        return self._chunk(index, {"role": "assistant", "content": ""}, (), None)

    def progress(self, index: int, told: QueuePosition | PrefillProgress) -> dict[str, Any]:
        """A chunk while a choice waits, or its prompt is read."""
        return {**self._chunk(index, {"role": "assistant", "content": None}, (), None), **_progress(told)}

    def piece_of(self, index: int, text: str, drawn: Sequence[SampledToken]) -> dict[str, Any] | None:
        """A chunk of a choice's text; None where it may yet be the beginning of a call."""
        if self.reader is None:
            return self._chunk(index, {"content": text}, drawn, None)
        if index not in self.readers:
            self.readers[index] = self.reader()
        delta = _delta(self.readers[index].feed(text))
        return self._chunk(index, delta, drawn, None) if delta or drawn else None

    def last(self, index: int, choice: GeneratedChoice) -> dict[str, Any]:
        """The chunk after a choice's text."""
        reader = self.readers.get(index)
        delta = _delta(reader.finish()) if reader else {}
        has_calls = reader is not None and reader.call_count > 0
        return self._chunk(index, delta, (), _finish_reason(choice, has_calls))

    def counts(self, counts: Mapping[str, Any]) -> dict[str, Any]:
        """The chunk after all choices."""
        return self._object("chat.completion.chunk", "chatcmpl", [], usage=counts)

    def _chunk(
        self, index: int, delta: dict[str, Any], drawn: Sequence[SampledToken], reason: str | None
    ) -> dict[str, Any]:
        logprobs = self._logprobs(drawn) if drawn else None
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return self._object("chat.completion.chunk", "chatcmpl", [choice])

    def _logprobs(self, drawn: Sequence[SampledToken]) -> dict[str, Any] | None:
        if not self.with_logprobs:
            return None
        content = [
            {
                **self._token(one.token, one.logprob),
                "top_logprobs": [self._token(*other) for other in one.top_logprobs],
            }
            for one in drawn
        ]
        return {"content": content, "refusal": None}

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        return {"token": self._written(token), "logprob": logprob, "bytes": list(self.piece(token))}


@dataclass(frozen=True)
class CompletionResponseWriter(_Form):
    """Answers of /v1/completions."""

    told: Counter[int] = field(default_factory=Counter)  # characters of the choices of a stream

    def whole(self, choices: Sequence[GeneratedChoice], counts: Mapping[str, Any]) -> dict[str, Any]:
        """The whole answer."""
        written = [
            self._choice(index, choice.text, choice.tokens, _finish_reason(choice))
            for index, choice in enumerate(choices)
        ]
        return self._object("text_completion", "cmpl", written, usage=counts)

    def first(self, index: int) -> None:
        """Nothing comes before a choice's text."""

    def progress(self, index: int, told: QueuePosition | PrefillProgress) -> dict[str, Any]:
        """A chunk while a choice waits, or its prompt is read."""
        return {**self.piece_of(index, "", ()), **_progress(told)}

    def piece_of(self, index: int, text: str, drawn: Sequence[SampledToken]) -> dict[str, Any]:
        """A chunk of a choice's text."""
        choice = self._choice(index, text, drawn, None, self.told[index])
        self.told[index] += sum(len(self._written(one.token)) for one in drawn)
        return self._object("text_completion", "cmpl", [choice])

    def last(self, index: int, choice: GeneratedChoice) -> dict[str, Any]:
        """The chunk after a choice's text."""
        return self._object("text_completion", "cmpl", [self._choice(index, "", (), _finish_reason(choice))])

    def counts(self, counts: Mapping[str, Any]) -> dict[str, Any]:
        """The chunk after all choices."""
        return self._object("text_completion", "cmpl", [], usage=counts)

    def _choice(
        self, index: int, text: str, drawn: Sequence[SampledToken], reason: str | None, begun: int = 0
    ) -> dict[str, Any]:
        logprobs = self._logprobs(drawn, begun) if self.with_logprobs else None
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}

    def _logprobs(self, drawn: Sequence[SampledToken], begun: int) -> dict[str, Any]:
        """Of tokens of which the first stands `begun` characters after the answer's beginning."""
        tokens = [self._written(one.token) for one in drawn]
        return {
            "tokens": tokens,
            "token_logprobs": [one.logprob for one in drawn],
            "top_logprobs": [
                {self._written(token): logprob for token, logprob in one.top_logprobs} for one in drawn
            ],
            "text_offset": [*accumulate(map(len, tokens), initial=begun)][: len(tokens)],
        }
