"""DOCX to text, whose places are paragraphs, from the stream of its XML.

Contract: every paragraph of the body and its notes, in order: those of text boxes, content controls and
tracked insertions too, which python-docx passes over; memory does not grow with pictures or depth, for
nothing but the text is kept. A table's row is one line, its cells between bars.
Left out: headers, footers, comments, and text that was deleted.
Source: ECMA-376 part 1, 17 (WordprocessingML); names are matched without their namespace, of which the
strict form has its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from xml.etree.ElementTree import XMLParser

from pigguf.documents.document import Document
from pigguf.documents.zip_archive import MAX_UNPACKED_BYTES, ZipArchive, open_zip_archive

_BODY = "word/document.xml"
_PARTS = (_BODY, "word/footnotes.xml", "word/endnotes.xml")
_BLOCK = 1 << 20
_MARKS = {"tab": "\t", "br": "\n", "cr": "\n", "noBreakHyphen": "-"}  # inside a run


def read(path: Path, most: int) -> Document:
    """
    Raises:
        TextError: it is damaged, or unpacks to more than an honest one does.
        TooLong: over `most` characters.
    """
    with open_zip_archive(path, "DOCX") as archive:
        return Document.from_numbered_lines(path, "paragraph", _lines(archive), most)


def _lines(archive: ZipArchive) -> Iterator[tuple[int, str]]:
    number = 0
    for name in _PARTS:
        if name != _BODY and name not in archive:
            continue
        for paragraph in _paragraphs(archive, name):
            number += 1
            for line in paragraph.split("\n"):
                yield number, line


def _paragraphs(archive: ZipArchive, name: str) -> Iterator[str]:
    """Each paragraph or table row that has text."""
    body = _Body()
    parser = XMLParser(target=body)
    with archive.open(name, MAX_UNPACKED_BYTES) as part:
        while block := part.read(_BLOCK):
            parser.feed(block)
            yield from body.taken()
    parser.close()
    yield from body.taken()


class _Body:
    """A target of XMLParser: it hears of every element, and keeps the text of paragraphs."""

    def __init__(self) -> None:
        self._done: list[str] = []
        self._open: list[list[str]] = []  # paragraphs, of which a text box nests some in another
        self._rows: list[list[list[str]]] = []  # table rows, their cells, the paragraphs of each
        self._runs = 0  # <w:t>, whose text counts
        self._fallbacks = 0  # <mc:Fallback>, which says again what stands beside it

    def taken(self) -> list[str]:
        """What was finished since the last call."""
        done, self._done = self._done, []
        return done

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        name = tag.rpartition("}")[2]
        if name == "Fallback":
            self._fallbacks += 1
        elif name == "p":
            self._open.append([])
        elif name == "tr":
            self._rows.append([])
        elif name == "tc" and self._rows:
            self._rows[-1].append([])
        elif name == "t":
            self._runs += 1
        elif name in _MARKS:
            self._add(_MARKS[name])

    def end(self, tag: str) -> None:
        name = tag.rpartition("}")[2]
        if name == "Fallback":
            self._fallbacks -= 1
        elif name == "t":
            self._runs -= 1
        elif name == "p" and self._open:
            self._finish("".join(self._open.pop()).strip())
        elif name == "tr" and self._rows:
            cells = [" ".join(paragraphs) for paragraphs in self._rows.pop()]
            self._finish(" | ".join(cells) if any(cells) else "")

    def data(self, text: str) -> None:
        if self._runs:
            self._add(text)

    def close(self) -> None:
        pass

    def _add(self, text: str) -> None:
        if self._open and not self._fallbacks:
            self._open[-1].append(text)

    def _finish(self, text: str) -> None:
        """A paragraph or row is over: a line of its own, or part of the cell it stands in."""
        if text and self._rows and self._rows[-1]:
            self._rows[-1][-1].append(" ".join(text.split()))
        elif text:
            self._done.append(text)
