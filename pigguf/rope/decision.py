"""Decisions: what all the evidence says together about positions, each with its reason.

Three numbers are bound together in linear scaling and YaRN (factor x original window = extended window),
and a config rarely says which window it gives. The kind comes first, then the factor, then the windows;
whatever does not fit is a RopeConflict that names every key and value involved, and what settles it.
In Llama 3's kind and LongRoPE the windows are two numbers by themselves. Dynamic scaling has another base
for every length of text; a GGUF has one, so that a window must be chosen, and nothing else is left to say.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from pigguf.common.config import MAX_COUNT, Config
from pigguf.errors import CheckpointError, RopeConflict, UnsupportedModel
from pigguf.rope.evidence import NO_OVERRIDES, Claim, Claims, Facts, RopeOverrides, gather, weigh
from pigguf.rope.frequencies import longrope_attention, ntk_base, single, yarn_attention
from pigguf.rope.scaling import COMMAND_LINE, DEFAULT_BASE, RopeScaling, same

# Context lengths at which base models of these families were trained, by a well-known one.
BASE_WINDOWS = {
    2048: "LLaMA",
    4096: "Llama 2",
    8192: "Llama 3",
    16384: "Code Llama",
    32768: "Mistral and Qwen2",
    131072: "Llama 3.1",
}
LARGEST_UNEXTENDED = 4096  # what LLaMA and Llama 2 start from, never what someone extends to

SETTLE_FACTOR = "--rope-factor FACTOR settles it (--rope-factor 1: positions are not scaled)"
SETTLE_KINDS = (
    "remove the wrong one from config.json (transformers reads rope_scaling, llama.cpp's converter "
    "rope_parameters); --rope-factor 1: positions are not scaled"
)
SETTLE_WINDOWS = "--original-context N (trained at) with --context N (extended to) settles it"
SCALED_BY = {"linear": "linearly", "yarn": "by YaRN", "llama3": "as in Llama 3", "dynamic": "dynamically"}
FIT = "factor x original window must be the extended window: --rope-factor, --original-context, --context"


class Decision(NamedTuple):
    """A value, and the sentence that says why."""

    value: Any
    why: str


def read_rope(
    config: Mapping[str, Any],
    tokenizer_config: Mapping[str, Any],
    overrides: RopeOverrides = NO_OVERRIDES,
    extended: Config | None = None,
    name: str = "",
) -> RopeScaling:
    """Decide how a checkpoint's positions work, from all that it says and what the user says.

    Args:
        config: config.json, or one whose language model lies under text_config.
        tokenizer_config: tokenizer_config.json, {} where there is none.
        overrides: numbers of the user's.
        extended: config.json of the same model with an adapter on it, whose window the adapter may have
            extended: it must name the same base, and the checkpoint's window as its original one.
        name: what the model is called, its adapter included; it speaks where the config is silent.

    Raises:
        RopeConflict: what was found contradicts itself, or does not suffice to decide.
        UnsupportedModel: a scheme for positions that llama.cpp cannot express.
        CheckpointError: a key is missing, or holds something that it cannot.
    """
    files = Config(config), Config(tokenizer_config, "tokenizer_config.json")
    return decide(gather(*files, overrides, extended, name))


def decide(claims: list[Claim]) -> RopeScaling:
    """Decide from claims, wherever they come from: a checkpoint, or a GGUF that is to be repaired.

    Raises:
        RopeConflict: they contradict each other, or do not suffice to decide.
        CheckpointError: none of them is a window.
    """
    facts = weigh(claims)
    base = _decide_base(facts)
    kind = _decide_kind(facts)
    decided = _DECIDERS[kind](facts, base) if kind in _DECIDERS else _decide_factored(facts, kind, base)
    known = tuple(
        f"known by {claim.evidence.source}, {claim}: {claim.evidence.meaning}" for claim in facts.names
    )
    return replace(
        decided,
        evidence=tuple(claim.evidence for claim in claims),
        decisions=(*known, *decided.decisions),
        local_rope_theta=_decide_local_base(facts, decided),
    )


def _decide_kind(facts: Facts) -> str:
    """The kind that everything names; a known name stands before a config's default, "not scaled"."""
    claims = tuple(claim for claim in facts.kinds if not facts.names or claim.value != "none")
    kinds = {claim.value for claim in claims}
    hint = SETTLE_FACTOR if kinds <= {"none", "linear"} else SETTLE_KINDS
    _refuse_differing(claims, "kinds of scaling", hint)
    if len({str(claim.value) for claim in facts.parameters}) > 1:
        raise RopeConflict(
            f"{_listed(facts.parameters)} are different numbers of {claims[0].value}", SETTLE_KINDS
        )
    kind: str = claims[0].value if claims else "none"
    return kind


