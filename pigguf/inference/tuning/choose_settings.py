"""What follows from measured speeds: pure functions, from numbers to settings.

    flash_attention(on, off, move)     on, off, or a handoff and its depths
    torch_from(torch, llama)           from how many tokens on torch reads a whole prompt faster
    fastest(rates, default)            the one worth leaving the default for

Between two depths the time of a token is taken to grow evenly, as attention's share does; beyond the deepest
one nothing is known, and nothing changes there. Left out: measuring (run.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import TypeVar

from pigguf.inference.engine import FlashAttentionSwitch
from pigguf.inference.tuning.profile import Speed

T = TypeVar("T")

ANSWER = 128  # tokens of an answer, which a change of the cache must repay
NOISE = 1.05  # so much faster must a setting be to be taken for faster than the default
_STEP = 64  # tokens; no depth is known better

Curve = Sequence[tuple[int, float]]
"""(depth, seconds a token), by depth."""


@dataclass(frozen=True)
class Move:
    """Seconds that it takes to lay the cache out the other way: `fixed`, and `a_token` for each it holds."""

    fixed: float
    a_token: float

    def seconds(self, depth: int) -> float:
        return self.fixed + self.a_token * depth


def flash_attention(
    on: Sequence[Speed], off: Sequence[Speed], move: Move | None
) -> tuple[bool | None, FlashAttentionSwitch | None]:
    """What to do about flash attention, by the speeds with it and without it at the same depths.

    Args:
        move: what a change of the cache costs; None where it cannot be changed.

    Returns:
        ContextOptions' flash_attention and handoff. Without a handoff, what serves a document as deep as was
        measured and its answer faster; None where that is all one.
    """
    one, other = (_Road(prefill_curve(speeds), decode_curve(speeds)) for speeds in (on, off))
    if not all((one.prompt, one.token, other.prompt, other.token)):
        return None, None
    handoff = None if move is None else _handoff(one, other, move)
    if handoff is not None:
        return None, handoff
    with_it, without = one.document(), other.document()
    if max(with_it, without) < NOISE * min(with_it, without):
        return None, None
    return with_it < without, None


@dataclass(frozen=True)
class _Road:
    """The curves of prompts and of single tokens with flash attention, or without."""

    prompt: Curve
    token: Curve

    @property
    def deepest(self) -> int:
        return self.prompt[-1][0]

    def document(self) -> float:
        """Seconds for a prompt as deep as was measured, and its answer."""
        return seconds(self.prompt, self.deepest) + ANSWER * at(self.token, self.deepest)


def _handoff(on: _Road, off: _Road, move: Move) -> FlashAttentionSwitch | None:
    """The depths of a handoff; None where prompts never want flash attention, or leaving it never pays."""

    def repays(depth: int) -> bool:
        gain = at(on.token, depth) - at(off.token, depth)
        return gain > (NOISE - 1) * at(off.token, depth) and ANSWER * gain > move.seconds(depth)

    def is_slower(depth: int) -> bool:
        return at(on.prompt, depth) > at(off.prompt, depth)

    prefill = _from_on(on.prompt, is_slower)
    decode = _from_on(on.token, repays)
    if not any(NOISE * at(on.prompt, depth) < at(off.prompt, depth) for depth, _ in on.prompt):
        return None
    if decode is None and prefill is not None:  # where prompts have left it, tokens stay
        longer = [(depth, cost) for depth, cost in off.prompt if depth > prefill]
        both = _Road(
            [*((depth, at(on.prompt, depth)) for depth in range(0, prefill, _STEP)), *longer], off.token
        )
        if NOISE * (both.document() + move.seconds(prefill)) < min(on.document(), off.document()):
            decode = prefill
    return (
        None
        if decode is None
        else FlashAttentionSwitch(max(1, decode), prefill, _way_back(on, off, decode, prefill, move))
    )


def _way_back(on: _Road, off: _Road, decode: int, prefill: int | None, move: Move) -> int:
    """From how many tokens on a prompt repays two moves: the median over all depths where prompts and tokens
    want different things, and Handoff's own number where there are none."""
    last = on.deepest if prefill is None else prefill
    counts = [
        2 * move.seconds(depth) / gain
        for depth in range(decode, last + 1, _STEP)
        if (gain := at(off.prompt, depth) - at(on.prompt, depth)) > (NOISE - 1) * at(off.prompt, depth)
    ]
    return max(_STEP, _rounded(median(counts))) if counts else FlashAttentionSwitch.prompt


def torch_from(torch: Curve, llama: Curve) -> int | None:
    """From how many tokens on torch reads a whole prompt faster than llama.cpp, or None.

    Args:
        torch: (tokens of a whole prompt, seconds that all of it took).
        llama: (depth, seconds a token) on llama.cpp's best road; integrated for whole prompts.

    What is longer than the longest prompt that was measured is taken to go as it went.
    """
    found = None
    for tokens, took in reversed(torch):
        if NOISE * took >= seconds(llama, tokens):
            break
        found = tokens
    return found


def fastest(rates: Mapping[T, float], default: T) -> T:
    """The fastest; the default where nothing is faster than noise, or nobody knows how fast it is itself."""
    best = max(rates, key=lambda one: rates[one], default=default)
    return best if default in rates and rates[best] > NOISE * rates[default] else default


# ---- times between the depths that were measured -------------------------------------------------


def prefill_curve(speeds: Sequence[Speed]) -> Curve:
    """Seconds a token of prompts, by depth."""
    return sorted((speed.depth, 1 / speed.prefill) for speed in speeds if speed.prefill)


def decode_curve(speeds: Sequence[Speed]) -> Curve:
    """Seconds a token of answers, by depth."""
    return sorted((speed.depth, 1 / speed.decode) for speed in speeds if speed.decode)


def at(curve: Curve, depth: float) -> float:
    """Seconds a token at a depth; outside of what was measured, those of the nearest depth that was."""
    if depth <= curve[0][0]:
        return curve[0][1]
    for (a, slow), (b, fast) in pairwise(curve):
        if depth <= b:
            return slow + (fast - slow) * (depth - a) / (b - a)
    return curve[-1][1]


def seconds(curve: Curve, tokens: int) -> float:
    """What a whole prompt of so many tokens takes."""
    ends = [0, *(depth for depth, _ in curve if 0 < depth < tokens), tokens]
    return sum((b - a) * (at(curve, a) + at(curve, b)) / 2 for a, b in pairwise(ends))


def _from_on(curve: Curve, holds: Callable[[int], bool]) -> int | None:
    """The depth from which on it holds, up to the deepest one that was measured."""
    found = None
    last = curve[-1][0]
    for depth in sorted({*range(0, last, _STEP), last}, reverse=True):
        if not holds(depth):
            break
        found = depth
    return found


def _rounded(count: float) -> int:
    """Up to a multiple of the step."""
    return -(-int(count) // _STEP) * _STEP
