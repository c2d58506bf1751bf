"""Which words of an answer are quoted from the passages it was generated from: citations without a model.

A quote is a run of MIN_QUOTE_WORDS or more words that an answer and a passage share, whatever punctuation
and space is between the words. From each position of the answer the longest run counts, and of several
passages with it the first.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pigguf.documents.document import Passage, SourceLocation

MIN_QUOTE_WORDS = 4
"""Fewer words in common are most likely a coincidence."""

_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class QuoteMatch:
    """Words that an answer and a passage share.

    Attributes:
        text: The words as the document has them, on one line.
        passage_index: The passage's index among those searched.
        location: Where the words are in the document.
    """

    text: str
    passage_index: int
    location: SourceLocation


@dataclass(frozen=True)
class _WordSpan:
    """A word in lower case, and the characters [start, stop) that it takes."""

    text: str
    start: int
    stop: int


def find_quotes(answer: str, passages: Sequence[Passage]) -> Iterator[QuoteMatch]:
    """Yield the runs of words that an answer quotes from the passages, in the answer's order."""
    answer_words = _split_words(answer)
    passage_words = [_split_words(passage.text) for passage in passages]
    positions = _positions_of_runs(answer_words, passage_words)
    at = 0
    while at <= len(answer_words) - MIN_QUOTE_WORDS:
        candidates = positions.get(_run(answer_words, at))
        if candidates is None:
            at += 1
            continue
        lengths = [
            _common_prefix_length(answer_words[at:], passage_words[index][start:])
            for index, start in candidates
        ]
        length = max(lengths)
        index, start = candidates[lengths.index(length)]
        words = passage_words[index][start : start + length]
        yield _quote(passages[index], index, words[0], words[-1])
        at += length


def _split_words(text: str) -> list[_WordSpan]:
    return [_WordSpan(match[0].casefold(), *match.span()) for match in _WORD.finditer(text)]


def _run(words: list[_WordSpan], at: int) -> tuple[str, ...]:
    """Return the MIN_QUOTE_WORDS words from an index on."""
    return tuple(word.text for word in words[at : at + MIN_QUOTE_WORDS])


def _positions_of_runs(
    answer_words: list[_WordSpan], passage_words: list[list[_WordSpan]]
) -> dict[tuple[str, ...], list[tuple[int, int]]]:
    """Return where the answer's runs are in the passages: (index of the passage, index of the first word)."""
    wanted = {_run(answer_words, at) for at in range(len(answer_words) - MIN_QUOTE_WORDS + 1)}
    positions: dict[tuple[str, ...], list[tuple[int, int]]] = defaultdict(list)
    for index, words in enumerate(passage_words):
        for at in range(len(words) - MIN_QUOTE_WORDS + 1):
            run = _run(words, at)
            if run in wanted:
                positions[run].append((index, at))
    return positions


def _common_prefix_length(some: list[_WordSpan], others: list[_WordSpan]) -> int:
    """Return how many words both lists begin with."""
    pairs = zip(some, others, strict=False)
    return next((i for i, (x, y) in enumerate(pairs) if x.text != y.text), min(len(some), len(others)))


def _quote(passage: Passage, index: int, first: _WordSpan, last: _WordSpan) -> QuoteMatch:
    start, stop = passage.start + first.start, passage.start + last.stop
    text = " ".join(passage.document.text[start:stop].split())
    return QuoteMatch(text, index, passage.document.location(start, stop))