def _decide_local_base(facts: Facts, rope: RopeScaling) -> float | None:
    """The base of sliding layers, where they are not rotated just as all others are."""
    if not facts.local_bases:
        return None
    _refuse_differing(
        facts.local_bases, "bases of sliding layers", "correct config.json: no flag sets the base"
    )
    base: float = facts.local_bases[0].value
    return None if rope.rope_type == "none" and base == rope.rope_theta else base


def _parameters(facts: Facts) -> dict[str, Any]:
    return dict(facts.parameters[0].value) if facts.parameters else {}


# Kinds


def _decide_factored(facts: Facts, kind: str, base: Decision) -> RopeScaling:
    """No scaling, linear scaling and YaRN, in which the factor joins the two windows."""
    factor = _decide_factor(facts, kind)
    if kind == "yarn" and factor.value != 1.0:
        windows = _decide_windows(facts, factor.value, _yarn_place)
        parameters = _yarn_parameters(_parameters(facts), factor.value)
    else:
        if kind == "yarn" and _yarn_parameters(_parameters(facts), 1.0):
            raise RopeConflict(
                f"{_listed(facts.parameters)} has a factor of 1, and scales attention", SETTLE_KINDS
            )
        kind = "none" if factor.value == 1.0 else "linear"
        windows = _decide_window(facts) if kind == "none" else _decide_windows(facts, factor.value)
        parameters = {}
    original, context = windows.value
    decisions = (factor.why, windows.why, base.why)
    return RopeScaling(kind, factor.value, base.value, original, context, parameters, decisions=decisions)


def _yarn_parameters(said: dict[str, Any], factor: float) -> dict[str, Any]:
    """What GGUF has for YaRN: the part of attention's scale that llama.cpp does not see in the factor."""
    weight, weight_all = said.pop("mscale", 0.0), said.pop("mscale_all_dim", 0.0)
    own = yarn_attention(factor)
    attention = said.pop("attention_factor", None)
    if attention is None:
        both = weight and weight_all
        attention = yarn_attention(factor, weight) / yarn_attention(factor, weight_all) if both else own
    rest = single(attention / own)
    return {**said, **({} if rest == 1.0 else {"attn_factor": rest})}


def _yarn_place(facts: Facts, factor: float) -> Decision:
    """The windows of a YaRN that does not say its original one, which transformers then takes to be
    max_position_embeddings."""
    placed = _place_windows(facts, factor)
    original, context = placed.value
    window = next(
        (claim for claim in facts.windows if claim.evidence.key.endswith("max_position_embeddings")), None
    )
    if window is not None and window.value != original:
        raise RopeConflict(
            f"{window} looks like the extended window, and in YaRN without original_max_position_embeddings "
            "transformers has it for the original one",
            f"--original-context {original} --context {context} if it was extended, "
            f"--original-context {window.value} if it was not",
        )
    return placed


def _decide_llama3(facts: Facts, base: Decision) -> RopeScaling:
    factor = _decide_factor(facts, "llama3")
    original, context = _decide_two_windows(facts)
    decisions = (factor.why, context.why, base.why)
    return RopeScaling(
        "llama3", factor.value, base.value, original, context.value, _parameters(facts), decisions=decisions
    )


