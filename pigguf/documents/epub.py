"""EPUB to text, by chapter: the items of the spine in reading order, with titles from the table of contents.

Every item of the spine that has text is read. Not here: pictures, and books locked by DRM.

Source: EPUB 3.3 (W3C); Open Packaging Format 2.0.1 for NCX tables of contents.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from pigguf.common.text_decoding import decode_text
from pigguf.documents.document import Document
from pigguf.documents.html import html_lines
from pigguf.documents.zip_archive import ZipArchive, open_zip_archive
from pigguf.errors import TextError

_CONTAINER = "META-INF/container.xml"
_ENCRYPTION = "META-INF/encryption.xml"  # lists obfuscated fonts too, in books that are not locked
_MAX_INDEX_BYTES = 8 << 20  # of a package document or table of contents, which is parsed as a whole tree


def read(path: Path, max_characters: int) -> Document:
    """Return an EPUB as a document counted in chapters.

    Raises:
        TextError: It is damaged, locked, or unpacks to more bytes than a real book does.
        DocumentTooLong: It has more than `max_characters`.
    """
    with open_zip_archive(path, "EPUB") as archive:
        package = _package_document(archive)
        chapters = _spine(archive, package)
        _check_not_locked(path, archive, chapters)
        titles = _titles(archive, package)
        numbered = {n: titles[name] for n, name in enumerate(chapters, start=1) if name in titles}
        lines = _numbered_lines(path, archive, chapters)
        return Document.from_numbered_lines(path, "chapter", lines, max_characters, numbered)


def _numbered_lines(path: Path, archive: ZipArchive, chapters: Sequence[str]) -> Iterator[tuple[int, str]]:
    """Yield each line of text with the number of its chapter."""
    for number, chapter in enumerate(chapters, start=1):
        for _, line in html_lines(decode_text(archive.read(chapter), f"{path}: {chapter}")):
            yield number, line
        yield number, ""


def _package_document(archive: ZipArchive) -> str:
    """Return the name of the file that lists the others (OPF)."""
    for rootfile in _elements(_parse(archive, _CONTAINER), "rootfile"):
        return rootfile.get("full-path", "")
    raise ValueError(f"{_CONTAINER} names no package")


def _spine(archive: ZipArchive, package: str) -> list[str]:
    """Return the names in the archive of the files to read, in reading order."""
    tree = _parse(archive, package)
    hrefs = {
        item.get("id"): item.get("href", "")
        for item in _elements(tree, "item")
        if item.get("media-type", "").endswith(("html", "xml"))  # a spine may contain a picture by itself
    }
    in_order = [hrefs.get(reference.get("idref"), "") for reference in _elements(tree, "itemref")]
    return [_resolve(package, href) for href in in_order if href]


def _titles(archive: ZipArchive, package: str) -> dict[str, str]:
    """Return the title of each file in the table of contents; the first, if it has several entries."""
    titles: dict[str, str] = {}
    for item in _elements(_parse(archive, package), "item"):
        name = _resolve(package, item.get("href", ""))
        is_nav = "nav" in (item.get("properties") or "").split()
        is_ncx = item.get("media-type") == "application/x-dtbncx+xml"
        if name not in archive or not (is_nav or is_ncx):
            continue
        with suppress(ElementTree.ParseError):  # a book without usable titles is read too
            for href, title in _contents_entries(_parse(archive, name)):
                titles.setdefault(_resolve(name, href), title)
    return titles


def _contents_entries(contents: Element) -> Iterator[tuple[str, str]]:
    """Yield the link and title of each entry, in EPUB 3's form of a table of contents and in NCX's."""
    for link in _elements(contents, "a"):
        yield link.get("href", ""), _text(link)
    for point in _elements(contents, "navPoint"):
        for content, label in zip(
            _elements(point, "content")[:1], _elements(point, "navLabel"), strict=False
        ):
            yield content.get("src", ""), _text(label)


def _check_not_locked(path: Path, archive: ZipArchive, chapters: Sequence[str]) -> None:
    if _ENCRYPTION not in archive:
        return
    references = _elements(_parse(archive, _ENCRYPTION), "CipherReference")
    if {unquote(reference.get("URI", "")) for reference in references} & set(chapters):
        raise TextError(f"{path} is locked by DRM: its text is encrypted", "use a copy without DRM")


def _parse(archive: ZipArchive, name: str) -> Element:
    return ElementTree.fromstring(archive.read(name, _MAX_INDEX_BYTES))


def _elements(tree: Element, name: str) -> list[Element]:
    """Return the elements of a name in document order, whatever their namespace."""
    return [element for element in tree.iter() if element.tag.rpartition("}")[2] == name]


def _text(element: Element) -> str:
    return " ".join(" ".join(element.itertext()).split())


def _resolve(base: str, href: str) -> str:
    """Return the name in the archive of what a link in the file `base` refers to."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(base), unquote(href.partition("#")[0])))
