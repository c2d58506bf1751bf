"""From measured speeds to settings: pure functions.

    choose_flash_attention(on, off, switch_cost)   on, off, or a switch between the two by depth
    torch_min_prompt(torch, llama)                 from how many tokens on torch prefills a prompt faster
    fastest_setting(rates, default)                the fastest, if it is worth leaving the default

Between two measured depths the time per token is interpolated linearly, as attention's share of it grows.
Beyond the deepest measurement nothing is known, and nothing changes there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import TypeVar

from pigguf.inference.engine import FlashAttentionSwitch
from pigguf.inference.tuning.profile import SpeedAtDepth

T = TypeVar("T")

ANSWER_TOKENS = 128  # the length of an answer within which a switch must pay off
NOISE = 1.05  # a setting must be faster than the default by this factor to be chosen
_DEPTH_STEP = 64  # tokens; no depth is determined more precisely

Curve = Sequence[tuple[int, float]]
"""(depth, seconds per token), sorted by depth."""


@dataclass(frozen=True)
class SwitchCost:
    """Seconds to change the KV cache's layout: `fixed`, and `per_token` for each token in it."""

    fixed: float
    per_token: float

    def seconds(self, depth: int) -> float:
        """Return the seconds for a KV cache of `depth` tokens."""
        return self.fixed + self.per_token * depth


@dataclass(frozen=True)
class _SpeedCurves:
    """Seconds per token of prefill and of decode by depth, with flash attention or without."""

    prefill: Curve
    decode: Curve

    @property
    def deepest(self) -> int:
        return self.prefill[-1][0]

    def document_seconds(self) -> float:
        """Return the seconds for a prompt as deep as was measured, and its answer."""
        return prefill_seconds(self.prefill, self.deepest) + ANSWER_TOKENS * seconds_per_token(
            self.decode, self.deepest
        )


def choose_flash_attention(
    on: Sequence[SpeedAtDepth], off: Sequence[SpeedAtDepth], switch_cost: SwitchCost | None
) -> tuple[bool | None, FlashAttentionSwitch | None]:
    """Choose flash attention by the speeds with it and without it at the same depths.

    Args:
        on, off: the speeds with and without flash attention.
        switch_cost: what a switch costs; None if the model cannot switch.

    Returns:
        ContextOptions' `flash_attention` and `flash_attention_switch`. Without a switch, what is faster for a
        document as deep as was measured and its answer; None if neither is.
    """
    with_it, without = (_SpeedCurves(prefill_curve(speeds), decode_curve(speeds)) for speeds in (on, off))
    if not all((with_it.prefill, with_it.decode, without.prefill, without.decode)):
        return None, None
    switch = None if switch_cost is None else _choose_switch(with_it, without, switch_cost)
    if switch is not None:
        return None, switch
    on_seconds, off_seconds = with_it.document_seconds(), without.document_seconds()
    if max(on_seconds, off_seconds) < NOISE * min(on_seconds, off_seconds):
        return None, None
    return on_seconds < off_seconds, None


def _choose_switch(on: _SpeedCurves, off: _SpeedCurves, cost: SwitchCost) -> FlashAttentionSwitch | None:
    """Return the depths of a switch; None if flash attention is never faster or leaving it never pays."""

    def pays_off(depth: int) -> bool:
        gain = seconds_per_token(on.decode, depth) - seconds_per_token(off.decode, depth)
        return gain > (NOISE - 1) * seconds_per_token(
            off.decode, depth
        ) and ANSWER_TOKENS * gain > cost.seconds(depth)

    def prefill_is_slower(depth: int) -> bool:
        return seconds_per_token(on.prefill, depth) > seconds_per_token(off.prefill, depth)

    prefill = _holds_from(on.prefill, prefill_is_slower)
    decode = _holds_from(on.decode, pays_off)
    if not any(
        NOISE * seconds_per_token(on.prefill, depth) < seconds_per_token(off.prefill, depth)
        for depth, _ in on.prefill
    ):
        return None
    if decode is None and prefill is not None:  # where prefill has left flash attention, decode stays without
        deeper = [(depth, seconds) for depth, seconds in off.prefill if depth > prefill]
        shallower = [
            (depth, seconds_per_token(on.prefill, depth)) for depth in range(0, prefill, _DEPTH_STEP)
        ]
        switching = _SpeedCurves([*shallower, *deeper], off.decode)
        if NOISE * (switching.document_seconds() + cost.seconds(prefill)) < min(
            on.document_seconds(), off.document_seconds()
        ):
            decode = prefill
    if decode is None:
        return None
    return FlashAttentionSwitch(
        max(1, decode), prefill, _min_prompt_to_switch_back(on, off, decode, prefill, cost)
    )


