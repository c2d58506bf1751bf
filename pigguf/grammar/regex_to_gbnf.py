"""A regular expression of a JSON schema as GBNF for the string of JSON that holds such a text.

Contract: ECMA-262's syntax as far as it says a regular language: alternatives, groups, sets, repetitions,
escapes, and anchors at the ends. As a schema means it, a pattern without an anchor may stand anywhere in
the text. Look-around, back references, word boundaries and properties of Unicode are errors.

The rules are an automaton's states (automaton.py), whatever the pattern looks like.
"""

from __future__ import annotations

from pigguf.common.text_decoding import shown
from pigguf.errors import UsageError
from pigguf.grammar import gbnf
from pigguf.grammar.finite_automaton import (
    MOST_STATES,
    Characters,
    Either,
    Node,
    Row,
    Times,
    TooLarge,
    rules_of,
)
from pigguf.grammar.gbnf import CodePointRanges

_DIGITS: CodePointRanges = ((0x30, 0x39),)
_WORD: CodePointRanges = ((0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A))
_SPACE: CodePointRanges = gbnf.union(
    [(9, 13), (0x20, 0x20), (0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A)],
    [(0x2028, 0x2029), (0x202F, 0x202F), (0x205F, 0x205F), (0x3000, 0x3000), (0xFEFF, 0xFEFF)],
)
_LINE_ENDS: CodePointRanges = ((0x0A, 0x0A), (0x0D, 0x0D), (0x2028, 0x2029))
_CLASSES: dict[str, CodePointRanges] = {"d": _DIGITS, "w": _WORD, "s": _SPACE}
_CLASSES |= {name.upper(): gbnf.complement(ranges) for name, ranges in _CLASSES.items()}
_CONTROLS = {"t": 9, "n": 10, "v": 11, "f": 12, "r": 13, "0": 0}
_HEX_DIGITS = {"x": 2, "u": 4}
_ANYTHING = Times(Characters(gbnf.JSON_STRING_CHARACTERS), 0, None)
_LONGEST = 1 << 14  # characters of a pattern


def pattern_rule(pattern: str, rules: dict[str, str]) -> str:
    """The rule of what stands between a JSON string's quotes; rules are added for it.

    Raises:
        UsageError: the pattern is none, or more than a grammar can say.
    """
    try:
        if len(pattern) > _LONGEST:
            raise TooLarge
        return rules_of(_Pattern(pattern).whole(), rules)
    except TooLarge as error:
        raise UsageError(
            f"the pattern {shown(pattern)} comes to more than {MOST_STATES:,} states",
            "repeat less in it, or let fewer of its parts match the same text",
        ) from error


