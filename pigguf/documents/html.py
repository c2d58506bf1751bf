"""HTML to text by the standard library's parser, which alone knows the line of every word it reads.

Contract: a block is a line that bears the number of its first word's line in the file; in <pre> every line
is one. Headings begin with #, list items with -, table cells stand between bars.
Left out: scripts, styles, and whatever only shows when a page is drawn.
"""

from __future__ import annotations

from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

from pigguf.documents.document import Document
from pigguf.documents.plain_text import read_text

_PARAGRAPHS = frozenset((
    "address", "article", "aside", "blockquote", "body", "caption", "dialog", "details", "div", "dl",
    "fieldset", "figcaption", "figure", "footer", "form", "h1", "h2", "h3", "h4", "h5", "h6", "header",
    "hr", "html", "legend", "main", "nav", "ol", "p", "pre", "section", "summary", "table", "title",
    "ul",
))  # fmt: skip
_LINES = frozenset(("br", "dd", "dt", "li", "option", "tr"))
_CELLS = frozenset(("td", "th"))
_SKIPPED = frozenset(("script", "style"))
_MARKS = {"li": "- ", **{f"h{level}": f"{'#' * level} " for level in range(1, 7)}}


def read(path: Path, most: int) -> Document:
    """
    Raises:
        TooLong: over `most` bytes.
        UsageError: it is not UTF-8.
    """
    return Document.from_numbered_lines(path, "line", html_lines(read_text(path, most)), most)


def html_lines(text: str) -> Iterator[tuple[int, str]]:
    """The text of a page: each line with the number of the source's line on which its first word stands.

    Blocks of text are separated by blank lines.
    """
    parser = _Lines()
    parser.feed(text)
    parser.close()
    parser.end_block()
    lines = parser.lines
    while lines and not lines[-1][1]:
        lines.pop()
    yield from lines


class _Lines(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.lines: list[tuple[int, str]] = []
        self._line: list[str] = []  # words of the line that is being put together
        self._number = 1
        self._mark = ""  # what the line begins with, once it has a word
        self._pre = self._skipped = 0

    # ---- what the parser finds -------------------------------------------------------------------

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self._border(tag)
        self._mark = _MARKS.get(tag, self._mark)
        self._pre += tag == "pre"
        self._skipped += tag in _SKIPPED

    def handle_endtag(self, tag: str) -> None:
        self._border(tag)
        self._pre = max(0, self._pre - (tag == "pre"))
        self._skipped = max(0, self._skipped - (tag in _SKIPPED))

    def handle_data(self, data: str) -> None:
        if self._skipped:
            return
        if self._pre:
            first, *rest = data.split("\n")
            self._add(first, self.getpos()[0])
            for number, line in enumerate(rest, start=self.getpos()[0] + 1):
                self._end_line()
                self._add(line, number)
            return
        blank = data[: len(data) - len(data.lstrip())]
        text = " ".join(data.split())
        before = " " if blank else ""
        after = " " if text and data[-1].isspace() else ""
        self._add(before + text + after, self.getpos()[0] + blank.count("\n"))

    # ---- lines -----------------------------------------------------------------------------------

    def _add(self, text: str, number: int) -> None:
        if not any(map(str.strip, self._line)) and text.strip():
            self._number = number
        self._line.append(text)

    def _border(self, tag: str) -> None:
        if tag in _PARAGRAPHS:
            self.end_block()
        elif tag in _LINES:
            self._end_line()
        elif tag in _CELLS and any(map(str.strip, self._line)) and self._line[-1] != " | ":
            self._line.append(" | ")

    def _end_line(self) -> None:
        text = "".join(self._line)
        text = text.rstrip() if self._pre else " ".join(text.split()).removesuffix(" |")
        if text:
            self.lines.append((self._number, self._mark + text))
            self._mark = ""
        self._line.clear()

    def end_block(self) -> None:
        """End the line, and set a blank one between it and what follows."""
        self._end_line()
        self._mark = ""
        if self.lines and self.lines[-1][1]:
            self.lines.append((self.lines[-1][0], ""))
