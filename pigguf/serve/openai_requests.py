"""Request bodies of OpenAI's API as typed values: chat completions, completions, embeddings.

An unknown parameter that might change the answer is refused, as are values of the wrong type; the ranges of
sampling parameters are checked by SamplingParams.
Not here: tokenization (service.py), how a model writes tool calls (chat/tool_calls.py).
Source: OpenAI's API reference, /v1/chat/completions, /v1/completions and /v1/embeddings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pigguf.chat.prompt_format import Message
from pigguf.chat.tool_calls import Tool
from pigguf.inference.engine import SamplingParams
from pigguf.serve.errors import RequestRefused
from pigguf.serve.openai_fields import RequestFields, check_schema_size, invalid_value
from pigguf.serve.openai_messages import parse_messages
from pigguf.serve.openai_tools import parse_tools

MAX_CHOICES = 16
MAX_STOP_STRINGS = 16
MAX_TOP_LOGPROBS = 20
MAX_EMBEDDING_INPUTS = 2048  # OpenAI's
SEED_MODULUS = 2**32 - 1  # the engine's seeds are below this
_DEFAULT_COMPLETION_TOKENS = 16  # OpenAI's
# SamplingParams' float fields that a request may set: OpenAI's, and two of llama.cpp's server.
_SAMPLING = ("temperature", "top_p", "frequency_penalty", "presence_penalty", "min_p", "repeat_penalty")

Prompt = str | tuple[int, ...]
"""A text, or token ids."""


@dataclass(frozen=True)
class CompletionRequest:
    """A request for chat completions or completions.

    Attributes:
        messages: the conversation; None for a completion.
        prompts: the prompts of a completion.
        model: the model's name in the request, or None.
        sampling: sampling parameters without a grammar; the seed is the first choice's, the next choices
            have the next seeds.
        json_schema: the JSON schema that an answer must follow unless it is a tool call; None is any text.
        max_tokens: the most tokens of an answer; None generates up to the end of the window.
        stop: stop strings.
        choice_count: answers to each prompt (`n`).
        logprobs: how many of the most likely tokens to report with each token; None reports none.
        stream: whether the answer is sent in chunks.
        include_usage: whether the last chunk has token counts.
        return_progress: whether chunks report prefill progress, as llama.cpp's server does.
        user: the end user's identifier, or "".
        tools: functions that are described to the model, and that it may call.
        forced_tools: the functions of which it must call one; empty if it may answer with text.
        parallel_tool_calls: whether an answer may hold more than one call.
    """

    messages: tuple[Message, ...] | None
    prompts: tuple[Prompt, ...]
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


@dataclass(frozen=True)
class EmbeddingRequest:
    """A request for embeddings.

    Attributes:
        inputs: what to embed.
        model: the model's name in the request, or None.
        dimensions: the wanted length of the vectors; None is the model's own.
        is_base64: whether vectors are encoded as base64 of little-endian float32, instead of a list.
    """

    inputs: tuple[Prompt, ...]
    model: str | None
    dimensions: int | None
    is_base64: bool


def parse_chat_request(body: Any) -> CompletionRequest:
    """Parse a body of /v1/chat/completions.

    Raises:
        RequestRefused: a parameter is missing, malformed, unknown or not supported.
        UsageError: a sampling parameter is out of range, or a schema cannot be made a grammar.
    """
    fields = RequestFields(body)
    messages = parse_messages(fields.take("messages"))
    max_tokens = [fields.integer(name, 1) for name in ("max_completion_tokens", "max_tokens")]
    with_logprobs = fields.boolean("logprobs")
    top_logprobs = fields.integer("top_logprobs", 0, MAX_TOP_LOGPROBS)
    if top_logprobs is not None and not with_logprobs:
        raise RequestRefused(400, "top_logprobs is given without logprobs", param="top_logprobs")
    selection = parse_tools(fields)
    return _completion_request(
        fields,
        messages=messages,
        tools=selection.tools,
        forced_tools=selection.forced_tools,
        parallel_tool_calls=selection.parallel_tool_calls,
        prompts=(),
        max_tokens=max_tokens[0] if max_tokens[0] is not None else max_tokens[1],
        logprobs=(top_logprobs or 0) if with_logprobs else None,
    )


def parse_completion_request(body: Any) -> CompletionRequest:
    """Parse a body of /v1/completions.

    Raises:
        As parse_chat_request.
    """
    fields = RequestFields(body)
    prompts = _parse_prompts(fields.take("prompt"), "prompt")
    max_tokens = fields.integer("max_tokens", 1)
    return _completion_request(
        fields,
        messages=None,
        prompts=prompts,
        max_tokens=_DEFAULT_COMPLETION_TOKENS if max_tokens is None else max_tokens,
        logprobs=fields.integer("logprobs", 0, MAX_TOP_LOGPROBS),
    )


def parse_embedding_request(body: Any) -> EmbeddingRequest:
    """Parse a body of /v1/embeddings.

    Raises:
        RequestRefused: a parameter is missing, malformed, unknown or not supported.
    """
    fields = RequestFields(body)
    inputs = _parse_prompts(fields.take("input"), "input")
    encoding = fields.string("encoding_format") or "float"
    if len(inputs) > MAX_EMBEDDING_INPUTS:
        raise invalid_value("input", f"{MAX_EMBEDDING_INPUTS:,} texts at most")
    if encoding not in ("float", "base64"):
        raise invalid_value("encoding_format", "float or base64")
    request = EmbeddingRequest(
        inputs, fields.string("model"), fields.integer("dimensions", 1), encoding == "base64"
    )
    fields.string("user")
    fields.refuse_unread()
    return request


def _completion_request(fields: RequestFields, **others: Any) -> CompletionRequest:
    """Parse the fields that chat completions and completions share; `others` are the request's other fields.

    It must be called last: fields that were not read by then are refused.
    """
    stream, stream_options = fields.boolean("stream"), fields.take("stream_options")
    seed = fields.integer("seed")
    sampling: dict[str, Any] = {name: fields.number(name) for name in _SAMPLING}
    sampling["top_k"] = fields.integer("top_k", 0)
    request = CompletionRequest(
        model=fields.string("model"),
        sampling=SamplingParams(
            **{name: value for name, value in sampling.items() if value is not None},
            seed=None if seed is None else seed % SEED_MODULUS,
        ),
        json_schema=_parse_response_format(fields.take("response_format")),
        stop=_parse_stop(fields.take("stop")),
        choice_count=fields.integer("n", 1, MAX_CHOICES) or 1,
        stream=stream,
        include_usage=_parse_stream_options(stream_options, stream),
        return_progress=fields.boolean("return_progress") and stream,
        user=" ".join(fields.string(name) or "" for name in ("safety_identifier", "user")).strip(),
        **others,
    )
    fields.refuse_unread()
    if request.choice_count * max(1, len(request.prompts)) > MAX_CHOICES:
        raise invalid_value("n", f"such that all prompts have {MAX_CHOICES} choices together at most")
    return request


def _parse_prompts(value: Any, name: str) -> tuple[Prompt, ...]:
    """Return one or more prompts. OpenAI takes a text, a list of texts, token ids, or lists of token ids."""
    if isinstance(value, str):
        return (value,)
    if _is_token_ids(value):
        return (tuple(value),)
    if (
        isinstance(value, list)
        and value
        and all(isinstance(part, str) or _is_token_ids(part) for part in value)
    ):
        return tuple(part if isinstance(part, str) else tuple(part) for part in value)
    raise invalid_value(name, "a string, a list of token ids, or a list of these")


def _is_token_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(token) is int for token in value)


def _parse_stop(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value or []
    is_list = isinstance(stops, list) and len(stops) <= MAX_STOP_STRINGS
    if not is_list or not all(isinstance(stop, str) and stop for stop in stops):
        raise invalid_value("stop", f"a string that is not empty, or {MAX_STOP_STRINGS} of them at most")
    return tuple(stops)


def _parse_stream_options(options: Any, stream: bool) -> bool:
    """Return whether usage is to be sent with a stream."""
    if options is None:
        return False
    if not stream:
        raise RequestRefused(400, "stream_options is given without stream", param="stream_options")
    fields = RequestFields(options)
    include_usage = fields.boolean("include_usage")
    # It pads chunks to hide their lengths from eavesdroppers, of which there are none on loopback.
    fields.take("include_obfuscation")
    fields.refuse_unread()
    return include_usage


def _parse_response_format(value: Any) -> Any:
    """Return the JSON schema of `response_format`; None if any text is allowed."""
    if value is None:
        return None
    check_schema_size(value, "response_format")
    fields = RequestFields(value)
    kind, json_schema = fields.string("type"), fields.take("json_schema")
    fields.refuse_unread()
    if kind == "text":
        return None
    if kind == "json_object":
        return {"type": "object"}
    if kind == "json_schema" and isinstance(json_schema, dict) and json_schema.get("schema") is not None:
        return json_schema["schema"]
    raise invalid_value(
        "response_format", "of type text, json_object, or json_schema with a json_schema.schema"
    )
