"""Rules about linear scaling: its type, its factor, and the windows that the factor connects.

A scaling type of none switches the factor off (llama.cpp's src/llama-context.cpp).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from pigguf.errors import CheckpointError, RopeConflict
from pigguf.gguf_io.metadata import string
from pigguf.operations.lint.findings import LintFinding, SuggestedFix
from pigguf.operations.lint.fix_suggestions import (
    decimal,
    linear_fixes,
    linear_scaling,
    unscaled_fixes,
    upright,
    whole_if_near,
)
from pigguf.operations.lint.model_names import factor_from_name
from pigguf.operations.lint.position_keys import (
    CONTEXT_LENGTH,
    ORIGINAL_CONTEXT_LENGTH,
    SCALE_LINEAR,
    SCALING_FACTOR,
    SCALING_TYPE,
    PositionKeys,
)
from pigguf.rope import RopeOverrides
from pigguf.rope.rope_scaling import approx_equal

CLAMPED = "llama.cpp's server and Ollama clamp the context to it"


def bad_factor(keys: PositionKeys) -> Iterator[LintFinding]:
    """Yield each factor that is negative, not finite or inverted."""
    for key in (SCALING_FACTOR, SCALE_LINEAR):
        number = keys.number(key)
        if number is None:
            continue
        if not math.isfinite(number) or number < 0:
            yield LintFinding(
                "bad-factor",
                f"{keys.full_name(key)} is {number:g}, but a factor is positive and finite",
                keys.evidence_of(key),
                unscaled_fixes(keys),
            )
        elif 0 < number < 1:
            factor = whole_if_near(1 / number)
            yield LintFinding(
                "factor-inverted",
                f"{keys.full_name(key)} is {decimal(number)}, but a factor is the extended window divided by "
                f"the original one: llama.cpp spreads positions apart instead of dividing them by "
                f"{decimal(factor)}",
                keys.evidence_of(key, ORIGINAL_CONTEXT_LENGTH, CONTEXT_LENGTH),
                linear_fixes(keys, factor)
                if keys.is_linear_or_unscaled
                else (SuggestedFix(RopeOverrides(factor=factor)),),
            )


def two_factors(keys: PositionKeys) -> Iterator[LintFinding]:
    """Yield a finding if the factor's two keys contradict each other."""
    factor, older = keys.positive(SCALING_FACTOR), keys.positive(SCALE_LINEAR)
    if factor is None or older is None or approx_equal(factor, older):
        return
    original, context = keys.count(ORIGINAL_CONTEXT_LENGTH), keys.count(CONTEXT_LENGTH)
    fitting = [f for f in (factor, older) if original and context and approx_equal(original * f, context)]
    choices = tuple(
        fix.if_unconditional(f"if {keys.full_name(key)} is right")
        for key, value in ((SCALING_FACTOR, factor), (SCALE_LINEAR, older))
        for fix in linear_fixes(keys, upright(value))
    )
    yield LintFinding(
        "contradiction",
        f"{keys.full_name(SCALING_FACTOR)} is {decimal(factor)} and {keys.full_name(SCALE_LINEAR)} is "
        f"{decimal(older)}: llama.cpp reads the first, older programs the second",
        keys.evidence_of(SCALING_FACTOR, SCALE_LINEAR, ORIGINAL_CONTEXT_LENGTH, CONTEXT_LENGTH),
        linear_fixes(keys, fitting[0]) if len(fitting) == 1 else choices,
    )


def factor_switched_off(keys: PositionKeys) -> Iterator[LintFinding]:
    """Yield a finding if the scaling type none switches a factor off."""
    factor = keys.factor
    if keys.scaling_type != "none" or factor is None or factor == 1.0:
        return
    original, context = keys.count(ORIGINAL_CONTEXT_LENGTH), keys.count(CONTEXT_LENGTH)
    is_extended = original is not None and context is not None and original < context
    fixes = linear_fixes(keys, factor) if factor > 1 else ()
    if not is_extended:
        fixes = tuple(fix.if_unconditional("if positions are interpolated") for fix in fixes)
        fixes += unscaled_fixes(keys, "if they are not, as llama.cpp reads it now")
    yield LintFinding(
        "type-none",
        f"{keys.full_name(SCALING_TYPE)} is none, which switches the factor {decimal(factor)} off: positions "
        "are not scaled",
        keys.evidence_of(SCALING_TYPE, SCALING_FACTOR, SCALE_LINEAR, ORIGINAL_CONTEXT_LENGTH, CONTEXT_LENGTH),
        fixes,
    )


