"""Rope numbers that a user gives a file, and the keys that follow from them.

For linear scaling the numbers are decided on as in a conversion (rope/decision.py): factor x original window
is the extended window, and the file's other keys must fit. For YaRN, LongRoPE and Llama 3 they are set as
given, if they fit each other.
"""

from __future__ import annotations

from pigguf.errors import CheckpointError, RopeConflict
from pigguf.gguf_io import GGUFFile
from pigguf.gguf_io.metadata import TypedValue, f32, u32
from pigguf.operations.lint import PositionKeys, position_claims
from pigguf.operations.lint.position_keys import (
    CONTEXT_LENGTH,
    FREQ_BASE,
    ORIGINAL_CONTEXT_LENGTH,
    SCALE_LINEAR,
    SCALING_FACTOR,
    SCALING_TYPE,
    YARN_KEYS,
)
from pigguf.rope import Positions, RopeOverrides, rope_from_metadata
from pigguf.rope.decision import decide_rope
from pigguf.rope.rope_scaling import approx_equal
from pigguf.rope.scaling_section import MAX_ROPE_THETA


def edit_rope(
    file: GGUFFile, overrides: RopeOverrides, rope_theta: float | None
) -> tuple[Positions, dict[str, TypedValue]]:
    """Return the rope scaling that the given numbers make of a file's own, and the metadata that states it.

    Args:
        file: The file's header.
        overrides: The factor and window lengths given; the others are derived.
        rope_theta: The rope theta given, or None.

    Raises:
        RopeConflict: The numbers contradict each other or the file's, or do not suffice.
    """
    if rope_theta is not None and not (1.0 < rope_theta < MAX_ROPE_THETA):
        raise RopeConflict(
            f"`rope_theta={rope_theta:g}` is not between 1 and {MAX_ROPE_THETA:g}",
            "give a base such as `rope_theta=10000`",
        )
    keys = PositionKeys(file)
    if keys.scaling_type in ("yarn", "longrope") or (keys.has_freq_factors and overrides.factor is None):
        return _set_as_given(keys, overrides, rope_theta)
    if not keys.is_linear_or_unscaled and overrides.factor is None:
        raise RopeConflict(
            f"{file.path}: {keys.full_name(SCALING_TYPE)} is {keys.scaling_type!r}, which llama.cpp does not "
            "know",
            "give `rope.factor=FACTOR` for linear scaling, or `rope.factor=1` for none",
        )
    try:
        scaling = decide_rope(position_claims(file, overrides, rope_theta))
    except CheckpointError:
        raise RopeConflict(
            f"{file.path}: {keys.full_name(CONTEXT_LENGTH)} is missing or not a length",
            "give the context length: `rope.context=N`",
        ) from None
    return scaling, _linear_metadata(keys, scaling, rope_theta)


def _linear_metadata(
    keys: PositionKeys, scaling: Positions, rope_theta: float | None
) -> dict[str, TypedValue]:
    """Return a file's metadata with the keys of linear or unscaled positions; equivalent keys stay."""
    metadata = dict(keys.file.metadata)
    written = scaling.to_gguf(keys.architecture)
    if rope_theta is None and not keys.has(FREQ_BASE):
        written.pop(keys.full_name(FREQ_BASE), None)  # the file relies on llama.cpp's default
    stale = [SCALE_LINEAR, *YARN_KEYS]
    if scaling.rope_type == "none":
        factor_is_one = keys.typed(SCALING_FACTOR) == f32(1.0)
        is_stated = keys.scaling_type == "none" or (keys.scaling_type == "linear" and factor_is_one)
        stale += [] if factor_is_one else [SCALING_FACTOR]
        stale += [] if is_stated else [SCALING_TYPE]
        if keys.typed(ORIGINAL_CONTEXT_LENGTH) != u32(scaling.context_length):
            stale.append(ORIGINAL_CONTEXT_LENGTH)
    for key in stale:
        metadata.pop(keys.full_name(key), None)
    return metadata | written


def _set_as_given(
    keys: PositionKeys, overrides: RopeOverrides, rope_theta: float | None
) -> tuple[Positions, dict[str, TypedValue]]:
    """Return the scaling and metadata of YaRN, LongRoPE or Llama 3 with the numbers as given.

    Raises:
        RopeConflict: They do not fit each other.
    """
    factor = overrides.factor or keys.factor
    original = overrides.original_context or keys.count(ORIGINAL_CONTEXT_LENGTH)
    context = overrides.context or keys.count(CONTEXT_LENGTH)
    if keys.scaling_type == "yarn" and factor is not None and original is not None:
        if overrides.context is None and (overrides.factor or overrides.original_context):
            context = round(original * factor)
        if context is not None and not approx_equal(original * factor, context):
            raise RopeConflict(
                f"factor {factor:g}, original window {original} and window {context} contradict each other: "
                f"{original} x {factor:g} is {original * factor:g}",
                "give all of `rope.factor`, `rope.original_context` and `rope.context`, or set only the "
                f"window: `set={keys.full_name(CONTEXT_LENGTH)}={context}`",
            )
    given: dict[str, TypedValue | None] = {
        CONTEXT_LENGTH: None if context is None else u32(context),
        ORIGINAL_CONTEXT_LENGTH: None if original is None else u32(original),
        SCALING_FACTOR: None if factor is None else f32(factor),
        FREQ_BASE: None if rope_theta is None else f32(rope_theta),
    }
    metadata = dict(keys.file.metadata)
    metadata |= {keys.full_name(key): typed for key, typed in given.items() if typed is not None}
    if overrides.factor is not None:
        metadata.pop(keys.full_name(SCALE_LINEAR), None)
    return rope_from_metadata(metadata, keys.architecture), metadata
