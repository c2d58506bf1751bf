"""Typed reads of a JSON config: what a key must hold, and which file, key and value to blame.

Whole numbers in these files are counts and lengths, so one is at least 1 and fits 32 bits, as
GGUF's u32 keys do. null means what absence means, as it does to transformers.
Left out: which keys there are and what they mean.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, TypeVar

from pigguf.errors import CheckpointError

T = TypeVar("T")

MAX_COUNT = 2**32 - 1
_NAMES = {int: "a whole number above 0", float: "a finite number", str: "a text", bool: "true or false"}


class Config:
    """The keys of one JSON object; `prefix` says where in the file it lies ("rope_scaling.")."""

    def __init__(self, values: Mapping[str, Any], file: str = "config.json", prefix: str = "") -> None:
        self.values = values
        self.file = file
        self.prefix = prefix

    def __contains__(self, key: str) -> bool:
        """Whether the key is there and not null."""
        return self.values.get(key) is not None

    def require(self, key: str, kind: type[T]) -> T:
        """The value of a key that must be there, as int, float, str or bool.

        Raises:
            CheckpointError: the key is missing or holds something else.
        """
        if key not in self:
            raise CheckpointError(f"{self.file} lacks {self.prefix}{key}", f"it should hold {_NAMES[kind]}")
        return self._read(key, kind)

    def optional(self, key: str, kind: type[T], default: T) -> T:
        """Like require, with a default where the key is missing or null."""
        return self._read(key, kind) if key in self else default

    def section(self, key: str) -> Config | None:
        """The object under a key, or None where there is none or an empty one.

        Raises:
            CheckpointError: the key holds something that is not an object.
        """
        value = self.values.get(key)
        if value is None or value == {}:
            return None
        if not isinstance(value, dict):
            raise self.invalid(key, "an object or null")
        return Config(value, self.file, f"{self.prefix}{key}.")

    def says(self, key: str) -> str:
        """The key with its value, for messages: `config.json: rope_scaling.factor = 4.0`."""
        return f"{self.file}: {self.prefix}{key} = {as_json(self.values[key])}"

    def invalid(self, key: str, expected: str) -> CheckpointError:
        return CheckpointError(
            f"{self.says(key)} is not {expected}", f"correct {self.file}, or download it again"
        )

    def _read(self, key: str, kind: type[T]) -> T:
        value: Any = self.values[key]
        if kind is int and isinstance(value, float) and value.is_integer():
            value = int(value)
        if kind is float and type(value) is int:
            value = float(value) if abs(value) < 2**1023 else math.inf
        valid = type(value) is kind  # a bool is no int here
        if kind is int:
            valid = valid and 1 <= value <= MAX_COUNT
        if kind is float:
            valid = valid and math.isfinite(value)
        if not valid:
            raise self.invalid(key, _NAMES[kind])
        result: T = value
        return result


def as_json(value: Any) -> str:
    """A value as the file spells it, cut where it is long."""
    text = json.dumps(value)
    return text if len(text) <= 200 else text[:200] + "..."
