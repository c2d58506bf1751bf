"""DOCX to text, by paragraph, from a stream of its XML.

Every paragraph of the body and the notes is read in order, including those of text boxes, content controls
and tracked insertions, which python-docx skips. Memory does not grow with pictures or nesting: only the text
is stored. A row of a table is one line with bars between its cells.

Not here: headers, footers, comments and deleted text.

Source: ECMA-376 part 1, 17 (WordprocessingML). Names are matched without their namespace, because strict
documents have another one.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from xml.etree.ElementTree import XMLParser

from pigguf.documents.document import Document
from pigguf.documents.zip_archive import MAX_UNPACKED_BYTES, ZipArchive, open_zip_archive

_BODY = "word/document.xml"
_MEMBERS = (_BODY, "word/footnotes.xml", "word/endnotes.xml")
_READ_BYTES = 1 << 20
_TEXT_OF_ELEMENT = {"tab": "\t", "br": "\n", "cr": "\n", "noBreakHyphen": "-"}


def read(path: Path, max_characters: int) -> Document:
    """Return a DOCX file as a document counted in paragraphs.

    Raises:
        TextError: It is damaged, or unpacks to more bytes than a real document does.
        DocumentTooLong: It has more than `max_characters`.
    """
    with open_zip_archive(path, "DOCX") as archive:
        return Document.from_numbered_lines(path, "paragraph", _numbered_lines(archive), max_characters)


def _numbered_lines(archive: ZipArchive) -> Iterator[tuple[int, str]]:
    """Yield each line of text with the number of its paragraph."""
    number = 0
    for member in _MEMBERS:
        if member != _BODY and member not in archive:
            continue
        for paragraph in _paragraphs(archive, member):
            number += 1
            for line in paragraph.split("\n"):
                yield number, line


def _paragraphs(archive: ZipArchive, member: str) -> Iterator[str]:
    """Yield each paragraph or table row that has text."""
    collector = _ParagraphCollector()
    parser = XMLParser(target=collector)
    with archive.open(member, MAX_UNPACKED_BYTES) as stream:
        while data := stream.read(_READ_BYTES):
            parser.feed(data)
            yield from collector.take_finished()
    parser.close()
    yield from collector.take_finished()


class _ParagraphCollector:
    """A target of XMLParser that collects the text of paragraphs and table rows."""

    def __init__(self) -> None:
        self._finished: list[str] = []
        self._open_paragraphs: list[list[str]] = []  # the text of each; a text box nests some in another
        self._open_rows: list[list[list[str]]] = []  # table rows, their cells, the paragraphs of each cell
        self._text_depth = 0  # inside <w:t>, which holds text
        self._fallback_depth = 0  # inside <mc:Fallback>, which repeats its sibling <mc:Choice>

    def take_finished(self) -> list[str]:
        """Return the paragraphs and rows that were finished since the last call."""
        finished, self._finished = self._finished, []
        return finished

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        """Open an element."""
        name = tag.rpartition("}")[2]
        if name == "Fallback":
            self._fallback_depth += 1
        elif name == "p":
            self._open_paragraphs.append([])
        elif name == "tr":
            self._open_rows.append([])
        elif name == "tc" and self._open_rows:
            self._open_rows[-1].append([])
        elif name == "t":
            self._text_depth += 1
        elif name in _TEXT_OF_ELEMENT:
            self._add(_TEXT_OF_ELEMENT[name])

    def end(self, tag: str) -> None:
        """Close an element."""
        name = tag.rpartition("}")[2]
        if name == "Fallback":
            self._fallback_depth -= 1
        elif name == "t":
            self._text_depth -= 1
        elif name == "p" and self._open_paragraphs:
            self._finish("".join(self._open_paragraphs.pop()).strip())
        elif name == "tr" and self._open_rows:
            cells = [" ".join(paragraphs) for paragraphs in self._open_rows.pop()]
            self._finish(" | ".join(cells) if any(cells) else "")

    def data(self, text: str) -> None:
        """Add character data, if it is inside a text element."""
        if self._text_depth:
            self._add(text)

    def close(self) -> None:
        """Do nothing: XMLParser requires the method."""

    def _add(self, text: str) -> None:
        if self._open_paragraphs and not self._fallback_depth:
            self._open_paragraphs[-1].append(text)

    def _finish(self, text: str) -> None:
        """Add a finished paragraph or row: to the table cell that contains it, or as a line of its own."""
        if text and self._open_rows and self._open_rows[-1]:
            self._open_rows[-1][-1].append(" ".join(text.split()))
        elif text:
            self._finished.append(text)