def _decide_longrope(facts: Facts, base: Decision) -> RopeScaling:
    for claim in facts.factors:
        raise RopeConflict(f"{claim}: LongRoPE has two lists of numbers in place of a factor", SETTLE_KINDS)
    original, context = _decide_two_windows(facts)
    said = _parameters(facts)
    window = facts.windows[0].value if facts.windows else context.value
    factor = said.pop("factor", window / original)
    attention = single(said.pop("attention_factor", longrope_attention(factor, original)))
    if attention != 1.0:
        said["attn_factor"] = attention
    why = (
        f"each frequency is divided by a number of its own, of one list up to {original} tokens and of "
        f"another beyond: {facts.kinds[0]}"
    )
    decisions = (why, context.why, base.why)
    return RopeScaling("longrope", 1.0, base.value, original, context.value, said, decisions=decisions)


def _decide_two_windows(facts: Facts) -> tuple[int, Decision]:
    """The original window, which a key must give, and the context length, which no factor binds to it."""
    if not facts.originals:
        raise CheckpointError(
            f"{_listed(facts.kinds)} needs original_max_position_embeddings, and config.json lacks it",
            "give it with --original-context N",
        )
    _refuse_differing(facts.originals, "original windows", SETTLE_WINDOWS)
    claims = facts.contexts or facts.windows
    if not claims:
        raise _no_window()
    _refuse_differing(claims, "windows", "--context N settles it")
    original, context = facts.originals[0].value, claims[0].value
    why = f"the context length is {context}: {_listed(claims)}, from {original}: {_listed(facts.originals)}"
    return original, Decision(context, why)


def _decide_dynamic(facts: Facts, base: Decision) -> RopeScaling:
    """Dynamic NTK scaling as it is for a text of the chosen window: no scaling, and another base."""
    factor = _decide_factor(facts, "dynamic")
    claims = (
        facts.originals
        if any(_is_given(claim) for claim in facts.originals)
        else facts.originals + facts.windows
    )
    if not claims:
        raise _no_window()
    _refuse_differing(claims, "windows, up to which nothing is scaled", SETTLE_WINDOWS)
    original = claims[0].value
    stretched = round(original * factor.value)
    if facts.contexts:
        context, why = facts.contexts[0].value, f"{facts.contexts[0]}"
    elif any(_is_given(claim) for claim in facts.factors):
        context, why = stretched, f"{facts.factors[0]}"
    else:
        raise RopeConflict(
            f"{facts.kinds[0]} has another base for every length of text, and a GGUF has one",
            f"--context {stretched} takes the one at that length, --context {original} scales nothing",
        )
    if context > MAX_COUNT:
        raise RopeConflict(f"a window of {context} tokens is beyond 32 bits", FIT)
    if context <= original:
        scaled = f"dynamic scaling changes nothing up to {original} tokens: {_listed(claims)}"
        value = base.value
    else:
        if not facts.rotary:
            raise CheckpointError("config.json lacks num_attention_heads, on which dynamic scaling depends")
        rotated = facts.rotary[0].value
        if rotated <= 2:
            raise UnsupportedModel(f"{facts.rotary[0]}: dynamic scaling of {rotated} dimensions has no base")
        value = ntk_base(base.value, factor.value, original, context, rotated)
        said = _listed((*facts.kinds, *facts.factors, *claims))
        scaled = (
            f"dynamic scaling by {factor.value:g} from {original} tokens was fixed to its base at {context}, "
            f"{value:g} in place of {base.value:g}: {said}"
        )
    decisions = (scaled, f"the context length is {context}: {why}", base.why)
    return RopeScaling("none", 1.0, value, context, context, decisions=decisions)


def _is_given(claim: Claim) -> bool:
    return claim.evidence.source == COMMAND_LINE


_DECIDERS = {"llama3": _decide_llama3, "longrope": _decide_longrope, "dynamic": _decide_dynamic}


# Numbers


def _decide_base(facts: Facts) -> Decision:
    if not facts.bases:
        return Decision(DEFAULT_BASE, f"the base is {DEFAULT_BASE:g}, transformers' default: no rope_theta")
    _refuse_differing(facts.bases, "bases", "correct config.json: no flag sets the base")
    base = facts.bases[0].value
    return Decision(base, f"the base is {base:g}: {_listed(facts.bases)}")


