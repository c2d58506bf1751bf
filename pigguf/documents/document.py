"""A document's text, with the line, page, paragraph or chapter that each part of it is from.

A Document is one text, with the offsets of its lines and a number for each line. A Passage is a part of it
and copies nothing until its text is read.

Not here: how formats become text (pdf.py, docx.py, ...), and how passages are chosen (chunking.py).
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pigguf.errors import TextError

LocationUnit = Literal["line", "page", "paragraph", "chapter"]
"""What the locations in a document are counted in."""


class DocumentTooLong(TextError):
    """A document is longer than may be held in memory at once."""

    def __init__(self, path: Path, max_characters: int) -> None:
        super().__init__(
            f"{path} is over {max_characters:,} characters, more than is read at once",
            "give fewer or shorter documents, or only the part that matters",
        )


@dataclass(frozen=True)
class SourceLocation:
    """Where a part of a document is, as people look it up: "novel.txt:12-40", "report.pdf, page 3".

    Attributes:
        file: The path as it was given.
        unit: What `first` and `last` count.
        first, last: The first and last line, page, paragraph or chapter, counted from 1.
        titles: The titles of the chapters that have one.
    """

    file: str
    unit: LocationUnit
    first: int
    last: int
    titles: tuple[str, ...] = ()

    def __str__(self) -> str:
        span = f"{self.first}" if self.first == self.last else f"{self.first}-{self.last}"
        if self.unit == "line":
            return f"{self.file}:{span}"
        plural = "" if self.first == self.last else "s"
        titles = " to ".join(f"“{title}”" for title in dict.fromkeys(self.titles[:1] + self.titles[-1:]))
        return f"{self.file}, {self.unit}{plural} {span}" + (f", {titles}" if titles else "")


@dataclass(frozen=True, eq=False)
class Document:
    """One document as text.

    Attributes:
        path: The file.
        name: A short name for prompts, unique among the documents loaded together.
        unit: What its locations are counted in.
        text: The whole text.
        line_starts: The offsets in `text` at which its lines begin, ascending from 0.
        line_numbers: For each of those lines, the number of the unit it is from, never descending.
        titles: The chapters' titles by their numbers.
    """

    path: Path
    name: str
    unit: LocationUnit
    text: str
    line_starts: Sequence[int]
    line_numbers: Sequence[int]
    titles: Mapping[int, str] = field(default_factory=dict)

    @classmethod
    def from_text(cls, path: Path, text: str) -> Document:
        """Return a document whose locations are the text's own lines."""
        starts, end = array("Q", [0]), text.find("\n")
        while end >= 0:
            starts.append(end + 1)
            end = text.find("\n", end + 1)
        return cls(path, path.name, "line", text, starts, range(1, len(starts) + 1))

    @classmethod
    def from_numbered_lines(
        cls,
        path: Path,
        unit: LocationUnit,
        lines: Iterable[tuple[int, str]],
        max_characters: int,
        titles: Mapping[int, str] | None = None,
    ) -> Document:
        """Return a document made of lines, each with the number of the unit it is from.

        Args:
            path: The file.
            unit: What the numbers count.
            lines: Numbers, never descending, with lines of text.
            max_characters: The most characters to take; the lines after them are not read.
            titles: Chapters' titles by their numbers.

        Raises:
            DocumentTooLong: The lines have more than `max_characters`.
        """
        texts: list[str] = []
        starts, numbers, length = array("Q"), array("Q"), 0
        for number, line in lines:
            starts.append(length)
            numbers.append(number)
            texts.append(line)
            length += len(line) + 1
            if length > max_characters:
                raise DocumentTooLong(path, max_characters)
        return cls(path, path.name, unit, "\n".join(texts), starts, numbers, titles or {})

    def location(self, start: int, stop: int, file: str | None = None) -> SourceLocation:
        """Return where text[start:stop] is; `file` is the name to use instead of the path."""
        first, last = self._number_at(start), self._number_at(max(start, stop - 1))
        titles = tuple(self.titles[number] for number in range(first, last + 1) if number in self.titles)
        return SourceLocation(file or str(self.path), self.unit, first, last, titles)

    def _number_at(self, offset: int) -> int:
        return self.line_numbers[bisect_right(self.line_starts, offset) - 1]


@dataclass(frozen=True)
class Passage:
    """A part of a document: text[start:stop]."""

    document: Document
    start: int
    stop: int

    @property
    def text(self) -> str:
        """The passage's text."""
        return self.document.text[self.start : self.stop]

    @property
    def location(self) -> SourceLocation:
        """Where the passage is, by the document's path."""
        return self.document.location(self.start, self.stop)

    @property
    def label(self) -> str:
        """The location for prompts, by the document's short name."""
        return str(self.document.location(self.start, self.stop, self.document.name))
