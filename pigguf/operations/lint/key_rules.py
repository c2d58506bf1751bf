"""Rules about single keys: their types, and values that no model can have."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from pigguf.gguf_io.metadata import TypedValue, ValueType, boolean, f32, u32
from pigguf.llama_cpp_internals.rope_keys import GGUF_ROPE_TYPES
from pigguf.operations.lint.findings import LintFinding, SuggestedFix
from pigguf.operations.lint.fix_suggestions import scaling_type_fixes
from pigguf.operations.lint.model_names import rope_theta_from_name
from pigguf.operations.lint.position_keys import (
    CONTEXT_LENGTH,
    DIMENSION_COUNT,
    FREQ_BASE,
    ORIGINAL_CONTEXT_LENGTH,
    POSITION_KEYS,
    SCALING_FACTOR,
    SCALING_TYPE,
    PositionKeys,
)
from pigguf.rope import RopeOverrides
from pigguf.rope.rope_scaling import DEFAULT_ROPE_THETA

# Architectures whose loader requires full rotary (llama-model.cpp, "invalid n_rot").
_FULL_ROTARY = ("llama", "deci", "falcon", "llama-embed")
_MAX_F32 = float(np.finfo(np.float32).max)
_BOOLEANS = {"0": False, "1": True, "false": False, "true": True}


def wrong_types(keys: PositionKeys) -> Iterator[LintFinding]:
    """Yield each key whose type llama.cpp refuses."""
    for key, kind in POSITION_KEYS.items():
        typed = keys.typed(key)
        if typed is None or (typed.type == kind and not typed.is_array):
            continue
        stored = f"{typed.type}[]" if typed.is_array else typed.type
        converted = _converted(keys, key, kind)
        yield LintFinding(
            "wrong-type",
            f"{keys.full_name(key)} has the type {stored}, and llama.cpp accepts only {kind}: "
            "the file does not load",
            keys.evidence_of(key),
            () if converted is None else (SuggestedFix(set={keys.full_name(key): converted}),),
        )


def _converted(keys: PositionKeys, key: str, kind: ValueType) -> TypedValue | None:
    """Return a key's value in another type, or None if that would be another value."""
    typed, number = keys.typed(key), keys.number(key)
    if typed is None or typed.is_array:
        return None
    if kind == "bool":
        value = _BOOLEANS.get(str(typed.value).lower())
        return None if value is None else boolean(value)
    if kind == "u32":
        count = keys.count(key)
        return None if count is None else u32(count)
    if kind == "f32":
        return None if number is None or not abs(number) <= _MAX_F32 else f32(number)
    return None


def missing_context_length(keys: PositionKeys) -> Iterator[LintFinding]:
    """Yield a finding if the context length is missing or not positive."""
    if keys.count(CONTEXT_LENGTH) is not None or (
        keys.has(CONTEXT_LENGTH) and keys.number(CONTEXT_LENGTH) is None
    ):
        return
    original, factor = keys.count(ORIGINAL_CONTEXT_LENGTH), keys.factor or 1.0
    state = f"is {keys.number(CONTEXT_LENGTH):g}" if keys.has(CONTEXT_LENGTH) else "is missing"
    yield LintFinding(
        "no-window",
        f"{keys.full_name(CONTEXT_LENGTH)} {state}: llama.cpp does not load a file without a context length",
        keys.evidence_of(CONTEXT_LENGTH, ORIGINAL_CONTEXT_LENGTH, SCALING_FACTOR),
        () if original is None else (SuggestedFix(RopeOverrides(context=round(original * factor))),),
    )


def unknown_scaling_type(keys: PositionKeys) -> Iterator[LintFinding]:
    """Yield a finding if llama.cpp does not know the scaling type."""
    scaling_type = keys.scaling_type
    if scaling_type is None or scaling_type in GGUF_ROPE_TYPES:
        return
    yield LintFinding(
        "unknown-type",
        f"{keys.full_name(SCALING_TYPE)} is {scaling_type!r}: llama.cpp aborts on every type except "
        f"{', '.join(GGUF_ROPE_TYPES)}",
        keys.evidence_of(SCALING_TYPE),
        scaling_type_fixes(keys, scaling_type.strip().lower()),
    )


def wrong_rope_theta(keys: PositionKeys) -> Iterator[LintFinding]:
    """Yield a finding if the rope theta is not a positive number, or was lost by the model's name."""
    number = keys.number(FREQ_BASE)
    if number is not None and not (math.isfinite(number) and number > 0):
        yield LintFinding(
            "bad-base",
            f"{keys.full_name(FREQ_BASE)} is {number:g}, but a rope theta is positive and finite",
            keys.evidence_of(FREQ_BASE),
        )
    elif number is None or number == DEFAULT_ROPE_THETA:
        known = rope_theta_from_name(keys)
        if known is None:
            return
        name, rope_theta = known
        state = "is missing, which means 10000" if number is None else "is 10000"
        yield LintFinding(
            "base-missing",
            f"{keys.full_name(FREQ_BASE)} {state}, but {name} identifies a model trained with {rope_theta:g}",
            (name, *keys.evidence_of(FREQ_BASE)),
            (SuggestedFix(rope_theta=rope_theta, condition="if the file is of that model"),),
        )


def wrong_dimension_count(keys: PositionKeys) -> Iterator[LintFinding]:
    """Yield a finding if the number of rotated dimensions does not fit the attention heads."""
    rotated, head_dim = keys.count(DIMENSION_COUNT), keys.head_dim
    if rotated is None or head_dim is None:
        return
    is_full_rotary = keys.architecture in _FULL_ROTARY
    if rotated > head_dim or (is_full_rotary and rotated != head_dim):
        wanted = f"all {head_dim}" if is_full_rotary else f"at most {head_dim}"
        reason = f"{keys.architecture} rotates {wanted} dimensions of a head"
    elif rotated % 2:
        reason = "dimensions are rotated in pairs"
    else:
        return
    known = is_full_rotary or rotated > head_dim
    yield LintFinding(
        "dimension-count",
        f"{keys.full_name(DIMENSION_COUNT)} is {rotated}, but {reason}",
        keys.evidence_of(DIMENSION_COUNT, "attention.key_length", "embedding_length", "attention.head_count"),
        (SuggestedFix(set={keys.full_name(DIMENSION_COUNT): u32(head_dim)}),) if known else (),
    )
