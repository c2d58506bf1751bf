"""Lookup decoding: where a text begins to repeat one that stands before it, the rest of it is a draft.

    lookup = Lookup(tokens, pace)         the tokens so far; a Pace lives as long as its session
    draft = lookup.draft(most)            what may come next, [] where nothing does or it would not pay
    lookup.extend(tokens)                 what came

A batch over the last token and the draft costs less than as many single steps. Every token of it that is
what would have been drawn is kept (Session). Left out: the batch, and what is drawn from it.
Sources: prompt lookup decoding (github.com/apoorvumang/prompt-lookup-decoding), llama.cpp
common/ngram-map.h; the best length of a draft is that of Leviathan et al., arXiv 2211.17192, section 3.5.
"""

from __future__ import annotations

from collections.abc import Sequence

MATCH = 3  # tokens that stood before in this order, to be taken for the beginning of a repetition
MOST_DRAFTED = 31
# Tokens of a batch whose weights' products come in blocks of fours and eights, less the one that is no draft.
LENGTHS = (1, 2, 3, 5, 7, 11, 15, 23, MOST_DRAFTED)

_BITS = 20  # of a token in a key; larger vocabularies only draft worse
_KEY = (1 << MATCH * _BITS) - 1

_LEAST_GAIN = 1.05  # times the tokens of single steps in the same time
_FIRST_CHANCE, _FIRST_COST = 0.7, 0.3  # before anything was measured
_MOST_COST = 2.0  # what is more was an accident
_RATE = 0.1  # at which measurements replace what was believed
_FORGETTING = (
    0.002  # of a cost that keeps good drafts away: the next text may be shorter, or the machine idle
)


class Lookup:
    """The tokens of one text while it is written, and where their last ones stood before."""

    def __init__(self, tokens: Sequence[int], pace: Pace) -> None:
        self._pace = pace
        self._tokens: list[int] = []
        self._ends: dict[int, int] = {}  # where MATCH tokens ended last
        self._key = 0
        self._source = 0  # index of what came after them when they stood there before; 0 is nothing
        self._length = 0  # of what is repeated so far, in tokens
        key, ends = 0, self._ends
        for end, token in enumerate(tokens[:-1], 1):
            key = (key << _BITS | token) & _KEY
            ends[key] = end
        self._key, self._tokens = key, list(tokens[:-1])
        self._move_on(tokens[-1])

    def took(self, tokens: int, seconds: float) -> None:
        """Learn from the time of a step over so many tokens."""
        self._pace.took(tokens, seconds)

    def extend(self, tokens: Sequence[int]) -> None:
        """Note the tokens that came, and how good drafts of them would have been."""
        for token in tokens:
            self._append(token)

    def _append(self, token: int) -> None:
        if self._source:
            is_right = self._tokens[self._source] == token
            self._pace.learn(self._length, is_right)
            if is_right:
                self._move_on(token, self._source + 1)
                return
        self._move_on(token)

    def _move_on(self, token: int, source: int = 0) -> None:
        """The repetition goes on at `source`, or where these last tokens stood before."""
        self._tokens.append(token)
        self._key = (self._key << _BITS | token) & _KEY
        earlier = self._ends.get(self._key, 0)
        self._ends[self._key] = len(self._tokens)
        self._length = self._length + 1 if source else MATCH
        self._source = source or earlier

    def draft(self, most: int) -> list[int]:
        """Up to `most` tokens that may come next; a repetition that reaches the end goes round."""
        if not self._source:
            return []
        count = self._pace.best_length(self._length, min(most, MOST_DRAFTED))
        found = self._tokens[self._source : self._source + count]
        return (found * count)[:count]


class Pace:
    """What batches cost on this machine and how often drafts are right, from the steps of one session."""

    def __init__(self) -> None:
        self._single = 0.0  # seconds of a step of one token; 0 before the first
        self._cost = _FIRST_COST  # of each further token in a batch, in such steps
        self._chances = [_FIRST_CHANCE] * 6  # that a token is right, by the bits of the repetition's length

    def took(self, tokens: int, seconds: float) -> None:
        """Learn from a step over so many tokens."""
        if tokens == 1:
            self._single += (seconds - self._single) * (_RATE if self._single else 1)
        elif self._single:
            cost = (seconds / self._single - 1) / (tokens - 1)
            self._cost += (min(max(cost, 0.0), _MOST_COST) - self._cost) * _RATE

    def learn(self, length: int, is_right: bool) -> None:
        """Learn whether the token after a repetition of `length` tokens was the expected one."""
        kind = min(length.bit_length(), len(self._chances) - 1)
        self._chances[kind] += (is_right - self._chances[kind]) * _RATE

    def best_length(self, length: int, most: int) -> int:
        """How many tokens to draft after a repetition of `length` tokens, up to `most`; 0 if none pays.

        n tokens, each right with a chance p, bring 1 + p + ... + p^n tokens in the time of 1 + n * cost.
        """
        if not self._single:
            return 0
        p, cost = self._chances[min(length.bit_length(), len(self._chances) - 1)], self._cost
        if p > cost:
            gain, best = max((_tokens(p, n) / (1 + n * cost), n) for n in LENGTHS)
            if gain > _LEAST_GAIN:
                return min(best, most)
        if p > _FIRST_CHANCE:
            self._cost += (_FIRST_COST - cost) * _FORGETTING
        return 0


def _tokens(p: float, drafted: int) -> float:
    return (1 - p ** (drafted + 1)) / (1 - p) if p < 1 else drafted + 1.0
