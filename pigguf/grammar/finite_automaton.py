"""A regular expression as a deterministic finite automaton (DFA), written as right-linear GBNF rules.

    add_dfa_rules(Concatenation([CharacterClass(A), Repetition(CharacterClass(B), 0, None)]), rules)

There is one rule for each state of the DFA: a character, and the rule of the next state. No two alternatives
of a rule begin with the same character, so that the engine follows a single path through a text. With an
ambiguous grammar llama.cpp tries every path for every token, and for `[a-z]*[a-z]*...` that takes
exponentially long.

Source: Thompson 1968 (regular expression to NFA), Rabin and Scott 1959 (NFA to DFA by subset construction).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from pigguf.grammar import gbnf
from pigguf.grammar.gbnf import CodePointRanges

MAX_STATES = 8192
_MAX_VISITED = 1 << 21  # states and transitions visited: a second or two
_INLINE_LENGTH = 8  # characters of a character class that is written in place rather than as a rule

_StateSet = frozenset[int]
_Transitions = dict[int, list[tuple[int, int]]]
"""Target states, each with the ranges of code points that lead to it."""


@dataclass(frozen=True)
class CharacterClass:
    """One character of ranges, all of which a JSON string can contain."""

    ranges: CodePointRanges


@dataclass(frozen=True)
class Concatenation:
    """Expressions in sequence."""

    items: Sequence[RegexNode]


@dataclass(frozen=True)
class Alternation:
    """Any one of several expressions."""

    options: Sequence[RegexNode]


@dataclass(frozen=True)
class Repetition:
    """An expression repeated `minimum` to `maximum` times; None is unlimited."""

    item: RegexNode
    minimum: int
    maximum: int | None


RegexNode = CharacterClass | Concatenation | Alternation | Repetition


class TooManyStates(Exception):
    """An expression needs more states than the limit."""


def add_dfa_rules(node: RegexNode, rules: dict[str, str]) -> str:
    """Add the rules of an expression's texts, as JSON strings write them, and return the first one's name.

    Raises:
        TooManyStates: The automaton would be too large.
    """
    states = _build_dfa(node)
    names = [gbnf.add_rule(rules, "") for _ in states]
    class_names: dict[str, str] = {}
    for name, (transitions, is_accepting) in zip(names, states, strict=True):
        alternatives = [
            f"{_class_expression(ranges, class_names, rules)} {names[target]}"
            for target, ranges in transitions.items()
        ]
        rules[name] = " | ".join([*alternatives, '""'] if is_accepting else alternatives)
    return names[0]


def _class_expression(
    ranges: Iterable[tuple[int, int]], class_names: dict[str, str], rules: dict[str, str]
) -> str:
    """Return a character class, or the name of its rule if it is long; each is added once."""
    expression = gbnf.json_character_class(gbnf.union(ranges))
    if len(expression) <= _INLINE_LENGTH:
        return expression
    if expression not in class_names:
        class_names[expression] = gbnf.add_rule(rules, expression)
    return class_names[expression]


def _build_dfa(node: RegexNode) -> list[tuple[_Transitions, bool]]:
    """Return the DFA's states, the start state first: transitions, and whether the state is accepting."""
    nfa = _NFA()
    start = nfa.add_state()
    accepting = nfa.add(node, start)
    subsets = [nfa.epsilon_closure(frozenset((start,)))]
    numbers = {subsets[0]: 0}
    states: list[tuple[_Transitions, bool]] = []
    for subset in subsets:  # which grows in the loop
        transitions: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
        for first, last, targets in nfa.transitions(subset):
            target = nfa.epsilon_closure(targets)
            if target not in numbers:
                _check_limit(len(subsets), MAX_STATES)
                numbers[target] = len(subsets)
                subsets.append(target)
            transitions[numbers[target]].append((first, last))
        states.append((dict(transitions), accepting in subset))
    return states


class _NFA:
    """A nondeterministic finite automaton: states by number, with transitions and epsilon transitions."""

    def __init__(self) -> None:
        self._transitions: list[list[tuple[CodePointRanges, int]]] = []
        self._epsilon: list[list[int]] = []
        self._closures: dict[_StateSet, _StateSet] = {}
        self._visited = 0

    def add_state(self) -> int:
        """Add a state and return its number."""
        _check_limit(len(self._epsilon), MAX_STATES)
        self._transitions.append([])
        self._epsilon.append([])
        return len(self._epsilon) - 1

    def add(self, node: RegexNode, start: int) -> int:
        """Add the automaton of an expression after a state, and return the state in which it ends."""
        if isinstance(node, CharacterClass):
            end = self.add_state()
            self._transitions[start].append((node.ranges, end))
            return end
        if isinstance(node, Concatenation):
            for item in node.items:
                start = self.add(item, start)
            return start
        if isinstance(node, Alternation):
            end = self.add_state()
            for option in node.options:
                self._epsilon[self.add(option, start)].append(end)
            return end
        return self._add_repetition(node, start)

    def _add_repetition(self, node: Repetition, start: int) -> int:
        for _ in range(node.minimum):
            start = self.add(node.item, start)
        end = self.add_state()
        self._epsilon[start].append(end)
        if node.maximum is None:
            self._epsilon[self.add(node.item, end)].append(end)
            return end
        for _ in range(node.maximum - node.minimum):
            start = self.add(node.item, start)
            self._epsilon[start].append(end)
        return end

    def epsilon_closure(self, states: _StateSet) -> _StateSet:
        """Return states with all those that are reached from them by epsilon transitions."""
        if states not in self._closures:
            reached, pending = set(states), list(states)
            while pending:
                for target in self._epsilon[pending.pop()]:
                    if target not in reached:
                        reached.add(target)
                        pending.append(target)
            self._count_visited(len(reached))
            self._closures[states] = frozenset(reached)
        return self._closures[states]

    def transitions(self, states: _StateSet) -> Iterator[tuple[int, int, _StateSet]]:
        """Yield disjoint ranges [first, last] of code points, with the states that they lead to."""
        # where a range begins (+1) and ends (-1), for each target
        edges = sorted(
            edge
            for state in states
            for ranges, target in self._transitions[state]
            for first, last in ranges
            for edge in ((first, 1, target), (last + 1, -1, target))
        )
        self._count_visited(len(edges))
        active: Counter[int] = Counter()
        start = 0
        for code, change, target in edges:
            if active and start < code:
                self._count_visited(len(active))
                yield start, code - 1, frozenset(active)
            start = code
            active[target] += change
            if not active[target]:
                del active[target]

    def _count_visited(self, count: int) -> None:
        self._visited += count
        _check_limit(self._visited, _MAX_VISITED)


def _check_limit(count: int, limit: int) -> None:
    if count >= limit:
        raise TooManyStates
