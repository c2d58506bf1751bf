"""A regular language as the rules of a grammar, of which the engine follows one at a time.

    rules_of(Row([Characters(A), Times(Characters(B), 0, None)]), rules)    the name of the first rule

A rule for each state of a deterministic automaton: a character, and the rule that is next. No two of its
alternatives begin alike, so that there is one way to read a text. Where there are many, llama.cpp tries each
of them for every token, which may take longer than anybody lives: for some, `[a-z]*[a-z]*...` is enough.
Source: Thompson 1968 (an expression as states), Rabin and Scott 1959 (sets of states as states).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from pigguf.grammar import gbnf
from pigguf.grammar.gbnf import CodePointRanges

MOST_STATES = 8192
_MOST_WORK = 1 << 21  # states looked at: a second or two
_SHORT = 8  # characters of a set that is not worth a rule of its own

_States = frozenset[int]


@dataclass(frozen=True)
class Characters:
    """One character of these, all of which JSON can write."""

    ranges: CodePointRanges


@dataclass(frozen=True)
class Row:
    """One part after the other."""

    parts: Sequence[Node]


@dataclass(frozen=True)
class Either:
    """One of the parts."""

    parts: Sequence[Node]


@dataclass(frozen=True)
class Times:
    """A part, so many times; None is any number."""

    part: Node
    least: int
    most: int | None


Node = Characters | Row | Either | Times


class TooLarge(Exception):
    """An expression that comes to more states than are made."""


def rules_of(node: Node, rules: dict[str, str]) -> str:
    """The rule of the texts that a node describes, as they stand in a JSON string; rules are added for it.

    Raises:
        TooLarge: there would be too many.
    """
    states = _determined(node)
    names = [gbnf.add_rule(rules, "") for _ in states]
    sets: dict[str, str] = {}
    for name, (moves, is_end) in zip(names, states, strict=True):
        ways = [f"{_named(ranges, sets, rules)} {names[target]}" for target, ranges in moves.items()]
        rules[name] = " | ".join([*ways, '""'] if is_end else ways)
    return names[0]


def _named(ranges: Iterable[tuple[int, int]], sets: dict[str, str], rules: dict[str, str]) -> str:
    written = gbnf.json_character_class(gbnf.union(ranges))
    if len(written) <= _SHORT:
        return written
    if written not in sets:
        sets[written] = gbnf.add_rule(rules, written)
    return sets[written]


def _determined(node: Node) -> list[tuple[dict[int, list[tuple[int, int]]], bool]]:
    """For each state the characters that lead to others, and whether a text may end there; the first is 0."""
    machine = _Machine()
    start = machine.state()
    end = machine.add(node, start)
    found = [machine.closure(frozenset((start,)))]
    numbers = {found[0]: 0}
    states: list[tuple[dict[int, list[tuple[int, int]]], bool]] = []
    for together in found:  # which grows meanwhile
        moves: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
        for first, last, targets in machine.moves(together):
            target = machine.closure(targets)
            if target not in numbers:
                _refuse_more(len(found), MOST_STATES)
                numbers[target] = len(found)
                found.append(target)
            moves[numbers[target]].append((first, last))
        states.append((dict(moves), end in together))
    return states


class _Machine:
    """States by number, what leads from one to another with a character, and what without."""

    def __init__(self) -> None:
        self._by_character: list[list[tuple[CodePointRanges, int]]] = []
        self._freely: list[list[int]] = []
        self._closures: dict[_States, _States] = {}
        self._work = 0

    def state(self) -> int:
        _refuse_more(len(self._freely), MOST_STATES)
        self._by_character.append([])
        self._freely.append([])
        return len(self._freely) - 1

    def add(self, node: Node, start: int) -> int:
        """Have a node's texts lead from a state to another, which is the answer."""
        if isinstance(node, Characters):
            end = self.state()
            self._by_character[start].append((node.ranges, end))
            return end
        if isinstance(node, Row):
            for part in node.parts:
                start = self.add(part, start)
            return start
        if isinstance(node, Either):
            end = self.state()
            for part in node.parts:
                self._freely[self.add(part, start)].append(end)
            return end
        return self._add_times(node, start)

    def _add_times(self, node: Times, start: int) -> int:
        for _ in range(node.least):
            start = self.add(node.part, start)
        end = self.state()
        self._freely[start].append(end)
        if node.most is None:
            self._freely[self.add(node.part, end)].append(end)
            return end
        for _ in range(node.most - node.least):
            start = self.add(node.part, start)
            self._freely[start].append(end)
        return end

    def closure(self, states: _States) -> _States:
        """These, and those that are reached from them without a character."""
        if states not in self._closures:
            reached, waiting = set(states), list(states)
            while waiting:
                for target in self._freely[waiting.pop()]:
                    if target not in reached:
                        reached.add(target)
                        waiting.append(target)
            self._note_work(len(reached))
            self._closures[states] = frozenset(reached)
        return self._closures[states]

    def moves(self, states: _States) -> Iterator[tuple[int, int, _States]]:
        """Ranges of characters [first, last] that do not overlap, and where these states go with them."""
        edges = sorted(
            edge
            for state in states
            for ranges, target in self._by_character[state]
            for first, last in ranges
            for edge in ((first, 1, target), (last + 1, -1, target))
        )
        self._note_work(len(edges))
        going: Counter[int] = Counter()
        since = 0
        for at, change, target in edges:
            if going and since < at:
                self._note_work(len(going))
                yield since, at - 1, frozenset(going)
            since = at
            going[target] += change
            if not going[target]:
                del going[target]

    def _note_work(self, count: int) -> None:
        self._work += count
        _refuse_more(self._work, _MOST_WORK)


def _refuse_more(count: int, most: int) -> None:
    if count >= most:
        raise TooLarge
