"""Documents of every format, made by programs other than those that read them."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import docx
from fpdf import FPDF
from PIL import Image

CONTAINER = (
    '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>'
    '<rootfile full-path="OEBPS/content.opf"/></rootfiles></container>'
)
NAVIGATION = '<item id="nav" properties="nav" href="nav.xhtml" media-type="application/xhtml+xml"/>'
TYPE = "application/xhtml+xml"


def pdf(path: Path, pages: Sequence[str | None], password: str | None = None) -> Path:
    """A PDF of pages with text; None is a page that was scanned: a picture without text."""
    made = FPDF()
    made.set_font("helvetica", size=11)
    if password:
        made.set_encryption(owner_password="owner", user_password=password)
    for text in pages:
        made.add_page()
        if text is None:
            made.image(Image.new("RGB", (8, 8), "grey"), w=100)
        else:
            made.multi_cell(0, None, text)
    made.output(str(path))
    return path


def word(path: Path, paragraphs: Sequence[str], table: Sequence[Sequence[str]] = ()) -> Path:
    made = docx.Document()
    for paragraph in paragraphs:
        made.add_paragraph(paragraph)
    if table:
        grid = made.add_table(len(table), len(table[0]))
        for row, texts in enumerate(table):
            for column, text in enumerate(texts):
                grid.cell(row, column).text = text
    made.save(str(path))
    return path


def book(path: Path, chapters: Mapping[str, str], extra: Mapping[str, bytes] | None = None) -> Path:
    """An EPUB 3 of chapters by their titles; `extra` adds or replaces parts."""
    names = [f"text/chapter%20{number}.xhtml" for number in range(1, len(chapters) + 1)]
    items = "".join(f'<item id="c{i}" href="{name}" media-type="{TYPE}"/>' for i, name in enumerate(names))
    spine = "".join(f'<itemref idref="c{i}"/>' for i in range(len(names)))
    links = "".join(
        f'<li><a href="{name}#top">{title}</a></li>' for name, title in zip(names, chapters, strict=True)
    )
    parts = {
        "META-INF/container.xml": CONTAINER.encode(),
        "OEBPS/content.opf": (
            '<package xmlns="http://www.idpf.org/2007/opf">'
            f"<manifest>{items}{NAVIGATION}</manifest><spine>{spine}</spine></package>"
        ).encode(),
        "OEBPS/nav.xhtml": f'<html xmlns="http://www.w3.org/1999/xhtml"><nav>{links}</nav></html>'.encode(),
        **{
            f"OEBPS/{name.replace('%20', ' ')}": f"<html><body>{text}</body></html>".encode()
            for name, text in zip(names, chapters.values(), strict=True)
        },
        **(extra or {}),
    }
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(zipfile.ZipInfo("mimetype"), "application/epub+zip")
        for name, data in parts.items():
            archive.writestr(name, data)
    return path


def with_part(path: Path, name: str, data: bytes) -> Path:
    """An archive with one part replaced."""
    with zipfile.ZipFile(path) as archive:
        parts = {part: archive.read(part) for part in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for part, content in {**parts, name: data}.items():
            archive.writestr(part, content)
    return path


def bomb(path: Path, name: str, size: int) -> Path:
    """The archive, in which one part is replaced by so many bytes that compress to next to nothing."""
    with zipfile.ZipFile(path) as archive:
        parts = {part: archive.read(part) for part in archive.namelist() if part != name}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for part, content in parts.items():
            archive.writestr(part, content)
        with archive.open(name, "w") as out:
            for _ in range(size >> 20):
                out.write(b" " * (1 << 20))
    return path
