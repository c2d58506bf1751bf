"""Rules about YaRN and LongRoPE, whose frequencies themselves depend on the original window."""

from __future__ import annotations

from collections.abc import Iterator

from pigguf.operations.lint.findings import LintFinding, SuggestedFix
from pigguf.operations.lint.fix_suggestions import decimal, upright
from pigguf.operations.lint.linear_scaling_rules import CLAMPED
from pigguf.operations.lint.position_keys import (
    CONTEXT_LENGTH,
    ORIGINAL_CONTEXT_LENGTH,
    SCALING_FACTOR,
    SCALING_TYPE,
    PositionKeys,
)
from pigguf.rope import RopeOverrides
from pigguf.rope.context_decision import BASE_CONTEXT_LENGTHS


def yarn_longrope_windows(keys: PositionKeys) -> Iterator[LintFinding]:
    """Yield a finding if the factor, the original window or the extended one is missing or contradicted."""
    context, original = keys.count(CONTEXT_LENGTH), keys.count(ORIGINAL_CONTEXT_LENGTH)
    factor = keys.factor or 1.0
    if keys.scaling_type not in ("yarn", "longrope") or context is None:
        return
    if keys.scaling_type == "yarn" and factor == 1.0:
        yield _missing_yarn_factor(keys, context / original if original else 1.0)
        return
    factor = upright(factor)
    if original is None:
        yield LintFinding(
            "original-window-missing",
            f"{keys.full_name(ORIGINAL_CONTEXT_LENGTH)} is missing, so llama.cpp takes the context length "
            f"{context} for it and {keys.scaling_type} scales the wrong dimensions",
            keys.evidence_of(SCALING_TYPE, SCALING_FACTOR, CONTEXT_LENGTH),
            _original_window_fixes(context, factor),
        )
    elif original >= context and factor > 1:
        yield LintFinding(
            "window-not-multiplied",
            f"{keys.full_name(CONTEXT_LENGTH)} is {context}, the original window, while {keys.scaling_type} "
            f"extends it by a factor of {decimal(factor)}: {CLAMPED}",
            keys.evidence_of(CONTEXT_LENGTH, ORIGINAL_CONTEXT_LENGTH, SCALING_FACTOR),
            (SuggestedFix(RopeOverrides(context=round(original * factor))),),
        )


def _missing_yarn_factor(keys: PositionKeys, ratio: float) -> LintFinding:
    return LintFinding(
        "factor-missing",
        f"{keys.full_name(SCALING_TYPE)} is yarn and the factor is missing or 1: llama.cpp does not scale "
        "positions",
        keys.evidence_of(SCALING_TYPE, SCALING_FACTOR, ORIGINAL_CONTEXT_LENGTH, CONTEXT_LENGTH),
        (SuggestedFix(RopeOverrides(factor=ratio)),) if ratio > 1 else (),
    )


def _original_window_fixes(context: int, factor: float) -> tuple[SuggestedFix, ...]:
    """Return the fixes for a missing original window: the context length may be the extended one or it."""
    if factor <= 1:
        return ()
    original = round(context / factor)
    if original in BASE_CONTEXT_LENGTHS and context not in BASE_CONTEXT_LENGTHS:
        return (SuggestedFix(RopeOverrides(original_context=original)),)
    return (
        SuggestedFix(
            RopeOverrides(original_context=original), condition=f"if the window was extended to {context}"
        ),
        SuggestedFix(
            RopeOverrides(original_context=context, context=round(context * factor)),
            condition=f"if the model was trained at {context} tokens",
        ),
    )
