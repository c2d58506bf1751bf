"""Where the words of an answer stand in the passages it was drawn from: a citation that needs no model to
make it.

Contract: a quote is a run of WORDS words or more that an answer and a passage share, whatever stands
between the words; the longest run from each place of the answer, the first passage that has it.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pigguf.documents.document import Passage, SourceLocation

MIN_QUOTE_WORDS = 4
"""Fewer words in common say little."""

_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class QuoteMatch:
    """
    Attributes:
        text: as the document has it, on one line.
        passage: its index among the passages that were searched.
        place: where it stands.
    """

    text: str
    passage_index: int
    location: SourceLocation


@dataclass(frozen=True)
class _Word:
    text: str
    start: int
    stop: int


def find_quotes(answer: str, passages: Sequence[Passage]) -> Iterator[QuoteMatch]:
    """What the answer says in the passages' own words, in the answer's order."""
    said = _words(answer)
    read = [_words(passage.text) for passage in passages]
    runs = _runs_of(said)
    places: dict[tuple[str, ...], list[tuple[int, int]]] = defaultdict(list)
    for index, text in enumerate(read):
        for at in range(len(text) - MIN_QUOTE_WORDS + 1):
            run = tuple(word.text for word in text[at : at + MIN_QUOTE_WORDS])
            if run in runs:
                places[run].append((index, at))
    at = 0
    while at <= len(said) - MIN_QUOTE_WORDS:
        found = places.get(tuple(word.text for word in said[at : at + MIN_QUOTE_WORDS]))
        if found is None:
            at += 1
            continue
        index, begins = max(found, key=lambda place: _shared(said[at:], read[place[0]][place[1] :]))
        length = _shared(said[at:], read[index][begins:])
        yield _quote(passages[index], index, read[index][begins], read[index][begins + length - 1])
        at += length


def _words(text: str) -> list[_Word]:
    return [_Word(match[0].casefold(), *match.span()) for match in _WORD.finditer(text)]


def _runs_of(words: list[_Word]) -> set[tuple[str, ...]]:
    return {tuple(word.text for word in words[at : at + MIN_QUOTE_WORDS]) for at in range(len(words) - MIN_QUOTE_WORDS + 1)}


def _shared(some: list[_Word], others: list[_Word]) -> int:
    """How many words both begin with."""
    pairs = zip(some, others, strict=False)
    return next((i for i, (x, y) in enumerate(pairs) if x.text != y.text), min(len(some), len(others)))


def _quote(passage: Passage, index: int, first: _Word, last: _Word) -> QuoteMatch:
    start, stop = passage.start + first.start, passage.start + last.stop
    text = " ".join(passage.document.text[start:stop].split())
    return QuoteMatch(text, index, passage.document.location(start, stop))
