"""The decision about a model's rotary positions, from all claims, with a reason for each number.

The rope type comes first, then the factor (factor_decision.py), then the context lengths
(context_decision.py). Claims that contradict each other are a RopeConflict that names every key and value
involved, and how to resolve it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from pigguf.common.json_config import MAX_COUNT, JsonConfig
from pigguf.errors import CheckpointError, RopeConflict, UnsupportedModel
from pigguf.rope.config_claims import collect_claims
from pigguf.rope.conflicts import (
    CONTEXTS_HINT,
    FACTOR_HINT,
    PRODUCT_HINT,
    ROPE_TYPE_HINT,
    THETA_HINT,
    check_agreement,
    missing_context_length,
)
from pigguf.rope.context_decision import (
    decide_context,
    decide_independent_contexts,
    decide_scaled_contexts,
)
from pigguf.rope.dynamic_ntk import ntk_rope_theta
from pigguf.rope.evidence import Claim, ClaimGroups, group_claims, join_claims
from pigguf.rope.factor_decision import FactorDecision, decide_factor
from pigguf.rope.linear import LinearScaling
from pigguf.rope.llama3 import Llama3Scaling
from pigguf.rope.longrope import LongRopeScaling, longrope_attention
from pigguf.rope.overrides import NO_OVERRIDES, RopeOverrides
from pigguf.rope.rope_scaling import DEFAULT_ROPE_THETA, RopeScaling, single
from pigguf.rope.unscaled import UnscaledRope
from pigguf.rope.yarn import YarnScaling, yarn_attn_factor


class ThetaDecision(NamedTuple):
    """rope_theta, and a sentence that says why."""

    rope_theta: float
    reason: str


def read_rope(
    config: Mapping[str, Any],
    tokenizer_config: Mapping[str, Any],
    overrides: RopeOverrides = NO_OVERRIDES,
    extended: JsonConfig | None = None,
    name: str = "",
) -> RopeScaling:
    """Decide a checkpoint's rotary positions, from everything in its files and the user's overrides.

    Args:
        config: config.json, or one whose language model is in text_config.
        tokenizer_config: tokenizer_config.json, {} if there is none.
        overrides: the user's numbers.
        extended: config.json of the same model with an adapter, which may extend its context: it must have
            the same rope_theta, and the checkpoint's context length as its original one.
        name: the model's name, with its adapter; it is considered if the config has no scaling.

    Raises:
        RopeConflict: claims contradict each other, or do not suffice.
        UnsupportedModel: a position scheme that llama.cpp cannot compute.
        CheckpointError: a key is missing, or has a wrong value.
    """
    tokenizer = JsonConfig(tokenizer_config, "tokenizer_config.json")
    return decide_rope(collect_claims(JsonConfig(config), tokenizer, overrides, extended, name))


def decide_rope(claims: list[Claim]) -> RopeScaling:
    """Decide rotary positions from claims about a checkpoint, or about a GGUF that is to be repaired.

    Raises:
        RopeConflict: they contradict each other, or do not suffice.
        CheckpointError: none of them is a context length.
    """
    groups = group_claims(claims)
    theta = _decide_rope_theta(groups)
    rope_type = _decide_rope_type(groups)
    decide = _DECISIONS.get(rope_type, _decide_unscaled_linear_or_yarn)
    rope = decide(groups, theta)
    known = tuple(
        f"known by {claim.evidence.source}, {claim}: {claim.evidence.meaning}" for claim in groups.model_names
    )
    return replace(
        rope,
        evidence=tuple(claim.evidence for claim in claims),
        decisions=(*known, *rope.decisions),
        local_rope_theta=_decide_local_rope_theta(groups, rope),
    )


def _decide_rope_type(groups: ClaimGroups) -> str:
    """Return the rope type that all claims name; a known model's overrides a config's "not scaled"."""
    claims = tuple(claim for claim in groups.rope_types if not groups.model_names or claim.value != "none")
    rope_types = {claim.value for claim in claims}
    hint = FACTOR_HINT if rope_types <= {"none", "linear"} else ROPE_TYPE_HINT
    check_agreement(claims, "rope types", hint)
    if len({str(claim.value) for claim in groups.parameters}) > 1:
        raise RopeConflict(
            f"{join_claims(groups.parameters)} are different parameters of {claims[0].value}", ROPE_TYPE_HINT
        )
    return str(claims[0].value) if claims else "none"


def _decide_rope_theta(groups: ClaimGroups) -> ThetaDecision:
    if not groups.rope_thetas:
        reason = f"rope_theta is {DEFAULT_ROPE_THETA:g}, transformers' default: no key gives it"
        return ThetaDecision(DEFAULT_ROPE_THETA, reason)
    check_agreement(groups.rope_thetas, "values of rope_theta", THETA_HINT)
    theta = groups.rope_thetas[0].value
    return ThetaDecision(theta, f"rope_theta is {theta:g}: {join_claims(groups.rope_thetas)}")


def _decide_local_rope_theta(groups: ClaimGroups, rope: RopeScaling) -> float | None:
    """Return rope_theta of sliding layers, None if they are rotated like all others."""
    if not groups.local_rope_thetas:
        return None
    check_agreement(groups.local_rope_thetas, "values of rope_theta of sliding layers", THETA_HINT)
    theta = float(groups.local_rope_thetas[0].value)
    return None if rope.rope_type == "none" and theta == rope.rope_theta else theta


def _parameters(groups: ClaimGroups) -> dict[str, Any]:
    return dict(groups.parameters[0].value) if groups.parameters else {}


def _decide_unscaled_linear_or_yarn(groups: ClaimGroups, theta: ThetaDecision) -> RopeScaling:
    """Decide a rope type in which the factor binds the two context lengths, which 1 makes unscaled."""
    rope_type = _decide_rope_type(groups)
    factor, factor_reason = decide_factor(groups, rope_type)
    if factor == 1.0:
        if rope_type == "yarn" and _has_attention_scale(_parameters(groups)):
            raise RopeConflict(
                f"{join_claims(groups.parameters)} has a factor of 1, and scales attention", ROPE_TYPE_HINT
            )
        length, _, reason = decide_context(groups)
        return UnscaledRope(
            rope_theta=theta.rope_theta,
            original_context=length,
            context_length=length,
            decisions=(factor_reason, reason, theta.reason),
        )
    original, extended, reason = decide_scaled_contexts(groups, factor, rope_type)
    common: dict[str, Any] = {
        "rope_theta": theta.rope_theta,
        "original_context": original,
        "context_length": extended,
        "factor": factor,
        "decisions": (factor_reason, reason, theta.reason),
    }
    if rope_type != "yarn":
        return LinearScaling(**common)
    parameters = _parameters(groups)
    betas = {key: parameters[key] for key in ("beta_fast", "beta_slow") if key in parameters}
    return YarnScaling(**common, **betas, attn_factor=yarn_attn_factor(parameters, factor))


def _has_attention_scale(parameters: dict[str, Any]) -> bool:
    """Return whether YaRN's parameters change anything even with a factor of 1."""
    return bool(parameters.keys() & {"beta_fast", "beta_slow"}) or yarn_attn_factor(parameters, 1.0) != 1.0


