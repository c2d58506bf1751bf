"""The decision about the original and the extended context length.

In linear scaling and YaRN factor x original context = extended context, and a config rarely says which of the
two it gives. In Llama 3's scaling and LongRoPE the two are independent numbers.
"""

from __future__ import annotations

from typing import NamedTuple

from pigguf.common.json_config import MAX_COUNT
from pigguf.errors import CheckpointError, RopeConflict
from pigguf.rope.conflicts import (
    CONTEXT_HINT,
    CONTEXTS_HINT,
    PRODUCT_HINT,
    check_agreement,
    missing_context_length,
)
from pigguf.rope.evidence import ClaimGroups, join_claims
from pigguf.rope.factor_decision import sort_by_length
from pigguf.rope.rope_scaling import approx_equal

# Context lengths at which base models were trained, with a well-known one.
BASE_CONTEXT_LENGTHS = {
    2048: "LLaMA",
    4096: "Llama 2",
    8192: "Llama 3",
    16384: "Code Llama",
    32768: "Mistral and Qwen2",
    131072: "Llama 3.1",
}
MAX_UNEXTENDED = 4096  # that of LLaMA and Llama 2; no model is extended to so few tokens


class ContextDecision(NamedTuple):
    """The original and the extended context length, and a sentence that says why."""

    original: int
    extended: int
    reason: str


def decide_context(groups: ClaimGroups) -> ContextDecision:
    """Decide the context length of a model whose positions are not scaled.

    Raises:
        RopeConflict: claims contradict each other.
        CheckpointError: there is no context length.
    """
    if groups.extended_contexts:
        length = groups.extended_contexts[0].value
        return ContextDecision(
            length, length, f"the context length is {length}: {groups.extended_contexts[0]}"
        )
    claims = groups.context_lengths + groups.original_contexts
    if not claims:
        raise missing_context_length()
    check_agreement(claims, "context lengths, and positions are not scaled", CONTEXT_HINT)
    length = claims[0].value
    reason = f"the context length is {length}: {join_claims(claims)}"
    for limit in groups.tokenizer_limits:
        if limit.value > length:
            reason += f" ({limit} is larger, but nothing says that positions are scaled)"
    return ContextDecision(length, length, reason)


def decide_independent_contexts(groups: ClaimGroups) -> ContextDecision:
    """Decide the two context lengths of a rope type in which no factor binds them: Llama 3's and LongRoPE.

    Raises:
        RopeConflict: claims contradict each other.
        CheckpointError: one of the two is missing.
    """
    if not groups.original_contexts:
        raise CheckpointError(
            f"{join_claims(groups.rope_types)} needs original_max_position_embeddings, and config.json "
            "lacks it",
            "give it with `rope.original_context`",
        )
    check_agreement(groups.original_contexts, "original context lengths", CONTEXTS_HINT)
    claims = groups.extended_contexts or groups.context_lengths
    if not claims:
        raise missing_context_length()
    check_agreement(claims, "context lengths", CONTEXT_HINT)
    original, extended = groups.original_contexts[0].value, claims[0].value
    reason = (
        f"the context length is {extended}: {join_claims(claims)}, from {original}: "
        f"{join_claims(groups.original_contexts)}"
    )
    return ContextDecision(original, extended, reason)


def decide_scaled_contexts(groups: ClaimGroups, factor: float, rope_type: str) -> ContextDecision:
    """Decide the two context lengths of a model with linear scaling or YaRN.

    Raises:
        RopeConflict: claims contradict each other, or do not suffice.
        CheckpointError: there is no context length.
    """
    check_agreement(groups.original_contexts, "original context lengths", CONTEXTS_HINT)
    stated = groups.original_contexts[:1] + groups.extended_contexts
    original, extended, reason = _choose_contexts(groups, factor, rope_type)
    known = stated if groups.n_overrides > 1 else stated + groups.context_lengths
    extended = next(
        (claim.value for claim in known if approx_equal(claim.value, original * factor)), extended
    )
    if extended > MAX_COUNT:
        raise RopeConflict(
            f"the context length {original} x {factor:g} = {extended} is beyond 32 bits", PRODUCT_HINT
        )
    is_misfit = any(
        not (approx_equal(claim.value, original) or approx_equal(claim.value, extended)) for claim in known
    )
    if is_misfit or not approx_equal(original * factor, extended):
        raise RopeConflict(
            f"{join_claims((*groups.factors, *known))} contradict each other: "
            f"{original} x {factor:g} is {original * factor:g}",
            PRODUCT_HINT if groups.n_overrides > 1 else _contradiction_hint(groups, factor),
        )
    return ContextDecision(
        original, extended, f"the context was extended from {original} to {extended} tokens: {reason}"
    )


