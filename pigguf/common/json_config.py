"""Typed access to a JSON config such as config.json, with errors that name the file, the key and the value.

Integers in these files are counts and lengths: they must be at least 1 and fit 32 bits, as GGUF's u32 keys
do. null means the same as a missing key, as in transformers. Which keys there are, and what they mean, is
decided by the callers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, TypeVar

from pigguf.errors import CheckpointError

T = TypeVar("T")

MAX_COUNT = 2**32 - 1
_NAMES = {int: "an integer above 0", float: "a finite number", str: "a string", bool: "true or false"}


class JsonConfig:
    """The keys of one JSON object; `prefix` is its position in the file ("rope_scaling.")."""

    def __init__(self, values: Mapping[str, Any], file: str = "config.json", prefix: str = "") -> None:
        self.values = values
        self.file = file
        self.prefix = prefix

    def __contains__(self, key: str) -> bool:
        """Return whether the key is present and not null."""
        return self.values.get(key) is not None

    def require(self, key: str, kind: type[T]) -> T:
        """Return the value of a required key as `kind`: int, float, str or bool.

        Raises:
            CheckpointError: the key is missing or has a value of another type.
        """
        if key not in self:
            raise CheckpointError(f"{self.file} lacks {self.prefix}{key}", f"set it to {_NAMES[kind]}")
        return self._read(key, kind)

    def optional(self, key: str, kind: type[T], default: T) -> T:
        """Return the value of a key as `kind`, or `default` if the key is missing or null."""
        return self._read(key, kind) if key in self else default

    def section(self, key: str) -> JsonConfig | None:
        """Return the object under a key, or None if the key is missing, null or an empty object.

        Raises:
            CheckpointError: the key has a value that is not an object.
        """
        value = self.values.get(key)
        if value is None or value == {}:
            return None
        if not isinstance(value, dict):
            raise self.invalid_value(key, "an object or null")
        return JsonConfig(value, self.file, f"{self.prefix}{key}.")

    def describe(self, key: str) -> str:
        """Return the key with its value, for messages: `config.json: rope_scaling.factor = 4.0`."""
        return f"{self.file}: {self.prefix}{key} = {format_json_value(self.values[key])}"

    def invalid_value(self, key: str, expected: str) -> CheckpointError:
        """Return the error to raise for a key whose value is not what is expected."""
        return CheckpointError(
            f"{self.describe(key)} is not {expected}", f"correct {self.file}, or download it again"
        )

    def _read(self, key: str, kind: type[T]) -> T:
        value: Any = self.values[key]
        if kind is int and isinstance(value, float) and value.is_integer():
            value = int(value)
        if kind is float and type(value) is int:
            value = float(value) if abs(value) < 2**1023 else math.inf
        valid = type(value) is kind  # a bool is not an int here
        if kind is int:
            valid = valid and 1 <= value <= MAX_COUNT
        if kind is float:
            valid = valid and math.isfinite(value)
        if not valid:
            raise self.invalid_value(key, _NAMES[kind])
        result: T = value
        return result


def format_json_value(value: Any) -> str:
    """Format a value as JSON, cut after 200 characters."""
    text = json.dumps(value)
    return text if len(text) <= 200 else text[:200] + "..."