def _decide_llama3(groups: ClaimGroups, theta: ThetaDecision) -> RopeScaling:
    factor, factor_reason = decide_factor(groups, "llama3")
    original, extended, reason = decide_independent_contexts(groups)
    return Llama3Scaling(
        rope_theta=theta.rope_theta,
        original_context=original,
        context_length=extended,
        factor=factor,
        **_parameters(groups),
        decisions=(factor_reason, reason, theta.reason),
    )


def _decide_longrope(groups: ClaimGroups, theta: ThetaDecision) -> RopeScaling:
    for claim in groups.factors:
        raise RopeConflict(
            f"{claim}: LongRoPE has two lists of factors instead of one factor", ROPE_TYPE_HINT
        )
    original, extended, reason = decide_independent_contexts(groups)
    parameters = _parameters(groups)
    length = groups.context_lengths[0].value if groups.context_lengths else extended
    factor = parameters.get("factor", length / original)
    attention = parameters.get("attention_factor", longrope_attention(factor, original))
    lists_reason = (
        f"each frequency is divided by its own factor, from one list for up to {original} tokens and from "
        f"another beyond: {groups.rope_types[0]}"
    )
    return LongRopeScaling(
        rope_theta=theta.rope_theta,
        original_context=original,
        context_length=extended,
        short_factor=parameters["short_factor"],
        long_factor=parameters["long_factor"],
        attn_factor=single(attention),
        decisions=(lists_reason, reason, theta.reason),
    )


def _decide_dynamic(groups: ClaimGroups, theta: ThetaDecision) -> RopeScaling:
    """Convert dynamic NTK scaling for one context length: no scaling, and another rope_theta."""
    factor = decide_factor(groups, "dynamic")
    has_override = any(claim.is_override for claim in groups.original_contexts)
    claims = groups.original_contexts + (() if has_override else groups.context_lengths)
    if not claims:
        raise missing_context_length()
    check_agreement(claims, "context lengths up to which nothing is scaled", CONTEXTS_HINT)
    original = claims[0].value
    length, chosen_by = _choose_dynamic_context(groups, factor, original)
    rope_theta, reason = theta.rope_theta, ""
    if length <= original:
        reason = f"dynamic scaling changes nothing up to {original} tokens: {join_claims(claims)}"
    else:
        rotary_dim = _rotary_dim(groups)
        rope_theta = ntk_rope_theta(theta.rope_theta, factor.factor, original, length, rotary_dim)
        evidence = join_claims((*groups.rope_types, *groups.factors, *claims))
        reason = (
            f"dynamic scaling by {factor.factor:g} from {original} tokens was fixed to its rope_theta at "
            f"{length} tokens, {rope_theta:g} instead of {theta.rope_theta:g}: {evidence}"
        )
    return UnscaledRope(
        rope_theta=rope_theta,
        original_context=length,
        context_length=length,
        decisions=(reason, f"the context length is {length}: {chosen_by}", theta.reason),
    )


def _choose_dynamic_context(groups: ClaimGroups, factor: FactorDecision, original: int) -> tuple[int, str]:
    """Return the context length for which dynamic scaling is converted, and the override that gives it."""
    extended = round(original * factor.factor)
    if groups.extended_contexts:
        length, claim = groups.extended_contexts[0].value, groups.extended_contexts[0]
    elif any(claim.is_override for claim in groups.factors):
        length, claim = extended, groups.factors[0]
    else:
        raise RopeConflict(
            f"{groups.rope_types[0]} has another rope_theta for every length of text, and a GGUF has one",
            f"`rope.context={extended}` takes the one at that length, `rope.context={original}` is unscaled",
        )
    if length > MAX_COUNT:
        raise RopeConflict(f"a context length of {length} tokens is beyond 32 bits", PRODUCT_HINT)
    return length, str(claim)


def _rotary_dim(groups: ClaimGroups) -> int:
    if not groups.rotary_dims:
        raise CheckpointError("config.json lacks num_attention_heads, on which dynamic scaling depends")
    claim = groups.rotary_dims[0]
    if claim.value <= 2:
        raise UnsupportedModel(f"{claim}: dynamic scaling of {claim.value} dimensions has no rope_theta")
    return int(claim.value)


_DECISIONS = {"llama3": _decide_llama3, "longrope": _decide_longrope, "dynamic": _decide_dynamic}
