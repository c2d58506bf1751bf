"""PDF to text by PDFium (pypdfium2), by page.

A page that shows a picture and has no text was scanned, and a warning says so. Not here: recognizing text in
pictures (OCR), and page numbers as printed, which may differ from the page's position.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pigguf.documents.document import Document
from pigguf.documents.parser_errors import report_damaged, require_package
from pigguf.errors import TextError

_log = logging.getLogger("pigguf")
_pdfium_lock = threading.Lock()  # PDFium is not thread-safe
_LINE_END_HYPHEN = re.compile("[\ufffe\x02](\r\n)?")  # PDFium's codes for a hyphen that splits a word
_MAX_LISTED = 5  # pages in a message


def read(path: Path, max_characters: int) -> Document:
    """Return a PDF as a document counted in pages.

    Raises:
        MissingPackage: pypdfium2 is not installed.
        TextError: It is encrypted or damaged, or was scanned and has no text.
        DocumentTooLong: It has more than `max_characters`.
    """
    with require_package("reading a PDF"):
        import pypdfium2
    scanned: list[int] = []
    with _pdfium_lock, report_damaged(path, "PDF"), _open(path, pypdfium2) as pdf:
        n_pages = len(pdf)
        lines = _numbered_lines(pdf, scanned, pypdfium2)
        document = Document.from_numbered_lines(path, "page", lines, max_characters)
    if scanned and not document.text.strip():
        raise TextError(
            f"{path} was scanned: {n_pages:,} pages of pictures without text",
            "recognize its text first, for example with ocrmypdf",
        )
    if scanned:
        _log.warning("%s: no text on %s of %d: not read", path, _list_pages(scanned), n_pages)
    return document


def _open(path: Path, pypdfium2: Any) -> Any:
    try:
        return pypdfium2.PdfDocument(path)
    except pypdfium2.PdfiumError as error:
        if error.err_code == pypdfium2.raw.FPDF_ERR_PASSWORD:
            raise TextError(
                f"{path} is encrypted and needs a password",
                "save a copy without it, for example with qpdf --decrypt --password=... IN OUT",
            ) from error
        raise


def _numbered_lines(pdf: Any, scanned: list[int], pypdfium2: Any) -> Iterator[tuple[int, str]]:
    """Yield each line of text with its page's number; pages of only pictures are added to `scanned`."""
    for number, page in enumerate(pdf, start=1):
        text_page = page.get_textpage()
        text = _LINE_END_HYPHEN.sub("", text_page.get_text_bounded())
        if text.strip():
            for line in text.replace("\r\n", "\n").split("\n"):
                yield number, line.rstrip()
            yield number, ""
        elif any(page.get_objects([pypdfium2.raw.FPDF_PAGEOBJ_IMAGE])):
            scanned.append(number)
        text_page.close()
        page.close()


def _list_pages(pages: Sequence[int]) -> str:
    listed = ", ".join(map(str, pages[:_MAX_LISTED]))
    more = f" and {len(pages) - _MAX_LISTED:,} more" if len(pages) > _MAX_LISTED else ""
    return f"page{'s' if len(pages) > 1 else ''} {listed}{more}"