def missing_scaling_type(keys: PositionKeys) -> Iterator[LintFinding]:
    """Yield a finding if a factor has no scaling type next to it."""
    factor = keys.positive(SCALING_FACTOR)
    if keys.scaling_type is not None or factor is None or factor == 1.0:
        return
    fixes = linear_fixes(keys, factor) if factor > 1 else ()
    if keys.has_yarn_keys or keys.has_freq_factors:
        other = "yarn" if keys.has_yarn_keys else "longrope"
        as_other = SuggestedFix(
            set={keys.full_name(SCALING_TYPE): string(other)}, condition=f"if it is {other}"
        )
        fixes = (*(fix.if_unconditional("if it is linear scaling") for fix in fixes), as_other)
    yield LintFinding(
        "no-type",
        f"{keys.full_name(SCALING_TYPE)} is missing, but there is a factor of {decimal(factor)}: llama.cpp "
        "scales linearly, other programs may not scale at all",
        keys.evidence_of(SCALING_FACTOR, ORIGINAL_CONTEXT_LENGTH, CONTEXT_LENGTH),
        fixes,
    )


def missing_factor(keys: PositionKeys) -> Iterator[LintFinding]:
    """Yield a finding if keys or the model's name show an extended window, but no key states the factor."""
    original, context = keys.count(ORIGINAL_CONTEXT_LENGTH), keys.count(CONTEXT_LENGTH)
    if context is None or keys.has(SCALING_FACTOR) or keys.has(SCALE_LINEAR):
        return
    if keys.has_freq_factors or not keys.is_linear_or_unscaled:
        return
    if original is not None and original < context:
        fixes = linear_fixes(keys, context / original)
        if keys.scaling_type == "none" or keys.has_yarn_keys:
            fixes = tuple(fix.if_unconditional("if positions are interpolated") for fix in fixes)
        yield LintFinding(
            "factor-missing",
            f"the window was extended from {original} to {context} tokens, and no key states the factor: "
            "llama.cpp does not scale positions",
            keys.evidence_of(ORIGINAL_CONTEXT_LENGTH, CONTEXT_LENGTH, SCALING_TYPE),
            fixes,
        )
    else:
        yield from _factor_lost_by_name(keys, context)


def _factor_lost_by_name(keys: PositionKeys, context: int) -> Iterator[LintFinding]:
    named = factor_from_name(keys, context)
    if named is not None:
        name, factor = named
        yield LintFinding(
            "factor-missing",
            f"{name} names a longer window than the model was trained at, and no key states a factor",
            (name, *keys.evidence_of(CONTEXT_LENGTH, SCALING_TYPE)),
            tuple(
                fix.if_unconditional("if it is the interpolated model of that name")
                for fix in linear_fixes(keys, factor)
            ),
        )
    elif keys.scaling_type == "linear":
        yield LintFinding(
            "factor-missing",
            f"{keys.full_name(SCALING_TYPE)} is linear, and no key states the factor: llama.cpp does not "
            "scale positions",
            keys.evidence_of(SCALING_TYPE, CONTEXT_LENGTH),
            unscaled_fixes(keys),
        )


def linear_windows(keys: PositionKeys) -> Iterator[LintFinding]:
    """Yield a finding if the context length is not the original one multiplied by the factor."""
    context, factor, older = keys.count(CONTEXT_LENGTH), keys.factor, keys.positive(SCALE_LINEAR)
    if not keys.is_linear_or_unscaled or keys.scaling_type == "none":
        return
    if context is None or factor is None or factor == 1.0:
        return
    if older is not None and not approx_equal(factor, older):
        return  # two_factors reports it
    factor = upright(factor)
    try:
        scaling = linear_scaling(keys, factor)
    except (RopeConflict, CheckpointError) as error:
        evidence = keys.evidence_of(CONTEXT_LENGTH, ORIGINAL_CONTEXT_LENGTH, SCALING_FACTOR)
        yield LintFinding("windows-contradict", error.args[0], evidence, linear_fixes(keys, factor))
        return
    if scaling.context_length != context:
        yield LintFinding(
            "window-not-multiplied",
            f"{keys.full_name(CONTEXT_LENGTH)} is {context}, the original window, while a factor of "
            f"{decimal(factor)} extends it to {scaling.context_length}: {CLAMPED}",
            keys.evidence_of(CONTEXT_LENGTH, ORIGINAL_CONTEXT_LENGTH, SCALING_FACTOR, SCALE_LINEAR),
            linear_fixes(keys, factor),
        )