class _Pattern:
    """Reads one pattern from left to right."""

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self._at = 0

    def whole(self) -> Node:
        several: list[Node] = [self._anchored()]
        while self._take("|"):
            several.append(self._anchored())
        if self._at < len(self._pattern):
            raise self._wrong("a bracket is closed that was not opened")
        return Either(several)

    def _anchored(self) -> Node:
        """One alternative of the whole pattern, the only place for anchors."""
        before = [] if self._take("^") else [_ANYTHING]
        inside = self._sequence()
        after = [] if self._take("$") else [_ANYTHING]
        return Row([*before, inside, *after])

    def _sequence(self) -> Row:
        parts: list[Node] = []
        while self._next() not in ("", "|", ")", "$"):
            parts.append(self._repeated(self._atom()))
        return Row(parts)

    def _repeated(self, atom: Node) -> Node:
        least, most = self._bounds()
        if (least, most) == (1, 1):
            return atom
        self._take("?")  # lazy or not, the texts are the same
        return Times(atom, least, most)

    def _bounds(self) -> tuple[int, int | None]:
        for sign, bounds in {"*": (0, None), "+": (1, None), "?": (0, 1)}.items():
            if self._take(sign):
                return bounds
        if not self._take("{"):
            return 1, 1
        least = self._number()
        most: int | None = least
        if self._take(","):
            most = None if self._next() == "}" else self._number()
        self._demand("}")
        if max(least, most or 0) > gbnf.MAX_REPETITIONS or (most is not None and most < least):
            raise self._wrong(
                f"repetitions go from a number to no smaller one, {gbnf.MAX_REPETITIONS:,} at most"
            )
        return least, most

    def _number(self) -> int:
        start = self._at
        while self._next().isdecimal() and self._next().isascii():
            self._at += 1
        if start == self._at:
            raise self._wrong("a number is missing")
        return int(self._pattern[start : self._at])

    def _atom(self) -> Node:
        if self._take("("):
            return self._group()
        if self._take("["):
            return self._written(self._set())
        if self._take("."):
            return self._written(gbnf.complement(_LINE_ENDS))
        if self._take("\\"):
            return self._written(self._escape())
        if self._next() in "*+?{^]}":
            raise self._wrong(f"{self._next()!r} has no meaning here")
        return self._written(_one(self._character()))

    def _group(self) -> Node:
        if self._take("?") and not self._take(":"):
            self._demand("<")
            if self._next() in "=!":
                raise self._wrong("a grammar cannot look behind")
            while not self._take(">"):
                self._character()
        several: list[Node] = [self._sequence()]
        while self._take("|"):
            several.append(self._sequence())
        self._demand(")")
        return Either(several)

    def _set(self) -> CodePointRanges:
        is_negative = self._take("^")
        ranges: list[tuple[int, int]] = []
        while not self._take("]"):
            first = self._member()
            if len(first) == 1 and first[0][0] == first[0][1] and self._is_range():
                self._demand("-")
                last = self._member()
                if len(last) != 1 or last[0][1] < first[0][0]:
                    raise self._wrong("a range ends before it begins")
                first = [(first[0][0], last[0][1])]
            ranges += first
        return gbnf.complement(ranges) if is_negative else gbnf.union(ranges)

    def _member(self) -> CodePointRanges:
        return self._escape(backspace=True) if self._take("\\") else _one(self._character())

    def _is_range(self) -> bool:
        return self._next() == "-" and self._pattern[self._at + 1 : self._at + 2] not in ("]", "")

    def _escape(self, backspace: bool = False) -> CodePointRanges:
        name = self._character()
        if name in _CLASSES:
            return _CLASSES[name]
        if name in _CONTROLS:
            return _one(chr(_CONTROLS[name]))
        if name == "b" and backspace:
            return _one("\b")
        if name in _HEX_DIGITS:
            digits = self._pattern[self._at : self._at + _HEX_DIGITS[name]]
            self._at += len(digits)
            try:
                return _one(chr(int(digits, 16)))
            except ValueError as error:
                raise self._wrong(f"\\{name} needs {_HEX_DIGITS[name]} hexadecimal digits") from error
        if name.isalnum():
            raise self._wrong(f"\\{name} is more than a grammar can say")
        return _one(name)

    def _written(self, ranges: CodePointRanges) -> Characters:
        written = gbnf.intersection(ranges, gbnf.JSON_STRING_CHARACTERS)
        if not written:
            raise self._wrong("no character that JSON writes is meant")
        return Characters(written)

    # ---- the text of the pattern -----------------------------------------------------------------

    def _next(self) -> str:
        return self._pattern[self._at : self._at + 1]

    def _character(self) -> str:
        character = self._next()
        if not character:
            raise self._wrong("it ends too early")
        self._at += 1
        return character

    def _take(self, character: str) -> bool:
        found = self._next() == character
        self._at += found
        return found

    def _demand(self, character: str) -> None:
        if not self._take(character):
            raise self._wrong(f"{character!r} is missing, or what is here is more than a grammar can say")

    def _wrong(self, reason: str) -> UsageError:
        return UsageError(
            f"the pattern {shown(self._pattern)}, character {self._at + 1}: {reason}",
            "patterns may have alternatives, groups, sets, repetitions, and anchors at their ends",
        )


def _one(character: str) -> CodePointRanges:
    return ((ord(character), ord(character)),)
