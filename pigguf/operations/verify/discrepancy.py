"""How a file and a checkpoint differ in one thing, and when two values count as equal."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_RELATIVE_TOLERANCE = 1e-5  # rounding to single precision
_MAX_LENGTH = 60  # characters of a value in a description


@dataclass(frozen=True)
class Discrepancy:
    """Something in which the file is not as the checkpoint.

    Attributes:
        name: The key, tensor or rule.
        description: What it is in the file and by the checkpoint.
    """

    name: str
    description: str

    @classmethod
    def between(cls, name: str, in_file: Any, in_checkpoint: Any) -> Discrepancy:
        """Return the discrepancy of two values; None is an absent one."""
        return cls(name, f"{_brief(in_file)} in the file, {_brief(in_checkpoint)} by the checkpoint")


def values_match(one: Any, other: Any) -> bool:
    """Return whether two values are equal, with numbers up to the rounding of single precision."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(values_match(one[key], other[key]) for key in one)
    if isinstance(one, tuple | list) and isinstance(other, tuple | list):
        return len(one) == len(other) and all(map(values_match, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=_RELATIVE_TOLERANCE)
    return bool(one == other)


def _brief(value: Any) -> str:
    if value is None:
        return "nothing"
    text = f"{value:g}" if isinstance(value, float) else repr(value)
    return text if len(text) <= _MAX_LENGTH else f"{text[:_MAX_LENGTH]}..."
