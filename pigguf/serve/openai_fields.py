"""Fields of a JSON request body: each is read once with its type checked, and unknown ones are refused."""

from __future__ import annotations

import json
from typing import Any

from pigguf.serve.errors import RequestRefused

MAX_SCHEMA_CHARACTERS = 128 << 10  # of the JSON of a schema, or of all tools together
_MAX_NUMBER = 3e38  # a C float's

# Parameters that do not change the answer, whatever their value.
IGNORED_PARAMETERS = frozenset(
    (
        *("metadata", "parallel_tool_calls", "prompt_cache_key", "prompt_cache_retention"),
        *("service_tier", "store"),
    )
)
# Unsupported parameters -> the values with which they do not change the answer either.
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


def parse_json(data: bytes) -> Any:
    """Parse a request body.

    Raises:
        RequestRefused: it is not JSON, or is nested too deeply.
    """
    try:
        return json.loads(data, parse_constant=_refuse_constant)
    except RecursionError:
        raise RequestRefused(400, "the JSON is nested too deeply") from None
    except ValueError as error:
        raise RequestRefused(400, f"the body is not JSON: {error}") from None


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def invalid_value(name: str, rule: str) -> RequestRefused:
    """Return the error that the parameter `name` must be what `rule` says."""
    return RequestRefused(400, f"{name} must be {rule}", param=name, code="invalid_value")


def check_schema_size(value: Any, name: str) -> None:
    """Raise if the parameter `name`, a schema, is too large: compiling it takes more than linear time.

    Raises:
        RequestRefused: its JSON is longer than MAX_SCHEMA_CHARACTERS.
    """
    if (length := len(json.dumps(value))) > MAX_SCHEMA_CHARACTERS:
        raise RequestRefused(
            400,
            f"{name} is {length:,} characters of JSON, and the limit is {MAX_SCHEMA_CHARACTERS:,}",
            "use a smaller schema, or fewer tools",
            param=name,
            code="schema_too_large",
        )


class RequestFields:
    """The fields of a JSON object, each to be read once. A field that is null counts as missing.

    Raises:
        RequestRefused: the body is not an object.
    """

    def __init__(self, body: Any) -> None:
        if not isinstance(body, dict):
            raise RequestRefused(400, "the body is not a JSON object")
        self._unread = {name: value for name, value in body.items() if value is not None}

    def take(self, name: str) -> Any:
        """Return a field of any type; None if it is missing."""
        return self._unread.pop(name, None)

    def string(self, name: str) -> str | None:
        """Return a string; None if it is missing. Raise RequestRefused for another type."""
        value = self.take(name)
        if value is not None and not isinstance(value, str):
            raise invalid_value(name, "a string")
        return value

    def boolean(self, name: str) -> bool:
        """Return a boolean; False if it is missing. Raise RequestRefused for another type."""
        value = self.take(name)
        if value is not None and not isinstance(value, bool):
            raise invalid_value(name, "true or false")
        return bool(value)

    def number(self, name: str) -> float | None:
        """Return a number; None if it is missing. Raise RequestRefused for another type."""
        value = self.take(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > _MAX_NUMBER:
            raise invalid_value(name, "a number")
        return float(value)

    def integer(self, name: str, minimum: int | None = None, maximum: int | None = None) -> int | None:
        """Return a whole number; None if it is missing.

        Raises:
            RequestRefused: it has another type, or is out of range.
        """
        value = self.take(name)
        if value is None:
            return None
        if isinstance(value, float) and value.is_integer():
            value = int(value)  # JSON has one number type
        if isinstance(value, bool) or not isinstance(value, int):
            raise invalid_value(name, "a whole number")
        if (minimum is not None and value < minimum) or (maximum is not None and value > maximum):
            upper = f" and at most {maximum}" if maximum is not None else ""
            raise invalid_value(name, f"at least {minimum}{upper}")
        return value

    def refuse_unread(self) -> None:
        """Raise if a field that was not read could change the answer.

        Raises:
            RequestRefused: a parameter is unknown, or not supported with its value.
        """
        for name, value in self._unread.items():
            if name in UNSUPPORTED_PARAMETERS and value not in UNSUPPORTED_PARAMETERS[name]:
                raise RequestRefused(
                    400, f"{name} is not supported", param=name, code="unsupported_parameter"
                )
            if name not in UNSUPPORTED_PARAMETERS and name not in IGNORED_PARAMETERS:
                raise RequestRefused(
                    400,
                    f"the parameter {name[:80]!r} is unknown",
                    "remove it: unknown parameters are refused, as they might be meant to change the answer",
                    param=name[:80],
                    code="unknown_parameter",
                )
