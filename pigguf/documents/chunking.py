"""Split documents into passages: at a paragraph's end if one is near, else a line's, sentence's or word's."""

from __future__ import annotations

from collections.abc import Iterator

from pigguf.documents.document import Document, Passage

_MAX_SIZE = 1500  # characters: about 350 tokens of English
_MIN_SIZE = 200
_PASSAGES_IN_WINDOW = 16  # at 3 characters a token
_CHARACTERS_PER_TOKEN = 3
_SEPARATORS = ("\n\n", "\n", ". ", " ")  # the first that is found decides


def passage_size(context_length: int) -> int:
    """Return a size of passages, in characters, such that `context_length` tokens hold several."""
    size = _CHARACTERS_PER_TOKEN * context_length // _PASSAGES_IN_WINDOW
    return max(_MIN_SIZE, min(_MAX_SIZE, size))


def split_document(
    document: Document, size: int, start: int = 0, stop: int | None = None
) -> Iterator[Passage]:
    """Yield a document's text in order, in passages, without the blank lines between them.

    Args:
        document: The document.
        size: The most characters of a passage; all except the last have at least half as many.
        start: The offset in the text at which to begin.
        stop: The offset at which to end; None is the end of the text.
    """
    stop = len(document.text) if stop is None else stop
    while start < stop:
        end = _split_point(document.text, start, stop, size)
        if document.text[start:end].strip():
            yield _without_blank_lines(document, start, end)
        start = end


def split_by_paragraph(document: Document, size: int) -> Iterator[Passage]:
    """Yield passages as `split_document` does, except that each paragraph ends one, however short it is."""
    start = 0
    while start < len(document.text):
        separator = _paragraph_separator(document)
        end = document.text.find(separator, start)
        end = len(document.text) if end < 0 else end + len(separator)
        yield from split_document(document, size, start, end)
        start = end


def ends_at_paragraph(passage: Passage) -> bool:
    """Return whether a paragraph ends where the passage does."""
    return passage.document.text.startswith(_paragraph_separator(passage.document), passage.stop)


def _paragraph_separator(document: Document) -> str:
    return "\n" if document.unit == "paragraph" else "\n\n"


def _split_point(text: str, start: int, stop: int, size: int) -> int:
    """Return the offset at which a passage that begins at `start` ends."""
    end = start + max(1, size)
    if end >= stop:
        return stop
    for separator in _SEPARATORS:
        at = text.rfind(separator, start + size // 2, end)
        if at >= 0:
            return at + len(separator)
    return end


def _without_blank_lines(document: Document, start: int, stop: int) -> Passage:
    """Return the passage text[start:stop] without blank lines around it; its first line stays indented."""
    text = document.text[start:stop]
    leading = len(text) - len(text.lstrip())
    first_line = text.rfind("\n", 0, leading) + 1
    return Passage(document, start + first_line, start + len(text.rstrip()))
