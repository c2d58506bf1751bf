"""GGUF metadata: keys with typed values, in file order, and typed access to them.

Upstream names and types: ggml's docs/gguf.md and gguf-py constants.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np

from pigguf.errors import GGUFError

ValueType = Literal["u8", "i8", "u16", "i16", "u32", "i32", "u64", "i64", "f32", "f64", "bool", "str"]


class TypedValue(NamedTuple):
    """A value with its GGUF type; an array's `value` is a tuple of elements of type `kind`."""

    type: ValueType
    value: Any
    is_array: bool = False


Metadata = Mapping[str, TypedValue]

T = TypeVar("T")

# The hint for keys that no converter of such a model writes.
FOREIGN_FILE_HINT = "the file is damaged, or another program made it: convert the checkpoint again"


def u32(value: int) -> TypedValue:
    """Return a u32 value."""
    return TypedValue("u32", value)


def f32(value: float) -> TypedValue:
    """Return an f32 value, rounded as in a file: 1e-5 becomes 9.999999747378752e-06."""
    return TypedValue("f32", float(np.float32(value)))


def round_to_shortest_f32(value: float) -> float:
    """Return the shortest decimal with the same float32 value: 1e-05 for 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def boolean(value: bool) -> TypedValue:
    """Return a bool value."""
    return TypedValue("bool", value)


def string(value: str) -> TypedValue:
    """Return a string value."""
    return TypedValue("str", value)


def array(element_type: ValueType, values: tuple[Any, ...]) -> TypedValue:
    """Return an array value."""
    return TypedValue(element_type, values, is_array=True)


def get_value(metadata: Metadata, key: str, expected: type[T], default: T | None = None) -> T | None:
    """Return the value of a scalar key, or `default` if the key is missing.

    Raises:
        GGUFError: the value is not of the type `expected` (int is accepted for float).
    """
    typed = metadata.get(key)
    if typed is None:
        return default
    value = typed.value
    if expected is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)  # type: ignore[return-value]
    wrong_bool = isinstance(value, bool) and expected is not bool
    if typed.is_array or wrong_bool or not isinstance(value, expected):
        actual = f"{typed.type}{'[]' if typed.is_array else ''}"
        raise GGUFError(f"metadata key {key} is {actual}, not {expected.__name__}", FOREIGN_FILE_HINT)
    return value


def require_value(metadata: Metadata, key: str, expected: type[T]) -> T:
    """Return the value of a required scalar key.

    Raises:
        GGUFError: the key is missing or of another type.
    """
    value = get_value(metadata, key, expected)
    if value is None:
        raise GGUFError(f"metadata key {key} is missing", FOREIGN_FILE_HINT)
    return value


def get_array(metadata: Metadata, key: str) -> tuple[Any, ...] | None:
    """Return the elements of an array key, or None if the key is missing.

    Raises:
        GGUFError: the key is not an array.
    """
    typed = metadata.get(key)
    if typed is None:
        return None
    if not typed.is_array:
        raise GGUFError(f"metadata key {key} is {typed.type}, not an array", FOREIGN_FILE_HINT)
    return tuple(typed.value)
