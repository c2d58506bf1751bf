"""The OpenAPI 3.1 description of the server's API, as data.

tests/serve/test_openapi.py compares it with the fields that the request parsers read, and with a real
server's responses. Not here: the routes of the chat page, and what the fields mean (OpenAI's API reference).
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from pigguf.serve.limits import MAX_DETOKENIZED_TOKENS
from pigguf.serve.openai_fields import IGNORED_PARAMETERS, UNSUPPORTED_PARAMETERS
from pigguf.serve.openai_requests import (
    MAX_CHOICES,
    MAX_EMBEDDING_INPUTS,
    MAX_STOP_STRINGS,
    MAX_TOP_LOGPROBS,
)
from pigguf.serve.openai_tools import MAX_TOOLS

Schema = dict[str, Any]

_STRING: Schema = {"type": "string"}
_BOOLEAN: Schema = {"type": "boolean"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_NAME: Schema = {"type": "string", "pattern": "^[a-zA-Z0-9_-]{1,64}$"}
_TOKENS: Schema = {"type": "array", "items": _COUNT, "minItems": 1}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _number_schema(**limits: float) -> Schema:
    return {"type": "number", "minimum": -3e38, "maximum": 3e38, **limits}


def _object_schema(required: dict[str, Schema], optional: dict[str, Schema] | None = None) -> Schema:
    """Return the schema of an object with these properties and no others."""
    return {
        "type": "object",
        "properties": {**required, **(optional or {})},
        "required": list(required),
        "additionalProperties": False,
    }


def _prompts(maximum: int) -> Schema:
    """Return the schema of a text or token ids, or of a list of at most `maximum` of these."""
    many = {"type": "array", "items": {"anyOf": [_STRING, _TOKENS]}, "minItems": 1, "maxItems": maximum}
    return {"anyOf": [_STRING, _TOKENS, many]}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _message_schema(*roles: str, **more: Schema) -> Schema:
    """Return the schema of a message of these roles."""
    required = {"role": {"enum": [*roles]}, "content": _ref("Content"), **more}
    return {**_object_schema(required, {"name": _or_null(_NAME)}), "additionalProperties": {"type": "null"}}


def _request_schema(
    required: dict[str, Schema], optional: dict[str, Schema], shared: dict[str, Schema] | None = None
) -> Schema:
    """Return the schema of a request's body, whose fields may be null.

    Args:
        shared: fields besides the required and optional ones; by default _COMPLETION_PARAMETERS.
    """
    shared = _COMPLETION_PARAMETERS if shared is None else shared
    unsupported = {
        name: {"enum": [*values]} for name, values in UNSUPPORTED_PARAMETERS.items() if name not in required
    }
    ignored: dict[str, Schema] = {name: {} for name in IGNORED_PARAMETERS if name not in optional}
    others = {name: _or_null(schema) for name, schema in {**unsupported, **shared, **optional}.items()}
    return {**_object_schema(required, {**others, **ignored}), "additionalProperties": {"type": "null"}}


# Parameters of both chat completions and completions.
_COMPLETION_PARAMETERS: dict[str, Schema] = {
    "model": _STRING,
    "stream": _BOOLEAN,
    "stream_options": _object_schema(
        {}, {"include_usage": _or_null(_BOOLEAN), "include_obfuscation": {"description": "has no effect"}}
    ),
    "return_progress": {
        **_BOOLEAN,
        "description": "report prefill progress in chunks (as llama.cpp's server)",
    },
    "seed": {"type": "integer"},
    "n": {"type": "integer", "minimum": 1, "maximum": MAX_CHOICES},
    "stop": {
        "anyOf": [
            {**_STRING, "minLength": 1},
            {"type": "array", "items": {**_STRING, "minLength": 1}, "maxItems": MAX_STOP_STRINGS},
        ]
    },
    "temperature": _number_schema(minimum=0),
    "top_p": _number_schema(minimum=0, exclusiveMinimum=0, maximum=1),
    "top_k": {"type": "integer", "minimum": 0, "maximum": 2**31 - 1},
    "min_p": _number_schema(minimum=0, maximum=1),
    "repeat_penalty": _number_schema(exclusiveMinimum=0),
    "frequency_penalty": _number_schema(),
    "presence_penalty": _number_schema(),
    "response_format": {
        "oneOf": [
            _object_schema({"type": {"enum": ["text", "json_object"]}}, {"json_schema": {}}),
            _object_schema(
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
    "user": {**_STRING, "description": "counts as a client of its own in scheduling"},
    "safety_identifier": _STRING,
}

_USAGE = _object_schema(
    {"prompt_tokens": _COUNT, "completion_tokens": _COUNT, "total_tokens": _COUNT},
    {"prompt_tokens_details": _object_schema({"cached_tokens": _COUNT})},
)


def _completion_response(kind: str, choice: Schema) -> Schema:
    """Return the schema of a response that is not a stream."""
    return _object_schema(
        {
            "id": _STRING,
            "object": {"const": kind},
            "created": _COUNT,
            "model": _STRING,
            "choices": {"type": "array", "items": choice, "minItems": 1},
            "usage": _ref("Usage"),
        }
    )


_SCHEMAS: dict[str, Schema] = {
    "Error": _object_schema(
        {
            "error": {
                "type": "object",
                "properties": {
                    "message": _STRING,
                    "type": _STRING,
                    "param": _or_null(_STRING),
                    "code": _or_null(_STRING),
                    "prompt_tokens": _COUNT,
                    "context_length": _COUNT,
                },
                "required": ["message", "type", "param", "code"],
            }
        }
    ),
    "Content": {
        "anyOf": [
            _STRING,
            {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {"type": {"const": "text"}, "text": _STRING},
                    "required": ["type", "text"],
                },
            },
        ]
    },
    "Message": {
        "anyOf": [
            _message_schema("system", "developer", "user", "assistant"),
            {
                **_message_schema(
                    "assistant", tool_calls={"type": "array", "items": _ref("Call"), "minItems": 1}
                ),
                "required": ["role", "tool_calls"],
            },
            _message_schema("tool", tool_call_id=_STRING),
        ]
    },
    "Call": _object_schema(
        {
            "id": _STRING,
            "function": _object_schema({"name": _NAME, "arguments": {**_STRING, "examples": ["{}"]}}),
        },
        {"type": {"const": "function"}},
    ),
    "Tool": _object_schema(
        {
            "type": {"const": "function"},
            "function": _object_schema(
                {"name": _NAME},
                {
                    "description": _or_null(_STRING),
                    "strict": _or_null(_BOOLEAN),
                    "parameters": _or_null(
                        {"type": "object", "properties": {"type": {"const": "object"}}, "required": ["type"]}
                    ),
                },
            ),
        }
    ),
    "ChatRequest": _request_schema(
        {"messages": {"type": "array", "items": _ref("Message"), "minItems": 1}},
        {
            "max_tokens": {"type": "integer", "minimum": 1},
            "max_completion_tokens": {"type": "integer", "minimum": 1},
            "tools": {"type": "array", "items": _ref("Tool"), "maxItems": MAX_TOOLS},
            "tool_choice": {
                "anyOf": [
                    {"enum": ["none", "auto", "required"]},
                    _object_schema(
                        {"type": {"const": "function"}, "function": _object_schema({"name": _NAME})}
                    ),
                ]
            },
            "parallel_tool_calls": _BOOLEAN,
            "logprobs": _BOOLEAN,
            "top_logprobs": {"type": "integer", "minimum": 0, "maximum": MAX_TOP_LOGPROBS},
        },
    ),
    "CompletionRequest": _request_schema(
        {"prompt": _prompts(MAX_CHOICES)},
        {
            "max_tokens": {"type": "integer", "minimum": 1},
            "logprobs": {"type": "integer", "minimum": 0, "maximum": MAX_TOP_LOGPROBS},
        },
    ),
    "Usage": _USAGE,
    "ChatAnswer": _completion_response(
        "chat.completion",
        _object_schema(
            {
                "index": _COUNT,
                "message": {
                    "type": "object",
                    "properties": {"role": {"const": "assistant"}, "content": _or_null(_STRING)},
                    "required": ["role", "content"],
                },
                "logprobs": _or_null({"type": "object"}),
                "finish_reason": {"enum": ["stop", "length", "tool_calls"]},
            }
        ),
    ),
    "CompletionAnswer": _completion_response(
        "text_completion",
        _object_schema(
            {
                "index": _COUNT,
                "text": _STRING,
                "logprobs": _or_null({"type": "object"}),
                "finish_reason": {"enum": ["stop", "length"]},
            }
        ),
    ),
    "EmbeddingRequest": _request_schema(
        {"input": _prompts(MAX_EMBEDDING_INPUTS)},
        {
            "model": _STRING,
            "encoding_format": {"enum": ["float", "base64"]},
            "dimensions": {"type": "integer", "minimum": 1},
            "user": {**_STRING, "description": "has no effect"},
        },
        {},
    ),
    "Embeddings": _object_schema(
        {
            "object": {"const": "list"},
            "data": {
                "type": "array",
                "items": _object_schema(
                    {
                        "object": {"const": "embedding"},
                        "index": _COUNT,
                        "embedding": {"anyOf": [_STRING, {"type": "array", "items": {"type": "number"}}]},
                    }
                ),
            },
            "model": _STRING,
            "usage": _object_schema({"prompt_tokens": _COUNT, "total_tokens": _COUNT}),
        }
    ),
    "Models": _object_schema(
        {
            "object": {"const": "list"},
            "data": {
                "type": "array",
                "items": _object_schema(
                    {
                        "id": _STRING,
                        "object": {"const": "model"},
                        "created": _COUNT,
                        "owned_by": _STRING,
                        "context_length": _COUNT,
                        "embeddings": _BOOLEAN,
                    }
                ),
            },
        }
    ),
    "Health": _object_schema(
        {
            "status": {"enum": ["ok", "unavailable", "ending"]},
            "slots": _COUNT,
            "running": _COUNT,
            "waiting": _COUNT,
        },
        {"reason": _STRING},
    ),
    "TokenizeRequest": {
        **_object_schema(
            {"content": _STRING}, {"add_special": _or_null(_BOOLEAN), "parse_special": _or_null(_BOOLEAN)}
        ),
        "additionalProperties": {"type": "null"},
    },
    "Tokens": _object_schema({"tokens": {"type": "array", "items": _COUNT}, "count": _COUNT}),
    "DetokenizeRequest": {
        **_object_schema({"tokens": {"type": "array", "items": _COUNT, "maxItems": MAX_DETOKENIZED_TOKENS}}),
        "additionalProperties": {"type": "null"},
    },
    "Text": _object_schema({"content": _STRING}),
}


def _json_content(name: str) -> Schema:
    return {"application/json": {"schema": _ref(name)}}


def _operation(summary: str, content: Schema, body: str | None = None, **more: Any) -> Schema:
    errors = {
        status: {"description": meaning, "content": _json_content("Error")}
        for status, meaning in (
            ("4XX", "The request is refused."),
            ("5XX", "The server failed, or is unavailable."),
        )
    }
    request = {} if body is None else {"requestBody": {"required": True, "content": _json_content(body)}}
    responses = {"200": {"description": "Success.", "content": content}, **errors}
    return {"summary": summary, **request, "responses": responses, **more}


def _completion_operation(summary: str, body: str, response: str) -> Schema:
    """Return an operation whose response may be a stream."""
    stream = {"text/event-stream": {"schema": {**_STRING, "description": "chunks as JSON, then [DONE]"}}}
    return {"post": _operation(summary, {**_json_content(response), **stream}, body)}


def _health_operation() -> Schema:
    operation = _operation("Whether the model is available.", _json_content("Health"), security=[])
    operation["responses"]["503"] = {
        "description": "The model is unavailable.",
        "content": _json_content("Health"),
    }
    return operation


_PATHS: dict[str, Schema] = {
    "/v1/chat/completions": _completion_operation("Create a chat completion.", "ChatRequest", "ChatAnswer"),
    "/v1/completions": _completion_operation("Create a completion.", "CompletionRequest", "CompletionAnswer"),
    "/v1/embeddings": {
        "post": _operation("Create embeddings.", _json_content("Embeddings"), "EmbeddingRequest")
    },
    "/v1/models": {"get": _operation("List the model.", _json_content("Models"))},
    "/tokenize": {"post": _operation("Tokenize a text.", _json_content("Tokens"), "TokenizeRequest")},
    "/detokenize": {"post": _operation("Detokenize token ids.", _json_content("Text"), "DetokenizeRequest")},
    "/health": {"get": _health_operation()},
    "/metrics": {"get": _operation("Metrics in Prometheus's format.", {"text/plain": {"schema": _STRING}})},
    "/openapi.json": {
        "get": _operation(
            "This OpenAPI description.", {"application/json": {"schema": {"type": "object"}}}, security=[]
        )
    },
}


def openapi_document(*, with_key: bool) -> dict[str, Any]:
    """Return the whole description.

    Args:
        with_key: whether clients must bring an API key.
    """
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "pigguf serve",
            "version": version("pigguf"),
            "description": "One model for many clients, with OpenAI's API.",
        },
        "paths": _PATHS,
        "components": {
            "schemas": _SCHEMAS,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}] if with_key else [],
    }
