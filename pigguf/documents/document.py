"""A document's text with its places: which line, page, paragraph or chapter any stretch of it stands on.

Contract: a Document is one text and, beside it, where its lines begin and what number each bears. A
Passage is a stretch of it, which copies nothing until its text is asked for.
Left out: how a format becomes text (the modules beside this one), and where passages begin (passages.py).
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
"""What the places of a document count."""


class DocumentTooLong(TextError):
    """More text than is held at once."""

    def __init__(self, path: Path, most: int) -> None:
        super().__init__(
            f"{path} is over {most:,} characters, more than is read at once",
            "name fewer or shorter documents, or take out the part that matters",
        )


@dataclass(frozen=True)
class SourceLocation:
    """Where a stretch of text stands, for a person to find: "novel.txt:12-40", "report.pdf, page 3".

    Attributes:
        file: the path as it was given.
        first, last: numbers of the unit, from 1 on, both included.
        titles: of chapters, those that have one.
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
        path: the file.
        name: what a prompt calls it: short, and its own among those it was read with.
        unit: what its places count.
        starts: offsets into `text` at which its lines begin, ascending from 0.
        numbers: of each of those lines, the number of the unit it stands on, never descending.
        titles: chapters' titles by their numbers.
    """

    path: Path
    name: str
    unit: LocationUnit
    text: str
    starts: Sequence[int]
    numbers: Sequence[int]
    titles: Mapping[int, str] = field(default_factory=dict)

    @classmethod
    def from_text(cls, path: Path, text: str) -> Document:
        """A text whose places are its own lines."""
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
        most: int,
        titles: Mapping[int, str] | None = None,
    ) -> Document:
        """A text put together from lines, each with the number of the unit it stands on.

        Raises:
            TooLong: over `most` characters; no more than those were taken.
        """
        texts: list[str] = []
        starts, numbers, length = array("Q"), array("Q"), 0
        for number, line in lines:
            starts.append(length)
            numbers.append(number)
            texts.append(line)
            length += len(line) + 1
            if length > most:
                raise DocumentTooLong(path, most)
        return cls(path, path.name, unit, "\n".join(texts), starts, numbers, titles or {})

    def location(self, start: int, stop: int, file: str | None = None) -> SourceLocation:
        """Where text[start:stop] stands; `file` is what the place calls the document, by default its path."""
        first, last = self._number(start), self._number(max(start, stop - 1))
        titles = tuple(self.titles[number] for number in range(first, last + 1) if number in self.titles)
        return SourceLocation(file or str(self.path), self.unit, first, last, titles)

    def _number(self, offset: int) -> int:
        return self.numbers[bisect_right(self.starts, offset) - 1]


@dataclass(frozen=True)
class Passage:
    """The stretch text[start:stop] of a document."""

    document: Document
    start: int
    stop: int

    @property
    def text(self) -> str:
        return self.document.text[self.start : self.stop]

    @property
    def location(self) -> SourceLocation:
        return self.document.location(self.start, self.stop)

    @property
    def label(self) -> str:
        """The place as a prompt says it, by the document's short name."""
        return str(self.document.location(self.start, self.stop, self.document.name))
