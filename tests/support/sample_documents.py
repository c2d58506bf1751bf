"""Documents of every format, written by other programs than those that read them."""

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
    """Write a PDF of pages with text; None is a scanned page: a picture without text."""
    document = FPDF()
    document.set_font("helvetica", size=11)
    if password:
        document.set_encryption(owner_password="owner", user_password=password)
    for text in pages:
        document.add_page()
        if text is None:
            document.image(Image.new("RGB", (8, 8), "grey"), w=100)
        else:
            document.multi_cell(0, None, text)
    document.output(str(path))
    return path


def word(path: Path, paragraphs: Sequence[str], table: Sequence[Sequence[str]] = ()) -> Path:
    document = docx.Document()
    for paragraph in paragraphs:
        document.add_paragraph(paragraph)
    if table:
        grid = document.add_table(len(table), len(table[0]))
        for row, texts in enumerate(table):
            for column, text in enumerate(texts):
                grid.cell(row, column).text = text
    document.save(str(path))
    return path


def book(path: Path, chapters: Mapping[str, str], extra: Mapping[str, bytes] | None = None) -> Path:
    """Write an EPUB 3 of chapters by their titles; `extra` adds or replaces members."""
    names = [f"text/chapter%20{number}.xhtml" for number in range(1, len(chapters) + 1)]
    items = "".join(f'<item id="c{i}" href="{name}" media-type="{TYPE}"/>' for i, name in enumerate(names))
    spine = "".join(f'<itemref idref="c{i}"/>' for i in range(len(names)))
    links = "".join(
        f'<li><a href="{name}#top">{title}</a></li>' for name, title in zip(names, chapters, strict=True)
    )
    members = {
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
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def with_member(path: Path, name: str, data: bytes) -> Path:
    """Replace one member of an archive."""
    with zipfile.ZipFile(path) as archive:
        members = {member: archive.read(member) for member in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, content in {**members, name: data}.items():
            archive.writestr(member, content)
    return path


def zip_bomb(path: Path, name: str, size: int) -> Path:
    """Replace one member of an archive with `size` bytes that compress to next to nothing."""
    with zipfile.ZipFile(path) as archive:
        members = {member: archive.read(member) for member in archive.namelist() if member != name}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, content in members.items():
            archive.writestr(member, content)
        with archive.open(name, "w") as out:
            for _ in range(size >> 20):
                out.write(b" " * (1 << 20))
    return path
