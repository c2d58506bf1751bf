"""GGUF keys for people and for programs: a typed value in a line, or as JSON."""

from __future__ import annotations

import math
from typing import Any

from pigguf.gguf_io.metadata import Typed

_SHOWN_ELEMENTS = 6  # of an array


def kind(typed: Typed) -> str:
    """The type, with an array's length: "f32", "str[49152]"."""
    return f"{typed.kind}[{len(typed.value)}]" if typed.is_array else typed.kind


def brief(typed: Typed) -> str:
    """The value; of an array its first elements."""
    if not typed.is_array:
        return repr(typed.value) if typed.kind == "str" else str(typed.value)
    shown = ", ".join(repr(element) for element in typed.value[:_SHOWN_ELEMENTS])
    return f"[{shown}, ...]" if len(typed.value) > _SHOWN_ELEMENTS else f"[{shown}]"


def as_data(typed: Typed) -> dict[str, Any]:
    """The value with its type, for JSON."""
    return {"type": f"{typed.kind}[]" if typed.is_array else typed.kind, "value": plain(typed.value)}


def plain(value: Any) -> Any:
    """A value as JSON has it: infinities and nan, which it lacks, by their names."""
    if isinstance(value, tuple):
        return [plain(element) for element in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
