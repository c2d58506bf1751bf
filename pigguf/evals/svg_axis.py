"""Axes of plots: the range of their values, their ticks, and the labels of the ticks.

Ticks of token counts are powers of two, or multiples of one (8k is 8192 tokens); others are round decimal
numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pigguf.evals.html_markup import format_cell, format_column


@dataclass(frozen=True)
class Axis:
    """A range of values mapped to a range of pixels.

    Attributes:
        low: the value at the start.
        high: the value at the end.
        start: the pixel of the start.
        end: the pixel of the end.
        log: whether the scale is logarithmic.
        ticks: the values to label, ascending.
        is_tokens: whether the values are counts of tokens.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool
    ticks: tuple[float, ...]
    is_tokens: bool = False

    def to_pixel(self, value: float) -> float:
        """Return the pixel of a value."""
        low, high, value = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def labels(self) -> list[str]:
        """Return the label of each tick."""
        if self.is_tokens:
            return [format_token_count(tick) for tick in self.ticks]
        return format_ticks(self.ticks)


def format_token_count(value: float) -> str:
    """Return a number of tokens as text: 2048 as "2k", 1000 as "1,000"."""
    if value >= 1024 and value % 1024 == 0:
        return f"{value / 1024:g}k"
    return format_cell(value)


def format_ticks(ticks: Sequence[float]) -> list[str]:
    """Return the labels of ticks: with equal decimals, or each as short as possible over several decades."""
    if min(ticks) > 0 and max(ticks) / min(ticks) >= 100:
        return [f"{tick:,.6g}" if tick < 1e6 else f"{tick:.0e}".replace("e+0", "e") for tick in ticks]
    return format_column(ticks)


def fit_axis(
    values: Sequence[float], start: float, end: float, *, log: bool, padding: float, max_ticks: int
) -> Axis:
    """Return an axis that shows all values.

    Args:
        values: finite values, which must be positive if log is set.
        start: the pixel of the axis's start.
        end: the pixel of its end.
        log: whether the scale is logarithmic.
        padding: how far the axis extends beyond the values at each end, as a share of their range.
        max_ticks: about the most ticks.
    """
    low, high = _padded_range(min(values), max(values), log, padding)
    is_tokens = are_token_counts(values)
    if not log:
        ticks = _linear_ticks(low, high, max_ticks, is_tokens)
    elif is_tokens and high >= 2 * low:
        ticks = _thin_out(_powers_of_two(low, high), max_ticks)
    else:
        ticks = _log_ticks(low, high, max_ticks)
    return Axis(low, high, start, end, log, tuple(ticks), is_tokens)


def are_token_counts(values: Sequence[float]) -> bool:
    """Return whether values look like positions or lengths in tokens: powers of two, or multiples of 64."""
    if min(values) < 1:
        return min(values) == 0 and max(values) >= 1024 and all(value % 64 == 0 for value in values)
    are_powers = all(math.log2(value).is_integer() for value in values)
    return are_powers or (max(values) >= 1024 and all(value % 64 == 0 for value in values))


def _padded_range(low: float, high: float, log: bool, padding: float) -> tuple[float, float]:
    if log:
        ratio = (high / low) ** padding if high > low else 1.25
        return low / ratio, high * ratio
    margin = (high - low) * padding if high > low else abs(high) * 0.1 or 1.0
    padded = low - margin
    return (0.0 if low >= 0 > padded else padded), high + margin


def _powers_of_two(low: float, high: float) -> list[float]:
    return [2.0**n for n in range(math.ceil(math.log2(low)), math.floor(math.log2(high)) + 1)]


def _thin_out(ticks: list[float], max_ticks: int) -> list[float]:
    """Return every n-th tick, the last one among them."""
    step = -(-len(ticks) // max_ticks) if ticks else 1
    return ticks[::-1][::step][::-1]


def _linear_ticks(low: float, high: float, max_ticks: int, is_tokens: bool) -> list[float]:
    """Return round values at equal distances: 1, 2 or 5 times a power of ten; for tokens, a power of two."""
    least_step = (high - low) / max_ticks
    if is_tokens:
        step = 2.0 ** math.ceil(math.log2(least_step))
    else:
        decade = 10.0 ** math.floor(math.log10(least_step))
        step = next(m * decade for m in (1, 2, 5, 10) if m * decade >= least_step * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(n * step, 12) for n in range(first, last + 1)]


def _log_ticks(low: float, high: float, max_ticks: int) -> list[float]:
    """Return 1, 2 and 5 times powers of ten, or the powers alone; linear ticks if those are too few."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for multiples in ((1, 2, 5), (1,)):
        ticks = [m * 10.0**n for n in decades for m in multiples if low <= m * 10.0**n <= high]
        if len(ticks) <= max_ticks:
            break
    if len(ticks) < 3:
        return [tick for tick in _linear_ticks(low, high, max_ticks, is_tokens=False) if tick > 0]
    return _thin_out(ticks, max_ticks)
