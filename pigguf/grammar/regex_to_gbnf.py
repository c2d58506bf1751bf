"""The regular expression of a JSON schema ("pattern") as GBNF rules for the JSON string of a matching text.

ECMA-262's syntax is accepted as far as it describes a regular language: alternations, groups, character
classes, repetitions, escapes, and anchors at the ends. As JSON Schema defines it, a pattern without anchors
may match anywhere in the text. Look-around, back references, word boundaries and Unicode properties are
errors.

The rules are those of a deterministic automaton (finite_automaton.py), however the pattern is written.
"""

from __future__ import annotations

from pigguf.common.text_decoding import preview_json_value
from pigguf.errors import UsageError
from pigguf.grammar import gbnf
from pigguf.grammar.finite_automaton import (
    MAX_STATES,
    Alternation,
    CharacterClass,
    Concatenation,
    RegexNode,
    Repetition,
    TooManyStates,
    add_dfa_rules,
)
from pigguf.grammar.gbnf import CodePointRanges

_DIGIT: CodePointRanges = ((0x30, 0x39),)
_WORD: CodePointRanges = ((0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A))
_SPACE: CodePointRanges = gbnf.union(
    [(9, 13), (0x20, 0x20), (0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A)],
    [(0x2028, 0x2029), (0x202F, 0x202F), (0x205F, 0x205F), (0x3000, 0x3000), (0xFEFF, 0xFEFF)],
)
_LINE_TERMINATORS: CodePointRanges = ((0x0A, 0x0A), (0x0D, 0x0D), (0x2028, 0x2029))
_CLASS_ESCAPES: dict[str, CodePointRanges] = {"d": _DIGIT, "w": _WORD, "s": _SPACE}
_CLASS_ESCAPES |= {name.upper(): gbnf.complement(ranges) for name, ranges in _CLASS_ESCAPES.items()}
_CONTROL_ESCAPES = {"t": 9, "n": 10, "v": 11, "f": 12, "r": 13, "0": 0}
_HEX_ESCAPES = {"x": 2, "u": 4}  # digits after \x and \u
_QUANTIFIERS: dict[str, tuple[int, int | None]] = {"*": (0, None), "+": (1, None), "?": (0, 1)}
_ANY_TEXT = Repetition(CharacterClass(gbnf.JSON_STRING_CHARACTERS), 0, None)
_MAX_PATTERN_LENGTH = 1 << 14


def add_pattern_rules(pattern: str, rules: dict[str, str]) -> str:
    """Add the rules of what is between the quotes of a matching JSON string, and return the first one's name.

    Raises:
        UsageError: The pattern is not valid, or is more than a grammar can express.
    """
    try:
        if len(pattern) > _MAX_PATTERN_LENGTH:
            raise TooManyStates
        return add_dfa_rules(_RegexParser(pattern).parse(), rules)
    except TooManyStates as error:
        raise UsageError(
            f"the pattern {preview_json_value(pattern)} needs more than {MAX_STATES:,} states",
            "use fewer repetitions in it, or fewer parts that match the same text",
        ) from error


