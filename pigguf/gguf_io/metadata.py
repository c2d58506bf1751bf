"""GGUF metadata as pigguf holds it between steps: keys with typed values, in file order.

Upstream names and types: ggml's docs/gguf.md and gguf-py constants.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np

from pigguf.errors import GGUFError

Kind = Literal["u8", "i8", "u16", "i16", "u32", "i32", "u64", "i64", "f32", "f64", "bool", "str"]


class Typed(NamedTuple):
    """A value with its GGUF type; an array's `value` is a tuple of elements of type `kind`."""

    kind: Kind
    value: Any
    is_array: bool = False


Metadata = Mapping[str, Typed]

T = TypeVar("T")

# The hint for keys that no converter of this sort would write.
ANOTHER_MAKE = "the file is damaged or was made by something else: convert the checkpoint again"


def u32(value: int) -> Typed:
    return Typed("u32", value)


def f32(value: float) -> Typed:
    """The value as a file will hold it: 1e-5 becomes 9.999999747378752e-06."""
    return Typed("f32", float(np.float32(value)))


def shortest_f32(value: float) -> float:
    """The shortest decimal that is the same single-precision number: 1e-05 for 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def boolean(value: bool) -> Typed:
    return Typed("bool", value)


def string(value: str) -> Typed:
    return Typed("str", value)


def array(kind: Kind, values: tuple[Any, ...]) -> Typed:
    return Typed(kind, values, is_array=True)


def get(metadata: Metadata, key: str, expected: type[T], default: T | None = None) -> T | None:
    """The plain value of a scalar key, or `default` where the key is absent.

    Raises:
        GGUFError: the key holds another type than `expected` (int is accepted for float).
    """
    typed = metadata.get(key)
    if typed is None:
        return default
    value = typed.value
    if expected is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)  # type: ignore[return-value]
    wrong_bool = isinstance(value, bool) and expected is not bool
    if typed.is_array or wrong_bool or not isinstance(value, expected):
        kept = f"{typed.kind}{'[]' if typed.is_array else ''}"
        raise GGUFError(f"metadata key {key} is {kept}, not {expected.__name__}", ANOTHER_MAKE)
    return value


def need(metadata: Metadata, key: str, expected: type[T]) -> T:
    """Like get, for a key that must be there.

    Raises:
        GGUFError: the key is missing or of another type.
    """
    value = get(metadata, key, expected)
    if value is None:
        raise GGUFError(f"metadata key {key} is missing", ANOTHER_MAKE)
    return value


def elements(metadata: Metadata, key: str) -> tuple[Any, ...] | None:
    """An array key's elements, or None where the key is absent.

    Raises:
        GGUFError: the key is not an array.
    """
    typed = metadata.get(key)
    if typed is None:
        return None
    if not typed.is_array:
        raise GGUFError(f"metadata key {key} is {typed.kind}, not an array", ANOTHER_MAKE)
    return tuple(typed.value)