def _decide_factor(facts: Facts, kind: str) -> Decision:
    for claim in facts.idle_factors:
        kind = ", ".join(str(kind) for kind in facts.kinds)
        raise RopeConflict(f"{claim} contradicts {kind}, which has no factor", SETTLE_FACTOR)
    for claim in facts.factors:
        if claim.value < 1.0:
            raise RopeConflict(
                f"{claim} would make the factor {claim.value:g}, but a factor is the extended window "
                "divided by the original one, so 1 or more",
                f"--rope-factor {1 / claim.value:g} settles it, if the inverse was meant",
            )
    if not facts.factors:
        return _infer_factor(facts)
    _refuse_differing(facts.factors, "factors", SETTLE_FACTOR, alike=same)
    factor = facts.factors[0].value
    how = SCALED_BY.get(kind, "linearly")
    what = "positions are not scaled" if factor == 1.0 else f"positions are scaled {how} by {factor:g}"
    return Decision(factor, f"{what}: {_listed(facts.factors)}")


def _infer_factor(facts: Facts) -> Decision:
    """The factor where no key gives it: 1, or the ratio of two windows where something says scaled."""
    _refuse_differing(facts.originals, "original windows", SETTLE_WINDOWS)
    scaled = [kind for kind in facts.kinds if kind.value != "none"]
    ends = _ends(facts)
    if ends is None or ends[0].value == ends[1].value:
        for claim in scaled:
            raise RopeConflict(f"{claim} has no factor, and nothing else implies one", SETTLE_FACTOR)
        for claim in facts.code:
            raise RopeConflict(
                f"{claim} names modelling code, and no key says whether that scales positions", SETTLE_FACTOR
            )
        return Decision(1.0, "positions are not scaled: no key gives a factor")
    original, extended = ends
    ratio = extended.value / original.value
    reason = _reason_for_scaling(facts, scaled, original)
    if reason is None or ratio < 1.0:
        raise RopeConflict(
            f"{original} and {extended} differ, and no key gives a factor",
            f"--rope-factor {max(ratio, 1 / ratio):g} if positions are interpolated, "
            "--rope-factor 1 with --context N if they are not",
        )
    return Decision(
        ratio, f"the factor is missing and was inferred, {ratio:g}: {original}, {extended}; {reason}"
    )


def _ends(facts: Facts) -> tuple[Claim, Claim] | None:
    """The claims for the original and the extended window, as far as they are there; None: only one."""
    windows = _by_length(facts.windows)
    originals, extended = [*facts.originals, *windows[:1]], [*facts.contexts, *windows[-1:]]
    if not originals or not extended:
        return None
    shortened = facts.contexts and not facts.originals and extended[0].value <= originals[0].value
    return None if shortened else (originals[0], extended[0])


def _reason_for_scaling(facts: Facts, scaled: list[Claim], original: Claim) -> str | None:
    """Why two windows without a factor mean that positions are scaled, or None where they need not."""
    if scaled:
        return f"{scaled[0]}"
    if _is_given(original):
        return "the user says that it was extended"
    windows = _by_length(facts.windows)
    keys = [claim.evidence.key.rpartition(".")[2] for claim in windows]
    superhot = keys == ["max_sequence_length", "max_position_embeddings"] and facts.code
    if superhot and windows[1].value % windows[0].value == 0:
        return f"{facts.code[0]} names modelling code, as in merges of SuperHOT"
    return None


def _by_length(windows: Claims) -> list[Claim]:
    return sorted(windows, key=lambda claim: int(claim.value))


def _decide_window(facts: Facts) -> Decision:
    """The one window of a model whose positions are not scaled, as (original, extended)."""
    if facts.contexts:
        context = facts.contexts[0].value
        return Decision((context, context), f"the context length is {context}: {facts.contexts[0]}")
    claims = facts.windows + facts.originals
    if not claims:
        raise _no_window()
    _refuse_differing(claims, "windows, and positions are not scaled", "--context N settles it")
    context = claims[0].value
    why = f"the context length is {context}: {_listed(claims)}"
    for limit in facts.limits:
        if limit.value > context:
            why += f" ({limit} is larger, but nothing says that positions are scaled)"
    return Decision((context, context), why)


