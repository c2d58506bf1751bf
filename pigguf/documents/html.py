"""HTML to text by the standard library's parser, the only one that knows the source line of every word.

A block is a line with the number of its first word's line in the file; in <pre> every line is one. Headings
begin with #, list items with -, and table cells are separated by bars.

Not here: scripts, styles, and what only shows when a browser renders the page.
"""

from __future__ import annotations

from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

from pigguf.documents.document import Document
from pigguf.documents.plain_text import read_text

_BLOCK_TAGS = frozenset((
    "address", "article", "aside", "blockquote", "body", "caption", "dialog", "details", "div", "dl",
    "fieldset", "figcaption", "figure", "footer", "form", "h1", "h2", "h3", "h4", "h5", "h6", "header",
    "hr", "html", "legend", "main", "nav", "ol", "p", "pre", "section", "summary", "table", "title",
    "ul",
))  # fmt: skip
_LINE_TAGS = frozenset(("br", "dd", "dt", "li", "option", "tr"))
_CELL_TAGS = frozenset(("td", "th"))
_SKIPPED_TAGS = frozenset(("script", "style"))
_PREFIXES = {"li": "- ", **{f"h{level}": f"{'#' * level} " for level in range(1, 7)}}


def read(path: Path, max_characters: int) -> Document:
    """Return an HTML file as a document counted in the lines of its source.

    Raises:
        DocumentTooLong: It has more than `max_characters` bytes.
        UsageError: It is not UTF-8.
    """
    lines = html_lines(read_text(path, max_characters))
    return Document.from_numbered_lines(path, "line", lines, max_characters)


def html_lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield each line of a page's text with the source line of its first word.

    Blocks of text are separated by blank lines.
    """
    extractor = _LineExtractor()
    extractor.feed(text)
    extractor.close()
    extractor.end_block()
    lines = extractor.lines
    while lines and not lines[-1][1]:
        lines.pop()
    yield from lines


class _LineExtractor(HTMLParser):
    """Collects lines of text.

    Attributes:
        lines: Numbers of source lines, with lines of text; "" between blocks.
    """

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.lines: list[tuple[int, str]] = []
        self._fragments: list[str] = []  # of the line that is not finished
        self._source_line = 1  # of its first word
        self._prefix = ""  # put before the line, if it gets any text
        self._pre_depth = self._skipped_depth = 0

    # ---- HTMLParser's callbacks --------------------------------------------------------------------

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        """Open an element."""
        self._break_before(tag)
        self._prefix = _PREFIXES.get(tag, self._prefix)
        self._pre_depth += tag == "pre"
        self._skipped_depth += tag in _SKIPPED_TAGS

    def handle_endtag(self, tag: str) -> None:
        """Close an element, even one that was not opened."""
        self._break_before(tag)
        self._pre_depth = max(0, self._pre_depth - (tag == "pre"))
        self._skipped_depth = max(0, self._skipped_depth - (tag in _SKIPPED_TAGS))

    def handle_data(self, data: str) -> None:
        """Add character data."""
        if self._skipped_depth:
            return
        source_line = self.getpos()[0]
        if self._pre_depth:
            first, *rest = data.split("\n")
            self._add(first, source_line)
            for number, line in enumerate(rest, start=source_line + 1):
                self._end_line()
                self._add(line, number)
            return
        leading = data[: len(data) - len(data.lstrip())]
        text = " ".join(data.split())
        before = " " if leading else ""
        after = " " if text and data[-1].isspace() else ""
        self._add(before + text + after, source_line + leading.count("\n"))

    # ---- lines -----------------------------------------------------------------------------------

    def _has_text(self) -> bool:
        return any(map(str.strip, self._fragments))

    def _add(self, text: str, source_line: int) -> None:
        if text.strip() and not self._has_text():
            self._source_line = source_line
        self._fragments.append(text)

    def _break_before(self, tag: str) -> None:
        """End the block, line or table cell that a tag ends."""
        if tag in _BLOCK_TAGS:
            self.end_block()
        elif tag in _LINE_TAGS:
            self._end_line()
        elif tag in _CELL_TAGS and self._has_text() and self._fragments[-1] != " | ":
            self._fragments.append(" | ")

    def _end_line(self) -> None:
        text = "".join(self._fragments)
        text = text.rstrip() if self._pre_depth else " ".join(text.split()).removesuffix(" |")
        if text:
            self.lines.append((self._source_line, self._prefix + text))
            self._prefix = ""
        self._fragments.clear()

    def end_block(self) -> None:
        """End the line, and add a blank one before what follows."""
        self._end_line()
        self._prefix = ""
        if self.lines and self.lines[-1][1]:
            self.lines.append((self.lines[-1][0], ""))
