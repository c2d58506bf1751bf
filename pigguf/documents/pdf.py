"""PDF to text by PDFium (pypdfium2), whose places are pages.

Contract: a page that shows a picture and has no text was scanned, and is told of: nothing is left out in
silence. Left out: recognizing text in pictures, and a page's printed number, which may be another.
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
_turn = threading.Lock()  # PDFium is for one thread at a time
_HYPHEN = re.compile("[\ufffe\x02](\r\n)?")  # PDFium's for one at a line's end, that parts a word
_SHOWN = 5


def read(path: Path, most: int) -> Document:
    """
    Raises:
        MissingPackage: pypdfium2 is not installed.
        TextError: it is encrypted, damaged, or was scanned and holds no text.
        TooLong: over `most` characters.
    """
    with require_package("reading a PDF"):
        import pypdfium2
    scanned: list[int] = []
    with _turn, report_damaged(path, "PDF"), _opened(path, pypdfium2) as pdf:
        pages = len(pdf)
        document = Document.from_numbered_lines(path, "page", _lines(pdf, scanned, pypdfium2), most)
    if scanned and not document.text.strip():
        raise TextError(
            f"{path} was scanned: {pages:,} pages of pictures without text",
            "recognize its text first, for example with ocrmypdf",
        )
    if scanned:
        _log.warning("%s: without text, and so not read: %s of %d", path, _in_words(scanned), pages)
    return document


def _opened(path: Path, pypdfium2: Any) -> Any:
    try:
        return pypdfium2.PdfDocument(path)
    except pypdfium2.PdfiumError as error:
        if error.err_code == pypdfium2.raw.FPDF_ERR_PASSWORD:
            raise TextError(
                f"{path} is encrypted and opens with its password alone",
                "save a copy without it, for example with qpdf --decrypt --password=... IN OUT",
            ) from error
        raise


def _lines(pdf: Any, scanned: list[int], pypdfium2: Any) -> Iterator[tuple[int, str]]:
    """The lines of all pages; pages that show pictures only are added to `scanned`."""
    for number, page in enumerate(pdf, start=1):
        words = page.get_textpage()
        text = _HYPHEN.sub("", words.get_text_bounded())
        if text.strip():
            for line in text.replace("\r\n", "\n").split("\n"):
                yield number, line.rstrip()
            yield number, ""
        elif any(page.get_objects([pypdfium2.raw.FPDF_PAGEOBJ_IMAGE])):
            scanned.append(number)
        words.close()
        page.close()


def _in_words(pages: Sequence[int]) -> str:
    shown = ", ".join(map(str, pages[:_SHOWN]))
    more = f" and {len(pages) - _SHOWN:,} more" if len(pages) > _SHOWN else ""
    return f"page{'s' if len(pages) > 1 else ''} {shown}{more}"
