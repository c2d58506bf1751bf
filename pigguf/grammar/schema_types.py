"""JSON Schema's types: which keywords belong to each, and which values and types a schema accepts."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

NUMBER_KEYWORDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
TYPE_KEYWORDS: dict[str, frozenset[str]] = {
    "string": frozenset(("minLength", "maxLength", "pattern", "format")),
    "number": frozenset(NUMBER_KEYWORDS),
    "integer": frozenset(NUMBER_KEYWORDS),
    "boolean": frozenset(),
    "null": frozenset(),
    "array": frozenset(("items", "prefixItems", "additionalItems", "minItems", "maxItems", "uniqueItems")),
    "object": frozenset(("properties", "required", "additionalProperties")),
}
_PYTHON_TYPES: dict[str, type] = {"string": str, "array": list, "object": dict, "null": type(None)}


def is_of_type(value: Any, type_name: str) -> bool:
    """Return whether a JSON value is of a type by its name in JSON Schema; 1.0 is an integer."""
    if isinstance(value, bool):
        return type_name == "boolean"
    if isinstance(value, int | float):
        return type_name == "number" or (type_name == "integer" and value == int(value))
    return type_name in _PYTHON_TYPES and isinstance(value, _PYTHON_TYPES[type_name])


def listed_values(schema: Mapping[str, Any]) -> set[str] | None:
    """Return all values that a schema accepts, as JSON, if it lists them (const, enum); else None."""
    values = _const_or_enum(schema)
    if values is None:
        return None
    return {to_json(int(value) if is_of_type(value, "integer") else value) for value in values}


def possible_types(schema: Mapping[str, Any]) -> set[str]:
    """Return the types of the values that a schema accepts; an empty set if it does not state them."""
    stated = schema.get("type", [])
    types = set(stated) if isinstance(stated, list) else {stated}
    if not types:
        values = _const_or_enum(schema) or ()
        types = {
            name
            for name, keywords in TYPE_KEYWORDS.items()
            if keywords & schema.keys() or any(is_of_type(value, name) for value in values)
        }
    return types | {"integer"} if "number" in types else types


def _const_or_enum(schema: Mapping[str, Any]) -> list[Any] | None:
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    return values if isinstance(values, list) else None


def to_json(value: Any) -> str:
    """Return a value as JSON text, with escapes only where it needs them."""
    text = json.dumps(value, ensure_ascii=False)
    # lone surrogates cannot be encoded as UTF-8, only escaped
    return json.dumps(value) if re.search("[\ud800-\udfff]", text) else text
