"""Numbers within bounds as GBNF: ranges of integers digit by digit, and the fractions between them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pigguf.grammar import gbnf

_MAX_DIGITS = 15  # of an unbounded number: a double represents them all exactly
_FRACTION = f'"." [0-9]{{0,{_MAX_DIGITS - 1}}} [1-9]'  # not zero, so that the number is not an integer
_ANY_INTEGER = f'("0" | "-"? [1-9] [0-9]{{0,{_MAX_DIGITS - 1}}})'
_ANY_NUMBER = (
    f'("-"? ("0" | [1-9] [0-9]{{0,{_MAX_DIGITS - 1}}}) ("." [0-9]{{1,{_MAX_DIGITS}}})? '
    "([eE] [-+]? [0-9]{1,2})?)"
)


@dataclass(frozen=True)
class NumberBounds:
    """The bounds of a number in a schema; None is no bound.

    Attributes:
        min_integer, max_integer: The smallest and the largest integer within the bounds.
        inner_min, inner_max: Integers such that every number between them is within the bounds.
    """

    min_integer: int | None
    max_integer: int | None
    inner_min: int | None
    inner_max: int | None

    @classmethod
    def from_schema(cls, schema: Mapping[str, float]) -> NumberBounds:
        """Return the tightest of minimum, exclusiveMinimum, maximum and exclusiveMaximum."""
        low, above = schema.get("minimum"), schema.get("exclusiveMinimum")
        high, below = schema.get("maximum"), schema.get("exclusiveMaximum")
        lows = [math.ceil(low)] if low is not None else []
        highs = [math.floor(high)] if high is not None else []
        return cls(
            min_integer=max([*lows, *([] if above is None else [math.floor(above) + 1])], default=None),
            max_integer=min([*highs, *([] if below is None else [math.ceil(below) - 1])], default=None),
            inner_min=max([*lows, *([] if above is None else [math.ceil(above)])], default=None),
            inner_max=min([*highs, *([] if below is None else [math.floor(below)])], default=None),
        )


UNBOUNDED = NumberBounds(None, None, None, None)


def integer_expression(bounds: NumberBounds) -> str:
    """Return the expression of the integers within bounds, or "" if there are none."""
    if bounds.min_integer is None and bounds.max_integer is None:
        return _ANY_INTEGER
    expressions = _signed_integers(bounds.min_integer, bounds.max_integer)
    return gbnf.alternation(expressions) if expressions else ""


def number_expression(bounds: NumberBounds) -> str:
    """Return the expression of the integers within bounds and the fractions between them, or "" for none."""
    low, high = bounds.inner_min, bounds.inner_max
    if low is None and high is None:
        return _ANY_NUMBER
    expressions = _signed_integers(bounds.min_integer, bounds.max_integer)
    # k with a fraction is between k and k + 1; with a minus sign between -k - 1 and -k
    positive = _natural_numbers(max(0, low or 0), None if high is None else high - 1)
    negative = _natural_numbers(max(0, -(high or 0)), None if low is None else -low - 1)
    expressions += [f"{gbnf.alternation(positive)} {_FRACTION}"] if positive else []
    expressions += [f'"-" {gbnf.alternation(negative)} {_FRACTION}'] if negative else []
    return gbnf.alternation(expressions) if expressions else ""


def _signed_integers(minimum: int | None, maximum: int | None) -> list[str]:
    negative = _natural_numbers(max(1, -(maximum or 0)), None if minimum is None else -minimum)
    return [f'"-" {digits}' for digits in negative] + _natural_numbers(max(0, minimum or 0), maximum)


def _natural_numbers(first: int, last: int | None) -> list[str]:
    """Return the expressions of the integers from `first`, 0 or more, to `last`: one for each length."""
    if last is None:
        last = int("9" * max(_MAX_DIGITS, len(str(first)) + 1))
    lengths = range(len(str(first)), len(str(max(0, last))) + 1)
    ends = (
        (max(first, 10 ** (length - 1) if length > 1 else 0), min(last, 10**length - 1)) for length in lengths
    )
    return [" ".join(_same_length(str(low), str(high))) for low, high in ends if low <= high]


def _same_length(low: str, high: str) -> Iterator[str]:
    """Yield the symbols of the numbers from `low` to `high`, which have equally many digits."""
    if not low:
        return
    rest, zeros, nines = len(low) - 1, "0" * (len(low) - 1), "9" * (len(low) - 1)
    if low[0] == high[0]:
        yield gbnf.literal(low[0])
        yield from _same_length(low[1:], high[1:])
        return
    first, last = int(low[0]), int(high[0])
    expressions: list[str] = []
    if low[1:] != zeros:
        expressions.append(" ".join([gbnf.literal(low[0]), *_same_length(low[1:], nines)]))
        first += 1
    if high[1:] != nines:
        expressions.append(" ".join([gbnf.literal(high[0]), *_same_length(zeros, high[1:])]))
        last -= 1
    if first <= last:
        any_digits = [gbnf.repetition("[0-9]", rest, rest)] if rest else []
        expressions.append(" ".join([f"[{first}-{last}]", *any_digits]))
    yield gbnf.alternation(expressions) if len(expressions) > 1 else expressions[0]
