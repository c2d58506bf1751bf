"""The decision about the scaling factor."""

from __future__ import annotations

from typing import NamedTuple

from pigguf.errors import RopeConflict
from pigguf.rope.conflicts import CONTEXTS_HINT, FACTOR_HINT, check_agreement
from pigguf.rope.evidence import Claim, ClaimGroups, Claims, join_claims, names_rope_type
from pigguf.rope.rope_scaling import approx_equal

_HOW_SCALED = {"linear": "linearly", "yarn": "by YaRN", "llama3": "as in Llama 3", "dynamic": "dynamically"}


class FactorDecision(NamedTuple):
    """The scaling factor, and a sentence that says why."""

    factor: float
    reason: str


def decide_factor(groups: ClaimGroups, rope_type: str) -> FactorDecision:
    """Decide the scaling factor of a rope type that has one.

    Raises:
        RopeConflict: claims contradict each other, or there is a sign of scaling but no factor.
    """
    for claim in groups.unused_factors:
        raise RopeConflict(
            f"{claim} contradicts {join_claims(groups.rope_types)}, which has no factor", FACTOR_HINT
        )
    for claim in groups.factors:
        if claim.value < 1.0:
            raise RopeConflict(
                f"{claim} gives the factor {claim.value:g}, but a factor is extended context / original "
                "context, so at least 1",
                f"if the inverse is meant, give `rope.factor={1 / claim.value:g}`",
            )
    if not groups.factors:
        return _infer_factor(groups)
    check_agreement(groups.factors, "factors", FACTOR_HINT, equal=approx_equal)
    factor = groups.factors[0].value
    how = _HOW_SCALED.get(rope_type, "linearly")
    state = "positions are not scaled" if factor == 1.0 else f"positions are scaled {how} by {factor:g}"
    return FactorDecision(factor, f"{state}: {join_claims(groups.factors)}")


def _infer_factor(groups: ClaimGroups) -> FactorDecision:
    """Decide the factor where no key gives it: 1, or the ratio of two context lengths that imply scaling."""
    check_agreement(groups.original_contexts, "original context lengths", CONTEXTS_HINT)
    scaled_types = [claim for claim in groups.rope_types if names_rope_type(claim)]
    contexts = _find_two_contexts(groups)
    if contexts is None or contexts[0].value == contexts[1].value:
        for claim in scaled_types:
            raise RopeConflict(f"{claim} has no factor, and nothing else implies one", FACTOR_HINT)
        for claim in groups.custom_code:
            raise RopeConflict(
                f"{claim} names custom modelling code, and no key says whether that scales positions",
                FACTOR_HINT,
            )
        return FactorDecision(1.0, "positions are not scaled: no key gives a factor")
    original, extended = contexts
    ratio = extended.value / original.value
    sign_of_scaling = _find_sign_of_scaling(groups, scaled_types, original)
    if sign_of_scaling is None or ratio < 1.0:
        raise RopeConflict(
            f"{original} and {extended} differ, and no key gives a factor",
            f"give `rope.factor={max(ratio, 1 / ratio):g}` if positions are interpolated, "
            "`rope.factor=1` and `rope.context` if they are not",
        )
    return FactorDecision(
        ratio, f"the factor is missing and was inferred, {ratio:g}: {original}, {extended}; {sign_of_scaling}"
    )


def _find_two_contexts(groups: ClaimGroups) -> tuple[Claim, Claim] | None:
    """Return the claims of the original and the extended context length, None if there are not two."""
    lengths = sort_by_length(groups.context_lengths)
    original = [*groups.original_contexts, *lengths[:1]]
    extended = [*groups.extended_contexts, *lengths[-1:]]
    if not original or not extended:
        return None
    is_shortened = (
        groups.extended_contexts and not groups.original_contexts and extended[0].value <= original[0].value
    )
    return None if is_shortened else (original[0], extended[0])


def _find_sign_of_scaling(groups: ClaimGroups, scaled_types: list[Claim], original: Claim) -> str | None:
    """Return why two context lengths without a factor mean scaled positions, None if they need not."""
    if scaled_types:
        return f"{scaled_types[0]}"
    if original.is_override:
        return "the override says that it was extended"
    lengths = sort_by_length(groups.context_lengths)
    keys = [claim.evidence.key.rpartition(".")[2] for claim in lengths]
    is_superhot = keys == ["max_sequence_length", "max_position_embeddings"] and groups.custom_code
    if is_superhot and lengths[1].value % lengths[0].value == 0:
        return f"{groups.custom_code[0]} names custom modelling code, as in merges of SuperHOT"
    return None


def sort_by_length(claims: Claims) -> list[Claim]:
    """Return claims of context lengths, the shortest first."""
    return sorted(claims, key=lambda claim: int(claim.value))
