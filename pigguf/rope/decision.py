"""Decisions: what all the evidence says together about positions, each with its reason.

Three numbers are bound together (factor x original window = extended window), and a config rarely
says which window it gives. The factor comes first, then the windows; whatever does not fit is a
RopeConflict that names every key and value involved, and the flag that settles it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from pigguf.config import MAX_COUNT, Config
from pigguf.errors import CheckpointError, RopeConflict
from pigguf.rope.evidence import NO_OVERRIDES, Claim, Claims, Facts, RopeOverrides, gather, weigh
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
SETTLE_WINDOWS = "--original-context N (trained at) with --context N (extended to) settles it"
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
) -> RopeScaling:
    """Decide how a checkpoint's positions work, from all that it says and what the user says.

    Args:
        config: config.json, or one whose language model lies under text_config.
        tokenizer_config: tokenizer_config.json, {} where there is none.
        overrides: numbers of the user's.
        extended: config.json of the same model with an adapter on it, whose window the adapter may have
            extended: it must name the same base, and the checkpoint's window as its original one.

    Raises:
        RopeConflict: what was found contradicts itself, or does not suffice to decide.
        UnsupportedModel: a scheme for positions that cannot be written.
        CheckpointError: a key is missing, or holds something that it cannot.
    """
    return decide(
        gather(Config(config), Config(tokenizer_config, "tokenizer_config.json"), overrides, extended)
    )


def decide(claims: list[Claim]) -> RopeScaling:
    """Decide from claims, wherever they come from: a checkpoint, or a GGUF that is to be repaired.

    Raises:
        RopeConflict: they contradict each other, or do not suffice to decide.
        CheckpointError: none of them is a window.
    """
    facts = weigh(claims)
    base = _decide_base(facts)
    factor = _decide_factor(facts)
    windows = _decide_window(facts) if factor.value == 1.0 else _decide_windows(facts, factor.value)
    original, context = windows.value
    return RopeScaling(
        kind="none" if factor.value == 1.0 else "linear",
        factor=factor.value,
        base=base.value,
        original_context=original,
        context_length=context,
        evidence=tuple(claim.evidence for claim in claims),
        decisions=(factor.why, windows.why, base.why),
    )


def _decide_base(facts: Facts) -> Decision:
    if not facts.bases:
        return Decision(DEFAULT_BASE, f"the base is {DEFAULT_BASE:g}, transformers' default: no rope_theta")
    _refuse_differing(facts.bases, "bases", "correct config.json: no flag sets the base")
    base = facts.bases[0].value
    return Decision(base, f"the base is {base:g}: {_listed(facts.bases)}")


def _decide_factor(facts: Facts) -> Decision:
    _refuse_differing(facts.kinds, "kinds of scaling", SETTLE_FACTOR)
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
    what = "positions are not scaled" if factor == 1.0 else f"positions are scaled linearly by {factor:g}"
    return Decision(factor, f"{what}: {_listed(facts.factors)}")


def _infer_factor(facts: Facts) -> Decision:
    """The factor where no key gives it: 1, or the ratio of two windows where something says linear."""
    _refuse_differing(facts.originals, "original windows", SETTLE_WINDOWS)
    linear = [kind for kind in facts.kinds if kind.value == "linear"]
    ends = _ends(facts)
    if ends is None or ends[0].value == ends[1].value:
        for claim in linear:
            raise RopeConflict(f"{claim} has no factor, and nothing else implies one", SETTLE_FACTOR)
        for claim in facts.code:
            raise RopeConflict(
                f"{claim} names modelling code, and no key says whether that scales positions", SETTLE_FACTOR
            )
        return Decision(1.0, "positions are not scaled: no key gives a factor")
    original, extended = ends
    ratio = extended.value / original.value
    reason = _reason_for_linear(facts, linear, original)
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


def _reason_for_linear(facts: Facts, linear: list[Claim], original: Claim) -> str | None:
    """Why two windows without a factor mean linear scaling, or None where they need not."""
    if linear:
        return f"{linear[0]}"
    if original.evidence.source == COMMAND_LINE:
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


def _decide_windows(facts: Facts, factor: float) -> Decision:
    """The two windows of a model whose positions are scaled, as (original, extended)."""
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
        (original, context), why = _place_windows(facts, factor)
    known = said if facts.overrides > 1 else said + facts.windows
    context = next((claim.value for claim in known if same(claim.value, original * factor)), context)
    if context > MAX_COUNT:
        raise RopeConflict(f"the context length {original} x {factor:g} = {context} is beyond 32 bits", FIT)
    misfits = [claim for claim in known if not (same(claim.value, original) or same(claim.value, context))]
    if misfits or not same(original * factor, context):
        raise RopeConflict(
            f"{_listed((*facts.factors, *known))} contradict each other: "
            f"{original} x {factor:g} is {original * factor:g}",
            FIT if facts.overrides > 1 else SETTLE_WINDOWS,
        )
    return Decision(
        (original, context), f"the window was extended from {original} to {context} tokens: {why}"
    )


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
