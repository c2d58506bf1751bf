"""Documents cut into passages: at the border of a paragraph where one is near, else of a line, a sentence,
a word."""

from __future__ import annotations

from collections.abc import Iterator

from pigguf.reading.document import Document, Passage

_SIZE = 1500  # characters: some 350 tokens of English
_PASSAGES = 16  # that a window holds, if English fills it at 3 characters a token
_LEAST = 200  # characters
_BORDERS = ("\n\n", "\n", ". ", " ")


def passage_size(window: int) -> int:
    """Characters of a passage, for a window of so many tokens to hold some."""
    return max(_LEAST, min(_SIZE, 3 * window // _PASSAGES))


def cut(document: Document, size: int) -> Iterator[Passage]:
    """All of a document's text in order, but for blank lines between, in passages of `size` characters at
    most, and of half as many at least except where it ends."""
    text, start = document.text, 0
    while start < len(text):
        stop = _border(text, start, size)
        if text[start:stop].strip():
            yield _trimmed(document, start, stop)
        start = stop


def _border(text: str, start: int, size: int) -> int:
    end = start + max(1, size)
    if end >= len(text):
        return len(text)
    for border in _BORDERS:
        at = text.rfind(border, start + size // 2, end)
        if at >= 0:
            return at + len(border)
    return end


def _trimmed(document: Document, start: int, stop: int) -> Passage:
    """Without the blank lines around, but with the indentation of its first line."""
    text = document.text[start:stop]
    indented = text.lstrip()
    before = len(text) - len(indented)
    before = text.rfind("\n", 0, before) + 1
    return Passage(document, start + before, start + len(text.rstrip()))
