"""GBNF's own notation: literals, sets of characters, repetitions, and a string of JSON.

Upstream: llama.cpp grammars/README.md, src/llama-grammar.cpp.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

CodePointRanges = Sequence[tuple[int, int]]
"""Code points, as ascending ranges [first, last] that do not touch."""

MAX_REPETITIONS = 2000  # llama-grammar.cpp, MAX_REPETITION_THRESHOLD: it takes a larger bound for none

ALL_CODE_POINTS: CodePointRanges = ((0, 0xD7FF), (0xE000, 0x10FFFF))
# What stands for itself in a JSON string; the rest needs a backslash. DEL is better not seen.
UNESCAPED: CodePointRanges = ((0x20, 0x21), (0x23, 0x5B), (0x5D, 0x7E), (0x80, 0xD7FF), (0xE000, 0x10FFFF))
_ESCAPED = {0x22: '"', 0x5C: "\\", 8: "b", 9: "t", 10: "n", 12: "f", 13: "r"}
_REPETITION = re.compile(r"\{(\d{1,4}),(\d{0,4})\}")


def add_rule(rules: dict[str, str], expression: str) -> str:
    """The name of a new rule."""
    name = f"r{len(rules)}"
    rules[name] = expression
    return name


def expanded_size(grammar: str) -> int:
    """Characters of a grammar, and what llama.cpp makes of its repetitions: a rule for each time."""
    counts = (max(map(int, filter(None, bounds))) for bounds in _REPETITION.findall(grammar))
    return len(grammar) + sum(counts)


def literal(text: str) -> str:
    """A text as it is; it must not be empty."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def alternation(expressions: Iterable[str]) -> str:
    """One of several expressions."""
    several = list(dict.fromkeys(expressions))
    return several[0] if len(several) == 1 else f"({' | '.join(several)})"


def repetition(expression: str, least: int, most: int | None) -> str:
    """An expression that is one symbol or in brackets, from `least` to `most` times."""
    if (least, most) == (1, 1):
        return expression
    return f"{expression}{{{least},{'' if most is None else most}}}"


def character_class(ranges: CodePointRanges) -> str:
    """One character out of ranges of code points."""
    return f"[{''.join(_range(first, last) for first, last in ranges)}]"


def json_character_class(ranges: CodePointRanges) -> str:
    """One character of these, some of which are of WRITTEN, as it is written in a JSON string."""
    raw = intersection(ranges, UNESCAPED)
    written = [character_class(raw)] if raw else []
    written += [literal("\\" + short) for code, short in _ESCAPED.items() if contains(ranges, code)]
    return alternation(written)


def complement(ranges: Iterable[tuple[int, int]]) -> CodePointRanges:
    """The characters that are not in ranges, which may be in any order."""
    left: list[tuple[int, int]] = []
    start = 0
    for first, last in sorted(ranges):
        if first > start:
            left.append((start, first - 1))
        start = max(start, last + 1)
    return intersection([*left, (start, 0x10FFFF)], ALL_CODE_POINTS)


def intersection(one: CodePointRanges, other: CodePointRanges) -> CodePointRanges:
    """The characters that are in both."""
    pairs = ((max(a, c), min(b, d)) for a, b in one for c, d in other)
    return sorted((first, last) for first, last in pairs if first <= last)


def union(*several: Iterable[tuple[int, int]]) -> CodePointRanges:
    """The characters that are in any of them."""
    return complement(complement([pair for ranges in several for pair in ranges]))


def contains(ranges: CodePointRanges, code: int) -> bool:
    return any(first <= code <= last for first, last in ranges)


JSON_STRING_CHARACTERS: CodePointRanges = union(UNESCAPED, [(code, code) for code in _ESCAPED])
"""What a JSON string holds here: control characters without an escape of one letter are left out."""


def _range(first: int, last: int) -> str:
    return _code(first) if first == last else f"{_code(first)}-{_code(last)}"


def _code(code: int) -> str:
    return f"\\x{code:02X}" if code < 0x100 else f"\\u{code:04X}" if code < 0x10000 else f"\\U{code:08X}"