def _decide_windows(
    facts: Facts, factor: float, place: Callable[[Facts, float], Decision] | None = None
) -> Decision:
    """The two windows of a model whose positions are scaled, as (original, extended).

    `place` tells them apart where no key names either.
    """
    _refuse_differing(facts.originals, "original windows", SETTLE_WINDOWS)
    said = facts.originals[:1] + facts.contexts
    if facts.originals and facts.contexts:
        original, context = facts.originals[0].value, facts.contexts[0].value
        why = f"{facts.originals[0]}, {facts.contexts[0]}"
    elif facts.originals:
        original = facts.originals[0].value
        context, why = round(original * factor), f"{facts.originals[0]}"
    elif facts.contexts:
        context = facts.contexts[0].value
        original, why = max(1, round(context / factor)), f"{facts.contexts[0]}"
    else:
        (original, context), why = (place or _place_windows)(facts, factor)
    known = said if facts.overrides > 1 else said + facts.windows
    context = next((claim.value for claim in known if same(claim.value, original * factor)), context)
    if context > MAX_COUNT:
        raise RopeConflict(f"the context length {original} x {factor:g} = {context} is beyond 32 bits", FIT)
    misfits = [claim for claim in known if not (same(claim.value, original) or same(claim.value, context))]
    if misfits or not same(original * factor, context):
        raise RopeConflict(
            f"{_listed((*facts.factors, *known))} contradict each other: "
            f"{original} x {factor:g} is {original * factor:g}",
            FIT if facts.overrides > 1 else _settle_windows(facts, factor),
        )
    return Decision(
        (original, context), f"the window was extended from {original} to {context} tokens: {why}"
    )


def _settle_windows(facts: Facts, factor: float) -> str:
    """What settles windows that do not fit, in numbers where the original one is said."""
    if not facts.originals or facts.contexts:
        return SETTLE_WINDOWS
    original = facts.originals[0].value
    return f"--original-context {original} --context {round(original * factor)} settles it, if that is right"


def _place_windows(facts: Facts, factor: float) -> Decision:
    """Tell the original window from the extended one where no key names either.

    In order: two windows that are a factor apart; the tokenizer's limit, where it is a factor above
    the one window; the windows at which base models were trained.
    """
    windows = _by_length(facts.windows)
    if not windows:
        raise _no_window()
    first, last = windows[0], windows[-1]
    if first.value != last.value:
        return Decision((first.value, last.value), f"{first}, {last}")
    window, extended = first.value, round(first.value * factor)
    for limit in facts.limits:
        if same(limit.value, extended):
            return Decision((window, limit.value), f"{first} is the original one, as {limit} says")
    if window <= LARGEST_UNEXTENDED:
        return Decision(
            (window, extended),
            f"{first} is the original one, as {LARGEST_UNEXTENDED} or less is what models are extended from",
        )
    for base, model in BASE_WINDOWS.items():
        if same(window / factor, base):
            if facts.plain and window in BASE_WINDOWS:  # the factor is the user's alone: nothing to go by
                raise RopeConflict(
                    f"{_listed(facts.windows + facts.factors)}: the window may be the original one, as it is "
                    f"{BASE_WINDOWS[window]}'s own, or extended from {base}, which is {model}'s",
                    f"--original-context {window} extends it to {extended}, "
                    f"--context {window} says that it is extended already",
                )
            return Decision((base, window), f"{first} is the extended one, as {base} is {model}'s own")
    if window in BASE_WINDOWS:
        return Decision(
            (window, extended), f"{first} is the original one, as it is {BASE_WINDOWS[window]}'s own"
        )
    raise RopeConflict(
        f"{_listed(facts.windows + facts.factors)}: nothing says whether the window is the original or the "
        "extended one",
        f"--original-context {window} if the model was trained at it, --context {window} if extended to it",
    )


def _refuse_differing(
    claims: Claims, what: str, hint: str, alike: Callable[[Any, Any], bool] = operator.eq
) -> None:
    if not all(alike(claim.value, claims[0].value) for claim in claims):
        raise RopeConflict(f"{_listed(claims)} are different {what}", hint)


def _listed(claims: Iterable[Claim]) -> str:
    return ", ".join(str(claim) for claim in claims)


def _no_window() -> CheckpointError:
    return CheckpointError("config.json lacks max_position_embeddings", "give the window with --context N")
