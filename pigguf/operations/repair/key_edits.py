"""Keys that a user sets or removes: which may be changed, and values given as text.

A value is JSON, or bare text for a string. A key that is present keeps its type; a new one states it
("u32:5", "str[]:[...]"), except the few whose type is known.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from pigguf.errors import UsageError
from pigguf.gguf_io import GGUFFile
from pigguf.gguf_io.metadata import Metadata, TypedValue, ValueType, f32
from pigguf.operations.lint import POSITION_KEYS

# Keys that a file may lack and whose type is known (gguf-py constants.py).
_OPTIONAL_KEYS: dict[str, ValueType] = {
    **dict.fromkeys(
        (
            *("general.name", "general.author", "general.version", "general.organization"),
            *("general.basename", "general.finetune", "general.description", "general.quantized_by"),
            *("general.size_label", "general.license", "general.license.name", "general.license.link"),
            *("general.url", "general.repo_url", "general.source.url", "general.source.repo_url"),
            *("tokenizer.chat_template", "tokenizer.ggml.pre"),
        ),
        "str",
    ),
    **dict.fromkeys((f"tokenizer.ggml.{name}_token_id" for name in ("bos", "eos", "eot", "padding")), "u32"),
    **dict.fromkeys((f"tokenizer.ggml.add_{name}" for name in ("bos_token", "eos_token")), "bool"),
}
# Keys that describe the tensors or the files, and why they must stay.
_FIXED_KEYS = {
    "general.architecture": "it states what the tensors are",
    "general.alignment": "it states how the tensor data is aligned",
    **dict.fromkeys(
        ("split.no", "split.count", "split.tensors.count"), "it states how the model is split into files"
    ),
}
_PER_TOKEN_KEYS = tuple(f"tokenizer.ggml.{name}" for name in ("tokens", "scores", "token_type"))
_MAX_KEY_BYTES = 65535  # ggml docs/gguf.md

_TYPE_PREFIX = re.compile(r"(?P<kind>[ui](8|16|32|64)|f32|f64|bool|str)(?P<array>\[\])?:")
_DESCRIPTIONS = {"f32": "a number that f32 holds", "f64": "a number that f64 holds", "bool": "true or false"}
_MAX_F32 = float(np.finfo(np.float32).max)
_SET_HINT = (
    "for example `set=general.name=Piglet`, or with a type: `set=my.key=u32:5`, `set=my.list=i32[]:[1, 2]`"
)


@dataclass(frozen=True)
class KeyChange:
    """A key that is changed.

    Attributes:
        key: The key's full name.
        old: The value before, or None for a new key.
        new: The value after, or None for a removed key.
    """

    key: str
    old: TypedValue | None
    new: TypedValue | None


def key_changes(old: Metadata, new: Metadata) -> tuple[KeyChange, ...]:
    """Return the keys that differ: those of `old` in its order, then the new ones."""
    return tuple(
        KeyChange(key, old.get(key), new.get(key))
        for key in dict.fromkeys((*old, *new))
        if not _is_same(old.get(key), new.get(key))
    )


def _is_same(old: TypedValue | None, new: TypedValue | None) -> bool:
    return old is new or old == new  # NaN is not equal to itself, but is the same object


def with_changes(metadata: Metadata, changes: Iterable[KeyChange]) -> dict[str, TypedValue]:
    """Return metadata with the changes applied; new keys are last."""
    changed = dict(metadata)
    for change in changes:
        if change.new is None:
            del changed[change.key]
        else:
            changed[change.key] = change.new
    return changed


def edit_keys(
    file: GGUFFile, edits: Mapping[str, str | TypedValue], removed: Collection[str]
) -> dict[str, TypedValue]:
    """Return a file's metadata with keys set and removed.

    Args:
        file: The file's header.
        edits: Keys with their values, as text or with their types.
        removed: Keys to remove.

    Raises:
        UsageError: A key must not be changed or is not present, or a value does not fit its type.
    """
    metadata = dict(file.metadata)
    for key in (*edits, *removed):
        if key in _FIXED_KEYS:
            raise UsageError(f"{key} cannot be changed: {_FIXED_KEYS[key]}", "convert the model again")
    for key in removed:
        if key in edits:
            raise UsageError(f"{key} is both set and removed", "give only one of `set` and `remove` for it")
        if key not in metadata:
            raise UsageError(
                f"{file.path} has no key {key}", f"`pigguf inspect --keys {file.path}` lists them"
            )
        metadata.pop(key)
    for key, value in edits.items():
        if not key or len(key.encode("utf-8", "replace")) > _MAX_KEY_BYTES:
            raise UsageError(f"{key[:80]!r} cannot be a key", _SET_HINT)
        metadata[key] = _parse_value(file, key, value) if isinstance(value, str) else value
    _check_token_lists(file.metadata, metadata)
    return metadata


def _check_token_lists(old_metadata: Metadata, new_metadata: Metadata) -> None:
    """Raise UsageError if a list with an entry for each token would get another length."""
    for key in _PER_TOKEN_KEYS:
        old, new = old_metadata.get(key), new_metadata.get(key)
        if old is not None and (new is None or not new.is_array or len(new.value) != len(old.value)):
            raise UsageError(
                f"{key} must keep its length of {len(old.value)}: the weights have a row for each token",
                "convert the checkpoint again with the right tokenizer",
            )


def _parse_value(file: GGUFFile, key: str, text: str) -> TypedValue:
    """Return a value given as text, in the type that the key must have, has, or is given."""
    kind, is_array, text = _type_and_text(file, key, text)
    try:
        if not is_array:
            return TypedValue(kind, _checked(kind, text if kind == "str" else json.loads(text)))
        values = json.loads(text)
        if not isinstance(values, list):
            raise ValueError
        return TypedValue(kind, tuple(_checked(kind, value) for value in values), is_array=True)
    except (ValueError, RecursionError):
        expected = (
            f"a JSON array of {kind}"
            if is_array
            else _DESCRIPTIONS.get(kind, f"a whole number that {kind} holds")
        )
        raise UsageError(f"{key}: {text[:80]!r} is not {expected}", _SET_HINT) from None


def _type_and_text(file: GGUFFile, key: str, text: str) -> tuple[ValueType, bool, str]:
    """Return a value's type, whether it is an array, and its text without a type prefix."""
    required, present = POSITION_KEYS.get(key.removeprefix(f"{file.architecture}.")), file.metadata.get(key)
    prefix = _TYPE_PREFIX.match(text)
    if prefix is not None:
        kind, is_array = cast(ValueType, prefix["kind"]), prefix["array"] is not None
        if required is not None and (kind, is_array) != (required, False):
            raise UsageError(
                f"{key} cannot be {kind}{'[]' if is_array else ''}: llama.cpp accepts only {required}",
                f"give it as `set={key}={required}:VALUE`",
            )
        return kind, is_array, text[prefix.end() :]
    if required is not None:
        return required, False, text
    if present is not None:
        return present.type, present.is_array, text
    if key in _OPTIONAL_KEYS:
        return _OPTIONAL_KEYS[key], False, text
    raise UsageError(f"{key} is a new key of an unknown type", _SET_HINT)


def _checked(kind: ValueType, value: Any) -> Any:
    """Return a value as JSON gives it, if the type holds it.

    Raises:
        ValueError: It does not.
    """
    if kind == "str":
        if isinstance(value, str):
            return value
    elif kind == "bool":
        if isinstance(value, bool):
            return value
    elif isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError
    elif kind in ("f32", "f64"):
        number = _to_single(float(value)) if kind == "f32" else float(value)
        if math.isfinite(number):
            return number
    elif isinstance(value, int):
        bits, signed = int(kind[1:]), kind[0] == "i"
        if (-(1 << (bits - 1)) if signed else 0) <= value < 1 << (bits - signed):
            return value
    raise ValueError


def _to_single(number: float) -> float:
    """Return a number in single precision; infinity if it is too large for it."""
    return f32(number).value if abs(number) <= _MAX_F32 else math.inf
