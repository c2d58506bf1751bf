"""Numbers within bounds as GBNF: ranges of integers, digit by digit, and what lies between them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pigguf.grammar import gbnf

_DIGITS = 15  # of a number without bounds: a double holds them all
_BETWEEN = f'"." [0-9]{{0,{_DIGITS - 1}}} [1-9]'  # never a whole number
_INTEGER = f'("0" | "-"? [1-9] [0-9]{{0,{_DIGITS - 1}}})'
_NUMBER = (
    f'("-"? ("0" | [1-9] [0-9]{{0,{_DIGITS - 1}}}) ("." [0-9]{{1,{_DIGITS}}})? ([eE] [-+]? [0-9]{{1,2}})?)'
)


@dataclass(frozen=True)
class Bounds:
    """What a schema says of a number.

    Attributes:
        least, most: of the integers; None is no bound.
        from_, to: every number between these two integers is within the bounds.
    """

    least: int | None
    most: int | None
    from_: int | None
    to: int | None

    @classmethod
    def of(cls, schema: Mapping[str, float]) -> Bounds:
        """The tightest of minimum, exclusiveMinimum, maximum and exclusiveMaximum."""
        low, above = schema.get("minimum"), schema.get("exclusiveMinimum")
        high, below = schema.get("maximum"), schema.get("exclusiveMaximum")
        lows = [math.ceil(low)] if low is not None else []
        highs = [math.floor(high)] if high is not None else []
        return cls(
            least=max([*lows, *([] if above is None else [math.floor(above) + 1])], default=None),
            most=min([*highs, *([] if below is None else [math.ceil(below) - 1])], default=None),
            from_=max([*lows, *([] if above is None else [math.ceil(above)])], default=None),
            to=min([*highs, *([] if below is None else [math.floor(below)])], default=None),
        )


def integers(bounds: Bounds) -> str:
    """The integers within bounds, "" where there are none."""
    if bounds.least is None and bounds.most is None:
        return _INTEGER
    parts = _signed(bounds.least, bounds.most)
    return gbnf.alternation(parts) if parts else ""


def numbers(bounds: Bounds) -> str:
    """The integers within bounds, and what lies between two of them; "" where there are none."""
    if bounds.from_ is None and bounds.to is None:
        return _NUMBER
    parts = _signed(bounds.least, bounds.most)
    # k and a fraction lie between k and k + 1, with a minus between -k - 1 and -k
    positive = _from_to(max(0, bounds.from_ or 0), None if bounds.to is None else bounds.to - 1)
    negative = _from_to(max(0, -(bounds.to or 0)), None if bounds.from_ is None else -bounds.from_ - 1)
    parts += [f"{gbnf.alternation(positive)} {_BETWEEN}"] if positive else []
    parts += [f'"-" {gbnf.alternation(negative)} {_BETWEEN}'] if negative else []
    return gbnf.alternation(parts) if parts else ""


def _signed(least: int | None, most: int | None) -> list[str]:
    negative = _from_to(max(1, -(most or 0)), None if least is None else -least)
    return [f'"-" {part}' for part in negative] + _from_to(max(0, least or 0), most)


def _from_to(first: int, last: int | None) -> list[str]:
    """The integers from first, which is 0 or more, to last, each length of them by itself."""
    if last is None:
        last = int("9" * max(_DIGITS, len(str(first)) + 1))
    lengths = range(len(str(first)), len(str(max(0, last))) + 1)
    ends = (
        (max(first, 10 ** (length - 1) if length > 1 else 0), min(last, 10**length - 1)) for length in lengths
    )
    return [" ".join(_digits(str(low), str(high))) for low, high in ends if low <= high]


def _digits(low: str, high: str) -> Iterator[str]:
    """The numbers from low to high, of equally many digits."""
    if not low:
        return
    rest, zeros, nines = len(low) - 1, "0" * (len(low) - 1), "9" * (len(low) - 1)
    if low[0] == high[0]:
        yield gbnf.literal(low[0])
        yield from _digits(low[1:], high[1:])
        return
    first, last = int(low[0]), int(high[0])
    parts: list[str] = []
    if low[1:] != zeros:
        parts.append(" ".join([gbnf.literal(low[0]), *_digits(low[1:], nines)]))
        first += 1
    if high[1:] != nines:
        parts.append(" ".join([gbnf.literal(high[0]), *_digits(zeros, high[1:])]))
        last -= 1
    if first <= last:
        parts.append(" ".join([f"[{first}-{last}]", *([gbnf.repetition("[0-9]", rest, rest)] if rest else [])]))
    yield gbnf.alternation(parts) if len(parts) > 1 else parts[0]
