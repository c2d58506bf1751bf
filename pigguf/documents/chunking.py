"""Documents cut into passages: at the border of a paragraph where one is near, else of a line, a sentence,
a word."""

from __future__ import annotations

from collections.abc import Iterator

from pigguf.documents.document import Document, Passage

_SIZE = 1500  # characters: some 350 tokens of English
_PASSAGES = 16  # that a window holds, if English fills it at 3 characters a token
_LEAST = 200  # characters
_BORDERS = ("\n\n", "\n", ". ", " ")


def passage_size(context_length: int) -> int:
    """Characters of a passage, for a window of so many tokens to hold some."""
    return max(_LEAST, min(_SIZE, 3 * context_length // _PASSAGES))


def split_document(document: Document, size: int, start: int = 0, stop: int | None = None) -> Iterator[Passage]:
    """All of a document's text in order, but for blank lines between, in passages of `size` characters at
    most, and of half as many at least except where it ends; or of text[start:stop] alone."""
    stop = len(document.text) if stop is None else stop
    while start < stop:
        end = _border(document.text, start, stop, size)
        if document.text[start:end].strip():
            yield _trimmed(document, start, end)
        start = end


def split_by_paragraph(document: Document, size: int) -> Iterator[Passage]:
    """As cut, but a passage ends with each paragraph, however short."""
    start = 0
    while start < len(document.text):
        end = document.text.find(_mark(document), start)
        end = len(document.text) if end < 0 else end + len(_mark(document))
        yield from split_document(document, size, start, end)
        start = end


def ends_at_paragraph(passage: Passage) -> bool:
    """Whether a border of paragraphs follows."""
    return passage.document.text.startswith(_mark(passage.document), passage.stop)


def _mark(document: Document) -> str:
    """What stands between paragraphs."""
    return "\n" if document.unit == "paragraph" else "\n\n"


def _border(text: str, start: int, stop: int, size: int) -> int:
    end = start + max(1, size)
    if end >= stop:
        return stop
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