class _RegexParser:
    """A recursive-descent parser of one pattern."""

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self._at = 0

    def parse(self) -> RegexNode:
        """Return the whole pattern.

        Raises:
            UsageError: It is not valid.
        """
        options: list[RegexNode] = [self._anchored_alternative()]
        while self._take("|"):
            options.append(self._anchored_alternative())
        if self._at < len(self._pattern):
            raise self._error("there is no opening bracket for this closing one")
        return Alternation(options)

    def _anchored_alternative(self) -> RegexNode:
        """Parse one alternative of the whole pattern, where alone anchors are accepted."""
        before = [] if self._take("^") else [_ANY_TEXT]
        inside = self._concatenation()
        after = [] if self._take("$") else [_ANY_TEXT]
        return Concatenation([*before, inside, *after])

    def _concatenation(self) -> Concatenation:
        items: list[RegexNode] = []
        while self._peek() not in ("", "|", ")", "$"):
            items.append(self._quantified(self._atom()))
        return Concatenation(items)

    def _quantified(self, atom: RegexNode) -> RegexNode:
        minimum, maximum = self._quantifier()
        if (minimum, maximum) == (1, 1):
            return atom
        self._take("?")  # lazy or greedy, the same texts match
        return Repetition(atom, minimum, maximum)

    def _quantifier(self) -> tuple[int, int | None]:
        for sign, bounds in _QUANTIFIERS.items():
            if self._take(sign):
                return bounds
        if not self._take("{"):
            return 1, 1
        minimum = self._number()
        maximum: int | None = minimum
        if self._take(","):
            maximum = None if self._peek() == "}" else self._number()
        self._expect("}")
        too_many = max(minimum, maximum or 0) > gbnf.MAX_REPETITIONS
        if too_many or (maximum is not None and maximum < minimum):
            raise self._error(
                f"repetitions are {{MIN,MAX}} with MIN no larger than MAX, and MAX at most "
                f"{gbnf.MAX_REPETITIONS:,}"
            )
        return minimum, maximum

    def _number(self) -> int:
        start = self._at
        while self._peek().isdecimal() and self._peek().isascii():
            self._at += 1
        if start == self._at:
            raise self._error("a number is missing")
        return int(self._pattern[start : self._at])

    def _atom(self) -> RegexNode:
        if self._take("("):
            return self._group()
        if self._take("["):
            return self._node_of(self._character_class())
        if self._take("."):
            return self._node_of(gbnf.complement(_LINE_TERMINATORS))
        if self._take("\\"):
            return self._node_of(self._escape())
        if self._peek() in "*+?{^]}":
            raise self._error(f"{self._peek()!r} has no meaning here")
        return self._node_of(_single(self._next_character()))

    def _group(self) -> RegexNode:
        if self._take("?") and not self._take(":"):
            self._expect("<")
            if self._peek() in "=!":
                raise self._error("a grammar cannot express look-behind")
            while not self._take(">"):  # a group's name
                self._next_character()
        options: list[RegexNode] = [self._concatenation()]
        while self._take("|"):
            options.append(self._concatenation())
        self._expect(")")
        return Alternation(options)

    def _character_class(self) -> CodePointRanges:
        is_negated = self._take("^")
        ranges: list[tuple[int, int]] = []
        while not self._take("]"):
            first = self._class_member()
            if len(first) == 1 and first[0][0] == first[0][1] and self._is_range():
                self._expect("-")
                last = self._class_member()
                if len(last) != 1 or last[0][1] < first[0][0]:
                    raise self._error("a range ends before it begins")
                first = [(first[0][0], last[0][1])]
            ranges += first
        return gbnf.complement(ranges) if is_negated else gbnf.union(ranges)

    def _class_member(self) -> CodePointRanges:
        return self._escape(in_class=True) if self._take("\\") else _single(self._next_character())

    def _is_range(self) -> bool:
        return self._peek() == "-" and self._pattern[self._at + 1 : self._at + 2] not in ("]", "")

    def _escape(self, in_class: bool = False) -> CodePointRanges:
        name = self._next_character()
        if name in _CLASS_ESCAPES:
            return _CLASS_ESCAPES[name]
        if name in _CONTROL_ESCAPES:
            return _single(chr(_CONTROL_ESCAPES[name]))
        if name == "b" and in_class:
            return _single("\b")
        if name in _HEX_ESCAPES:
            digits = self._pattern[self._at : self._at + _HEX_ESCAPES[name]]
            self._at += len(digits)
            try:
                return _single(chr(int(digits, 16)))
            except ValueError as error:
                raise self._error(f"\\{name} needs {_HEX_ESCAPES[name]} hexadecimal digits") from error
        if name.isalnum():
            raise self._error(f"a grammar cannot express \\{name}")
        return _single(name)

    def _node_of(self, ranges: CodePointRanges) -> CharacterClass:
        """Return a node of the characters that a JSON string can contain."""
        in_json = gbnf.intersection(ranges, gbnf.JSON_STRING_CHARACTERS)
        if not in_json:
            raise self._error("it matches no character that a JSON string can contain")
        return CharacterClass(in_json)

    # ---- the pattern's characters ------------------------------------------------------------------

    def _peek(self) -> str:
        """Return the next character, or "" at the end."""
        return self._pattern[self._at : self._at + 1]

    def _next_character(self) -> str:
        character = self._peek()
        if not character:
            raise self._error("the pattern ends too early")
        self._at += 1
        return character

    def _take(self, character: str) -> bool:
        """Skip the next character if it is this one, and return whether it was."""
        is_next = self._peek() == character
        self._at += is_next
        return is_next

    def _expect(self, character: str) -> None:
        if not self._take(character):
            raise self._error(f"{character!r} is missing, or a grammar cannot express what is here")

    def _error(self, reason: str) -> UsageError:
        return UsageError(
            f"the pattern {preview_json_value(self._pattern)}, character {self._at + 1}: {reason}",
            "patterns may have alternations, groups, character classes, repetitions, and anchors at the ends",
        )


def _single(character: str) -> CodePointRanges:
    return ((ord(character), ord(character)),)
