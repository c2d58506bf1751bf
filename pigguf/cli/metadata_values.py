"""Format GGUF metadata values: as one line of text, or as JSON."""

from __future__ import annotations

import math
from typing import Any

from pigguf.gguf_io.metadata import TypedValue

_MAX_ELEMENTS = 6  # of an array, in text


def kind(typed: TypedValue) -> str:
    """Return the type, with an array's length: "f32", "str[49152]"."""
    return f"{typed.type}[{len(typed.value)}]" if typed.is_array else typed.type


def brief(typed: TypedValue) -> str:
    """Return the value as text; for an array its first elements."""
    if not typed.is_array:
        return repr(typed.value) if typed.type == "str" else str(typed.value)
    shown = ", ".join(repr(element) for element in typed.value[:_MAX_ELEMENTS])
    return f"[{shown}, ...]" if len(typed.value) > _MAX_ELEMENTS else f"[{shown}]"


def as_data(typed: TypedValue) -> dict[str, Any]:
    """Return the value with its type as JSON-serializable data."""
    return {"type": f"{typed.type}[]" if typed.is_array else typed.type, "value": plain(typed.value)}


def plain(value: Any) -> Any:
    """Return a value as JSON-serializable data, with infinities and NaN as strings."""
    if isinstance(value, tuple):
        return [plain(element) for element in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
