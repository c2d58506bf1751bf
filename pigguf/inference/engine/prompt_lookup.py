"""Prompt lookup decoding: a text that begins to repeat an earlier passage has the rest of it as a draft.

    lookup = PromptLookup(tokens, costs)  the tokens so far; a DraftCostModel lives as long as its session
    draft = lookup.draft(max_tokens)      what may come next; [] if nothing does, or a draft would not pay
    lookup.extend(tokens)                 what came

A batch over the last token and the draft costs less than as many single steps, and each token of it that is
what would have been sampled is kept (generation.py).
Sources: prompt lookup decoding (github.com/apoorvumang/prompt-lookup-decoding), llama.cpp common/ngram-map.h;
the best length of a draft is that of Leviathan et al., arXiv 2211.17192, section 3.5.
"""

from __future__ import annotations

from collections.abc import Sequence

NGRAM_SIZE = 3  # tokens that must match an earlier passage for its continuation to be drafted
MAX_DRAFT_TOKENS = 31
# One less than batch sizes whose matrix products fill blocks of four and eight rows.
DRAFT_LENGTHS = (1, 2, 3, 5, 7, 11, 15, 23, MAX_DRAFT_TOKENS)

_TOKEN_BITS = 20  # of a token in an n-gram key; with larger vocabularies drafts are only worse
_KEY_MASK = (1 << NGRAM_SIZE * _TOKEN_BITS) - 1

_MIN_GAIN = 1.05  # tokens per second of a draft, relative to single steps
_INITIAL_ACCEPTANCE, _INITIAL_COST = 0.7, 0.3  # before anything was measured
_MAX_COST = 2.0  # larger measurements are outliers
_LEARNING_RATE = 0.1  # of the moving averages
# By which a cost that prevents good drafts returns to its initial value at each step: the next text may be
# shorter, or the machine idle.
_COST_DECAY = 0.002


class PromptLookup:
    """The tokens of a text while it is generated, and the earlier passage that its end repeats."""

    def __init__(self, tokens: Sequence[int], costs: DraftCostModel) -> None:
        self._costs = costs
        self._tokens: list[int] = []
        self._ngram_ends: dict[int, int] = {}  # the index after the last occurrence of an n-gram, by its key
        self._key = 0
        self._source = 0  # the index of the token that followed these in the earlier passage; 0 is no match
        self._match_length = 0  # tokens that were repeated so far
        key, ends = 0, self._ngram_ends
        for end, token in enumerate(tokens[:-1], 1):
            key = (key << _TOKEN_BITS | token) & _KEY_MASK
            ends[key] = end
        self._key, self._tokens = key, list(tokens[:-1])
        self._advance(tokens[-1])

    def record_step(self, n_tokens: int, seconds: float) -> None:
        """Learn from the time of a step over `n_tokens` tokens."""
        self._costs.record_step(n_tokens, seconds)

    def extend(self, tokens: Sequence[int]) -> None:
        """Append the tokens that came, and learn how good drafts of them would have been."""
        for token in tokens:
            self._append(token)

    def _append(self, token: int) -> None:
        if self._source:
            is_match = self._tokens[self._source] == token
            self._costs.record_match(self._match_length, is_match)
            if is_match:
                self._advance(token, self._source + 1)
                return
        self._advance(token)

    def _advance(self, token: int, source: int = 0) -> None:
        """Append a token; the repeated passage continues at `source`, or where the last n-gram occurred."""
        self._tokens.append(token)
        self._key = (self._key << _TOKEN_BITS | token) & _KEY_MASK
        earlier = self._ngram_ends.get(self._key, 0)
        self._ngram_ends[self._key] = len(self._tokens)
        self._match_length = self._match_length + 1 if source else NGRAM_SIZE
        self._source = source or earlier

    def draft(self, max_tokens: int) -> list[int]:
        """Return up to `max_tokens` tokens that may come next; a passage that reaches the end is repeated."""
        if not self._source:
            return []
        count = self._costs.best_draft_length(self._match_length, min(max_tokens, MAX_DRAFT_TOKENS))
        passage = self._tokens[self._source : self._source + count]
        return (passage * count)[:count]


class DraftCostModel:
    """What batches cost on this machine and how often drafts are accepted, measured in one session."""

    def __init__(self) -> None:
        self._single_step = 0.0  # seconds of a step of one token; 0 before the first
        self._cost = _INITIAL_COST  # of each further token in a batch, in units of a single step
        # The probability that a draft token is accepted, by the bit length of the match's length.
        self._acceptance = [_INITIAL_ACCEPTANCE] * 6

    def record_step(self, n_tokens: int, seconds: float) -> None:
        """Learn from the time of a step over `n_tokens` tokens."""
        if n_tokens == 1:
            rate = _LEARNING_RATE if self._single_step else 1
            self._single_step += (seconds - self._single_step) * rate
        elif self._single_step:
            cost = (seconds / self._single_step - 1) / (n_tokens - 1)
            self._cost += (min(max(cost, 0.0), _MAX_COST) - self._cost) * _LEARNING_RATE

    def record_match(self, match_length: int, is_match: bool) -> None:
        """Learn whether the token after a repetition of `match_length` tokens was the expected one."""
        bucket = self._bucket(match_length)
        self._acceptance[bucket] += (is_match - self._acceptance[bucket]) * _LEARNING_RATE

    def best_draft_length(self, match_length: int, max_tokens: int) -> int:
        """Return how many tokens to draft after a repetition of `match_length` tokens; 0 if no draft pays.

        n tokens, each accepted with probability p, yield 1 + p + ... + p^n tokens in the time of 1 + n * cost
        single steps.
        """
        if not self._single_step:
            return 0
        p, cost = self._acceptance[self._bucket(match_length)], self._cost
        if p > cost:
            gain, best = max((_expected_tokens(p, n) / (1 + n * cost), n) for n in DRAFT_LENGTHS)
            if gain > _MIN_GAIN:
                return min(best, max_tokens)
        if p > _INITIAL_ACCEPTANCE:
            self._cost += (_INITIAL_COST - cost) * _COST_DECAY
        return 0

    def _bucket(self, match_length: int) -> int:
        return min(match_length.bit_length(), len(self._acceptance) - 1)


def _expected_tokens(p: float, n_drafted: int) -> float:
    return (1 - p ** (n_drafted + 1)) / (1 - p) if p < 1 else n_drafted + 1.0
