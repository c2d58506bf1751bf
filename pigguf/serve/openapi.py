"""What the server takes and answers, as OpenAPI 3.1: data, for programs that read it.

tests/serve/test_openapi.py compares it with what openai.py reads, and with a server's real answers.
Left out: the page's own routes, and what the words mean, which is OpenAI's API reference.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from pigguf.serve.openai_api import (
    IGNORED_PARAMETERS,
    MAX_CHOICES,
    MAX_TOP_LOGPROBS,
    MAX_STOP_STRINGS,
    MAX_EMBEDDING_INPUTS,
    MAX_DETOKENIZED_TOKENS,
    MAX_TOOLS,
    UNSUPPORTED_PARAMETERS,
)

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_FLAG: Schema = {"type": "boolean"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_NAME: Schema = {"type": "string", "pattern": "^[a-zA-Z0-9_-]{1,64}$"}
_TOKENS: Schema = {"type": "array", "items": _COUNT, "minItems": 1}


def _named(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _number(**limits: float) -> Schema:
    return {"type": "number", "minimum": -3e38, "maximum": 3e38, **limits}


def _object(required: dict[str, Schema], optional: dict[str, Schema] | None = None) -> Schema:
    """An object with these properties and no others."""
    return {
        "type": "object",
        "properties": {**required, **(optional or {})},
        "required": list(required),
        "additionalProperties": False,
    }


def _texts(most: int) -> Schema:
    """A text or tokens, or so many of these at most."""
    several = {"type": "array", "items": {"anyOf": [_TEXT, _TOKENS]}, "minItems": 1, "maxItems": most}
    return {"anyOf": [_TEXT, _TOKENS, several]}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _message(*roles: str, **more: Schema) -> Schema:
    """A message of these roles."""
    required = {"role": {"enum": [*roles]}, "content": _named("Content"), **more}
    return {**_object(required, {"name": _or_null(_NAME)}), "additionalProperties": {"type": "null"}}


def _request(
    required: dict[str, Schema], optional: dict[str, Schema], shared: dict[str, Schema] | None = None
) -> Schema:
    """A request's body: what is null is as if it were not there. Shared are those of _BOTH, unless told."""
    shared = _BOTH if shared is None else shared
    neutral = {name: {"enum": [*values]} for name, values in UNSUPPORTED_PARAMETERS.items() if name not in required}
    harmless: dict[str, Schema] = {name: {} for name in IGNORED_PARAMETERS if name not in optional}
    rest = {name: _or_null(schema) for name, schema in {**neutral, **shared, **optional}.items()}
    return {**_object(required, {**rest, **harmless}), "additionalProperties": {"type": "null"}}


# Of chats and completions alike.
_BOTH: dict[str, Schema] = {
    "model": _TEXT,
    "stream": _FLAG,
    "stream_options": _object(
        {}, {"include_usage": _or_null(_FLAG), "include_obfuscation": {"description": "changes nothing here"}}
    ),
    "return_progress": {**_FLAG, "description": "chunks tell how much of the prompt is read (llama.cpp's)"},
    "seed": {"type": "integer"},
    "n": {"type": "integer", "minimum": 1, "maximum": MAX_CHOICES},
    "stop": {
        "anyOf": [
            {**_TEXT, "minLength": 1},
            {"type": "array", "items": {**_TEXT, "minLength": 1}, "maxItems": MAX_STOP_STRINGS},
        ]
    },
    "temperature": _number(minimum=0),
    "top_p": _number(minimum=0, exclusiveMinimum=0, maximum=1),
    "top_k": {"type": "integer", "minimum": 0, "maximum": 2**31 - 1},
    "min_p": _number(minimum=0, maximum=1),
    "repeat_penalty": _number(exclusiveMinimum=0),
    "frequency_penalty": _number(),
    "presence_penalty": _number(),
    "response_format": {
        "oneOf": [
            _object({"type": {"enum": ["text", "json_object"]}}, {"json_schema": {}}),
            _object(
                {
                    "type": {"const": "json_schema"},
                    "json_schema": {
                        "type": "object",
                        "properties": {"schema": {"type": "object"}},
                        "required": ["schema"],
                    },
                }
            ),
        ]
    },
    "user": {**_TEXT, "description": "counts as a client of its own when clients take turns"},
    "safety_identifier": _TEXT,
}

