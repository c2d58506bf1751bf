"""GBNF's notation (literals, character classes, alternations, repetitions), and JSON strings' characters.

Source: llama.cpp grammars/README.md, src/llama-grammar.cpp.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

CodePointRanges = Sequence[tuple[int, int]]
"""Ranges [first, last] of code points, ascending and not adjacent."""

MAX_REPETITIONS = 2000  # llama-grammar.cpp, MAX_REPETITION_THRESHOLD: it refuses a larger bound

ALL_CODE_POINTS: CodePointRanges = ((0, 0xD7FF), (0xE000, 0x10FFFF))
# Characters that need no escape in a JSON string. DEL is left out, as it is invisible.
UNESCAPED: CodePointRanges = ((0x20, 0x21), (0x23, 0x5B), (0x5D, 0x7E), (0x80, 0xD7FF), (0xE000, 0x10FFFF))
_SHORT_ESCAPES = {0x22: '"', 0x5C: "\\", 8: "b", 9: "t", 10: "n", 12: "f", 13: "r"}
_REPETITION = re.compile(r"\{(\d{1,4}),(\d{0,4})\}")


def add_rule(rules: dict[str, str], expression: str) -> str:
    """Add a rule under a new name, and return the name."""
    name = f"r{len(rules)}"
    rules[name] = expression
    return name


def expanded_size(grammar: str) -> int:
    """Return a grammar's length in characters, plus one for each rule that llama.cpp makes of repetitions."""
    counts = (max(map(int, filter(None, bounds))) for bounds in _REPETITION.findall(grammar))
    return len(grammar) + sum(counts)


def literal(text: str) -> str:
    """Return the expression of a text itself, which must not be empty."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def alternation(expressions: Iterable[str]) -> str:
    """Return the expression of any one of several expressions, in brackets."""
    distinct = list(dict.fromkeys(expressions))
    return distinct[0] if len(distinct) == 1 else f"({' | '.join(distinct)})"


def repetition(expression: str, minimum: int, maximum: int | None) -> str:
    """Return an expression repeated `minimum` to `maximum` times; None is unlimited.

    The expression must be one symbol or in brackets.
    """
    if (minimum, maximum) == (1, 1):
        return expression
    return f"{expression}{{{minimum},{'' if maximum is None else maximum}}}"


def character_class(ranges: CodePointRanges) -> str:
    """Return the character class of code points, "[a-z]" by their numbers."""
    return f"[{''.join(_range(first, last) for first, last in ranges)}]"


def json_character_class(ranges: CodePointRanges) -> str:
    """Return the expression of one of these characters as a JSON string writes it, escaped if necessary.

    At least one of them must be in JSON_STRING_CHARACTERS.
    """
    unescaped = intersection(ranges, UNESCAPED)
    expressions = [character_class(unescaped)] if unescaped else []
    expressions += [
        literal("\\" + escape) for code, escape in _SHORT_ESCAPES.items() if contains(ranges, code)
    ]
    return alternation(expressions)


def complement(ranges: Iterable[tuple[int, int]]) -> CodePointRanges:
    """Return all code points outside of ranges, which may be in any order and overlap."""
    outside: list[tuple[int, int]] = []
    start = 0
    for first, last in sorted(ranges):
        if first > start:
            outside.append((start, first - 1))
        start = max(start, last + 1)
    return intersection([*outside, (start, 0x10FFFF)], ALL_CODE_POINTS)


def intersection(one: CodePointRanges, other: CodePointRanges) -> CodePointRanges:
    """Return the code points in both."""
    pairs = ((max(a, c), min(b, d)) for a, b in one for c, d in other)
    return sorted((first, last) for first, last in pairs if first <= last)


def union(*range_lists: Iterable[tuple[int, int]]) -> CodePointRanges:
    """Return the code points in any of several lists of ranges, which may overlap."""
    return complement(complement([pair for ranges in range_lists for pair in ranges]))


def contains(ranges: CodePointRanges, code: int) -> bool:
    """Return whether a code point is in ranges."""
    return any(first <= code <= last for first, last in ranges)


JSON_STRING_CHARACTERS: CodePointRanges = union(UNESCAPED, [(code, code) for code in _SHORT_ESCAPES])
"""Characters that grammars allow in JSON strings: no control characters without a short escape."""


def _range(first: int, last: int) -> str:
    return _code_point(first) if first == last else f"{_code_point(first)}-{_code_point(last)}"


def _code_point(code: int) -> str:
    return f"\\x{code:02X}" if code < 0x100 else f"\\u{code:04X}" if code < 0x10000 else f"\\U{code:08X}"