def _choose_contexts(groups: ClaimGroups, factor: float, rope_type: str) -> ContextDecision:
    """Return the context lengths that keys name, or that follow from the factor; they may not fit yet."""
    if groups.original_contexts and groups.extended_contexts:
        original, extended = groups.original_contexts[0], groups.extended_contexts[0]
        return ContextDecision(original.value, extended.value, f"{original}, {extended}")
    if groups.original_contexts:
        original = groups.original_contexts[0]
        return ContextDecision(original.value, round(original.value * factor), f"{original}")
    if groups.extended_contexts:
        extended = groups.extended_contexts[0]
        return ContextDecision(max(1, round(extended.value / factor)), extended.value, f"{extended}")
    if rope_type == "yarn":
        return _infer_yarn_contexts(groups, factor)
    return _infer_contexts(groups, factor)


def _contradiction_hint(groups: ClaimGroups, factor: float) -> str:
    if not groups.original_contexts or groups.extended_contexts:
        return CONTEXTS_HINT
    original = groups.original_contexts[0].value
    return (
        f"give `rope.original_context={original}` `rope.context={round(original * factor)}`, "
        "if the original context is right"
    )


def _infer_yarn_contexts(groups: ClaimGroups, factor: float) -> ContextDecision:
    """Infer the context lengths of YaRN without original_max_position_embeddings.

    transformers then takes max_position_embeddings as the original context length.
    """
    inferred = _infer_contexts(groups, factor)
    claim = next(
        (c for c in groups.context_lengths if c.evidence.key.endswith("max_position_embeddings")), None
    )
    if claim is not None and claim.value != inferred.original:
        raise RopeConflict(
            f"{claim} looks like the extended context length, but transformers takes it as the original one "
            "in YaRN without original_max_position_embeddings",
            f"give `rope.original_context={inferred.original}` `rope.context={inferred.extended}` if it was "
            f"extended, `rope.original_context={claim.value}` if it was not",
        )
    return inferred


def _infer_contexts(groups: ClaimGroups, factor: float) -> ContextDecision:
    """Infer which of the two context lengths a config gives, where no key says it.

    In this order: two lengths that differ by the factor; the tokenizer's limit, if it is the length times the
    factor; the context lengths at which base models were trained.
    """
    claims = sort_by_length(groups.context_lengths)
    if not claims:
        raise missing_context_length()
    first, last = claims[0], claims[-1]
    if first.value != last.value:
        return ContextDecision(first.value, last.value, f"{first}, {last}")
    length, extended = first.value, round(first.value * factor)
    for limit in groups.tokenizer_limits:
        if approx_equal(limit.value, extended):
            return ContextDecision(length, limit.value, f"{first} is the original one, according to {limit}")
    if length <= MAX_UNEXTENDED:
        return ContextDecision(
            length,
            extended,
            f"{first} is the original one, as models are extended from {MAX_UNEXTENDED} tokens or fewer",
        )
    return _infer_from_base_models(groups, factor, length)


def _infer_from_base_models(groups: ClaimGroups, factor: float, length: int) -> ContextDecision:
    first, extended = groups.context_lengths[0], round(length * factor)
    evidence = join_claims(groups.context_lengths + groups.factors)
    for base, model in BASE_CONTEXT_LENGTHS.items():
        if approx_equal(length / factor, base):
            if groups.is_unscaled and length in BASE_CONTEXT_LENGTHS:  # nothing but the user's factor
                raise RopeConflict(
                    f"{evidence}: the context length may be the original one, as it is that of "
                    f"{BASE_CONTEXT_LENGTHS[length]}, or extended from {base}, which is that of {model}",
                    f"give `rope.original_context={length}` to extend it to {extended}, or "
                    f"`rope.context={length}` if it is extended already",
                )
            return ContextDecision(base, length, f"{first} is the extended one, as {base} is that of {model}")
    if length in BASE_CONTEXT_LENGTHS:
        model = BASE_CONTEXT_LENGTHS[length]
        return ContextDecision(length, extended, f"{first} is the original one, as it is that of {model}")
    raise RopeConflict(
        f"{evidence}: nothing says whether the context length is the original or the extended one",
        f"give `rope.original_context={length}` if the model was trained at it, "
        f"`rope.context={length}` if it was extended to it",
    )