_COUNTS = _object(
    {"prompt_tokens": _COUNT, "completion_tokens": _COUNT, "total_tokens": _COUNT},
    {"prompt_tokens_details": _object({"cached_tokens": _COUNT})},
)


def _answer(kind: str, choice: Schema) -> Schema:
    """A whole answer."""
    return _object(
        {
            "id": _TEXT,
            "object": {"const": kind},
            "created": _COUNT,
            "model": _TEXT,
            "choices": {"type": "array", "items": choice, "minItems": 1},
            "usage": _named("Usage"),
        }
    )


_SCHEMAS: dict[str, Schema] = {
    "Error": _object(
        {
            "error": {
                "type": "object",
                "properties": {
                    "message": _TEXT,
                    "type": _TEXT,
                    "param": _or_null(_TEXT),
                    "code": _or_null(_TEXT),
                    "prompt_tokens": _COUNT,
                    "context_length": _COUNT,
                },
                "required": ["message", "type", "param", "code"],
            }
        }
    ),
    "Content": {
        "anyOf": [
            _TEXT,
            {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {"type": {"const": "text"}, "text": _TEXT},
                    "required": ["type", "text"],
                },
            },
        ]
    },
    "Message": {
        "anyOf": [
            _message("system", "developer", "user", "assistant"),
            {
                **_message("assistant", tool_calls={"type": "array", "items": _named("Call"), "minItems": 1}),
                "required": ["role", "tool_calls"],
            },
            _message("tool", tool_call_id=_TEXT),
        ]
    },
    "Call": _object(
        {"id": _TEXT, "function": _object({"name": _NAME, "arguments": {**_TEXT, "examples": ["{}"]}})},
        {"type": {"const": "function"}},
    ),
    "Tool": _object(
        {
            "type": {"const": "function"},
            "function": _object(
                {"name": _NAME},
                {
                    "description": _or_null(_TEXT),
                    "strict": _or_null(_FLAG),
                    "parameters": _or_null(
                        {"type": "object", "properties": {"type": {"const": "object"}}, "required": ["type"]}
                    ),
                },
            ),
        }
    ),
    "ChatRequest": _request(
        {"messages": {"type": "array", "items": _named("Message"), "minItems": 1}},
        {
            "max_tokens": {"type": "integer", "minimum": 1},
            "max_completion_tokens": {"type": "integer", "minimum": 1},
            "tools": {"type": "array", "items": _named("Tool"), "maxItems": MAX_TOOLS},
            "tool_choice": {
                "anyOf": [
                    {"enum": ["none", "auto", "required"]},
                    _object({"type": {"const": "function"}, "function": _object({"name": _NAME})}),
                ]
            },
            "parallel_tool_calls": _FLAG,
            "logprobs": _FLAG,
            "top_logprobs": {"type": "integer", "minimum": 0, "maximum": MAX_TOP_LOGPROBS},
        },
    ),
    "CompletionRequest": _request(
        {"prompt": _texts(MAX_CHOICES)},
        {
            "max_tokens": {"type": "integer", "minimum": 1},
            "logprobs": {"type": "integer", "minimum": 0, "maximum": MAX_TOP_LOGPROBS},
        },
    ),
    "Usage": _COUNTS,
    "ChatAnswer": _answer(
        "chat.completion",
        _object(
            {
                "index": _COUNT,
                "message": {
                    "type": "object",
                    "properties": {"role": {"const": "assistant"}, "content": _or_null(_TEXT)},
                    "required": ["role", "content"],
                },
                "logprobs": _or_null({"type": "object"}),
                "finish_reason": {"enum": ["stop", "length", "tool_calls"]},
            }
        ),
    ),
    "CompletionAnswer": _answer(
        "text_completion",
        _object(
            {
                "index": _COUNT,
                "text": _TEXT,
                "logprobs": _or_null({"type": "object"}),
                "finish_reason": {"enum": ["stop", "length"]},
            }
        ),
    ),
    "EmbeddingRequest": _request(
        {"input": _texts(MAX_EMBEDDING_INPUTS)},
        {
            "model": _TEXT,
            "encoding_format": {"enum": ["float", "base64"]},
            "dimensions": {"type": "integer", "minimum": 1},
            "user": {**_TEXT, "description": "changes nothing here"},
        },
        {},
    ),
    "Embeddings": _object(
        {
            "object": {"const": "list"},
            "data": {
                "type": "array",
                "items": _object(
                    {
                        "object": {"const": "embedding"},
                        "index": _COUNT,
                        "embedding": {"anyOf": [_TEXT, {"type": "array", "items": {"type": "number"}}]},
                    }
                ),
            },
            "model": _TEXT,
            "usage": _object({"prompt_tokens": _COUNT, "total_tokens": _COUNT}),
        }
    ),
    "Models": _object(
        {
            "object": {"const": "list"},
            "data": {
                "type": "array",
                "items": _object(
                    {
                        "id": _TEXT,
                        "object": {"const": "model"},
                        "created": _COUNT,
                        "owned_by": _TEXT,
                        "context_length": _COUNT,
                        "embeddings": _FLAG,
                    }
                ),
            },
        }
    ),
    "Health": _object(
        {
            "status": {"enum": ["ok", "unavailable", "ending"]},
            "slots": _COUNT,
            "running": _COUNT,
            "waiting": _COUNT,
        },
        {"reason": _TEXT},
    ),
    "TokenizeRequest": {
        **_object({"content": _TEXT}, {"add_special": _or_null(_FLAG), "parse_special": _or_null(_FLAG)}),
        "additionalProperties": {"type": "null"},
    },
    "Tokens": _object({"tokens": {"type": "array", "items": _COUNT}, "count": _COUNT}),
    "DetokenizeRequest": {
        **_object({"tokens": {"type": "array", "items": _COUNT, "maxItems": MAX_DETOKENIZED_TOKENS}}),
        "additionalProperties": {"type": "null"},
    },
    "Text": _object({"content": _TEXT}),
}