def _min_prompt_to_switch_back(
    on: _SpeedCurves, off: _SpeedCurves, decode: int, prefill: int | None, cost: SwitchCost
) -> int:
    """Return from how many tokens on a prompt pays for switching to flash attention and back.

    This is the median over all depths where prefill is faster with flash attention and decode without it;
    FlashAttentionSwitch's default if there are none.
    """
    deepest = on.deepest if prefill is None else prefill
    counts = [
        2 * cost.seconds(depth) / gain
        for depth in range(decode, deepest + 1, _DEPTH_STEP)
        if (gain := seconds_per_token(off.prefill, depth) - seconds_per_token(on.prefill, depth))
        > (NOISE - 1) * seconds_per_token(off.prefill, depth)
    ]
    return max(_DEPTH_STEP, _round_up(median(counts))) if counts else FlashAttentionSwitch.prompt


def torch_min_prompt(torch: Curve, llama: Curve) -> int | None:
    """Return from how many tokens on torch prefills a whole prompt faster than llama.cpp, or None.

    Prompts longer than the longest measured one are assumed to behave like it.

    Args:
        torch: (tokens of a whole prompt, seconds for all of it).
        llama: (depth, seconds per token) of llama.cpp's fastest settings.
    """
    min_tokens = None
    for tokens, seconds in reversed(torch):
        if NOISE * seconds >= prefill_seconds(llama, tokens):
            break
        min_tokens = tokens
    return min_tokens


def fastest_setting(rates: Mapping[T, float], default: T) -> T:
    """Return the fastest setting, or the default if none is faster beyond noise or it was not measured."""
    best = max(rates, key=lambda setting: rates[setting], default=default)
    return best if default in rates and rates[best] > NOISE * rates[default] else default


# ---- times between the measured depths -----------------------------------------------------------


def prefill_curve(speeds: Sequence[SpeedAtDepth]) -> Curve:
    """Return the seconds per token of prefill, by depth."""
    return sorted((speed.depth, 1 / speed.prefill) for speed in speeds if speed.prefill)


def decode_curve(speeds: Sequence[SpeedAtDepth]) -> Curve:
    """Return the seconds per token of decode, by depth."""
    return sorted((speed.depth, 1 / speed.decode) for speed in speeds if speed.decode)


def seconds_per_token(curve: Curve, depth: float) -> float:
    """Return the seconds per token at a depth; outside of the measured range, those of the nearest depth."""
    if depth <= curve[0][0]:
        return curve[0][1]
    for (left, left_seconds), (right, right_seconds) in pairwise(curve):
        if depth <= right:
            return left_seconds + (right_seconds - left_seconds) * (depth - left) / (right - left)
    return curve[-1][1]


def prefill_seconds(curve: Curve, tokens: int) -> float:
    """Return the seconds that a whole prompt takes: the integral of the curve."""
    edges = [0, *(depth for depth, _ in curve if 0 < depth < tokens), tokens]
    return sum(
        (right - left) * (seconds_per_token(curve, left) + seconds_per_token(curve, right)) / 2
        for left, right in pairwise(edges)
    )


def _holds_from(curve: Curve, holds: Callable[[int], bool]) -> int | None:
    """Return the depth from which on a condition holds, up to the deepest measured one; None if never."""
    first = None
    deepest = curve[-1][0]
    for depth in sorted({*range(0, deepest, _DEPTH_STEP), deepest}, reverse=True):
        if not holds(depth):
            break
        first = depth
    return first


def _round_up(count: float) -> int:
    """Round up to a multiple of the depth step."""
    return -(-int(count) // _DEPTH_STEP) * _DEPTH_STEP
