"""Which rope numbers would fix a file: suggestions that `repair` would accept."""

from __future__ import annotations

from pigguf.errors import CheckpointError, RopeConflict
from pigguf.gguf_io.metadata import string
from pigguf.llama_cpp_internals.rope_keys import GGUF_ROPE_TYPES
from pigguf.operations.lint.findings import SuggestedFix
from pigguf.operations.lint.position_claims import position_claims
from pigguf.operations.lint.position_keys import (
    CONTEXT_LENGTH,
    ORIGINAL_CONTEXT_LENGTH,
    SCALING_TYPE,
    PositionKeys,
)
from pigguf.rope import Positions, RopeOverrides
from pigguf.rope.decision import decide_rope
from pigguf.rope.rope_scaling import approx_equal


def linear_fixes(keys: PositionKeys, factor: float) -> tuple[SuggestedFix, ...]:
    """Return how to set linear scaling by a factor: the factor alone, or with a window to choose.

    The factor alone is enough if the file's windows leave no doubt which of them it extends.
    """
    factor_alone = if_accepted(keys, SuggestedFix(RopeOverrides(factor=factor)))
    if factor_alone:
        return factor_alone
    context, original = keys.count(CONTEXT_LENGTH), keys.count(ORIGINAL_CONTEXT_LENGTH)
    choices = [
        SuggestedFix(
            RopeOverrides(factor=factor, original_context=length),
            condition=f"if the model was trained at {length} tokens",
        )
        for length in dict.fromkeys(length for length in (original, context) if length is not None)
    ]
    if context is not None:
        choices.append(
            SuggestedFix(
                RopeOverrides(factor=factor, context=context),
                condition=f"if the window was extended to {context}",
            )
        )
        if original is not None and context > original:
            ratio = RopeOverrides(factor=context / original)
            choices.append(SuggestedFix(ratio, condition="if both windows are right"))
    return tuple(fix for choice in choices for fix in if_accepted(keys, choice))


def unscaled_fixes(
    keys: PositionKeys, condition: str = "if positions are not scaled"
) -> tuple[SuggestedFix, ...]:
    """Return how to state that positions are not scaled, or nothing if other keys contradict it."""
    return if_accepted(keys, SuggestedFix(RopeOverrides(factor=1.0), condition=condition))


def scaling_type_fixes(keys: PositionKeys, scaling_type: str) -> tuple[SuggestedFix, ...]:
    """Return what to set instead of a scaling type that llama.cpp does not know.

    Args:
        keys: The file's position keys.
        scaling_type: The type in lower case, without spaces around it.
    """
    if scaling_type in GGUF_ROPE_TYPES:
        return (SuggestedFix(set={keys.full_name(SCALING_TYPE): string(scaling_type)}),)
    if scaling_type == "su" and keys.has_freq_factors:  # transformers' older name of LongRoPE
        return (SuggestedFix(set={keys.full_name(SCALING_TYPE): string("longrope")}),)
    unscaled = unscaled_fixes(keys, "if positions need no scaling inside the window")
    if scaling_type in ("default", "dynamic", "llama3", "ntk"):  # unscaled, or scaled by a tensor
        return unscaled
    scaled = () if keys.factor is None or keys.factor <= 1 else linear_fixes(keys, keys.factor)
    return (*(fix.if_unconditional("if it is linear scaling") for fix in scaled), *unscaled)


def if_accepted(keys: PositionKeys, fix: SuggestedFix) -> tuple[SuggestedFix, ...]:
    """Return the fix if its rope numbers are sufficient and fit the file's keys, else nothing."""
    try:
        decide_rope(position_claims(keys.file, fix.rope))
    except (RopeConflict, CheckpointError):
        return ()
    return (fix,)


def linear_scaling(keys: PositionKeys, factor: float) -> Positions:
    """Return the rope scaling of the file with linear scaling by a factor.

    Raises:
        RopeConflict: The file's windows contradict the factor.
        CheckpointError: The file has no context length.
    """
    return decide_rope(position_claims(keys.file, RopeOverrides(factor=factor)))


def whole_if_near(number: float) -> float:
    """Return the nearest whole number if the difference is only rounding, else the number itself."""
    nearest = float(round(number))
    return nearest if approx_equal(nearest, number) else number


def upright(factor: float) -> float:
    """Return the factor, or its reciprocal if it is below 1 and so was written inverted."""
    return whole_if_near(1 / factor) if factor < 1 else factor


def decimal(number: float) -> str:
    """Return a number as text with up to ten digits, as messages and commands show it."""
    return f"{number:.10g}"