def _json(name: str) -> Schema:
    return {"application/json": {"schema": _named(name)}}


def _operation(what: str, content: Schema, body: str | None = None, **more: Any) -> Schema:
    errors = {
        status: {"description": meaning, "content": _json("Error")}
        for status, meaning in (("4XX", "It is refused."), ("5XX", "It failed, or cannot be done now."))
    }
    taken = {} if body is None else {"requestBody": {"required": True, "content": _json(body)}}
    answered = {"200": {"description": "It is done.", "content": content}, **errors}
    return {"summary": what, **taken, "responses": answered, **more}


def _answering(what: str, body: str, answer: str) -> Schema:
    """An operation whose answer may be a stream."""
    stream = {"text/event-stream": {"schema": {**_TEXT, "description": "chunks as JSON, then [DONE]"}}}
    return {"post": _operation(what, {**_json(answer), **stream}, body)}


def _health() -> Schema:
    operation = _operation("Whether answers can be expected.", _json("Health"), security=[])
    operation["responses"]["503"] = {"description": "Not at the moment.", "content": _json("Health")}
    return operation


_PATHS: dict[str, Schema] = {
    "/v1/chat/completions": _answering("Answer a conversation.", "ChatRequest", "ChatAnswer"),
    "/v1/completions": _answering("Continue a text.", "CompletionRequest", "CompletionAnswer"),
    "/v1/embeddings": {"post": _operation("The vectors of texts.", _json("Embeddings"), "EmbeddingRequest")},
    "/v1/models": {"get": _operation("The model.", _json("Models"))},
    "/tokenize": {"post": _operation("A text's tokens.", _json("Tokens"), "TokenizeRequest")},
    "/detokenize": {"post": _operation("Tokens' text.", _json("Text"), "DetokenizeRequest")},
    "/health": {"get": _health()},
    "/metrics": {"get": _operation("Figures for Prometheus.", {"text/plain": {"schema": _TEXT}})},
    "/openapi.json": {
        "get": _operation(
            "This description.", {"application/json": {"schema": {"type": "object"}}}, security=[]
        )
    },
}


def openapi_document(*, with_key: bool) -> dict[str, Any]:
    """The whole of it.

    Args:
        with_key: whether clients must bring an API key.
    """
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "pigguf serve",
            "version": version("pigguf"),
            "description": "A model for many clients, as OpenAI's API does it.",
        },
        "paths": _PATHS,
        "components": {
            "schemas": _SCHEMAS,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}] if with_key else [],
    }
