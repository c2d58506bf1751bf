"""EPUB to text, whose places are chapters: the parts of the book in their reading order, titled as its
table of contents titles them.

Contract: every part of the spine that has text. Left out: pictures, and books locked by DRM.
Source: EPUB 3.3 (W3C), Open Packaging Format 2.0.1 (NCX tables of contents).
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
_ENCRYPTION = "META-INF/encryption.xml"  # lists fonts made unreadable too, in books that are not locked
_MOST_INDEX = 8 << 20  # bytes of a list of parts or contents, which is held as a tree


def read(path: Path, most: int) -> Document:
    """
    Raises:
        TextError: it is damaged, locked, or unpacks to more than an honest one does.
        TooLong: over `most` characters.
    """
    with open_zip_archive(path, "EPUB") as archive:
        package = _package(archive)
        parts = _spine(archive, package)
        _refuse_locked(path, archive, parts)
        titles = _titles(archive, package)
        numbered = {number: titles[part] for number, part in enumerate(parts, start=1) if part in titles}
        return Document.from_numbered_lines(path, "chapter", _lines(path, archive, parts), most, numbered)


def _lines(path: Path, archive: ZipArchive, parts: Sequence[str]) -> Iterator[tuple[int, str]]:
    for number, part in enumerate(parts, start=1):
        for _, line in html_lines(decode_text(archive.read(part), f"{path}: {part}")):
            yield number, line
        yield number, ""


def _package(archive: ZipArchive) -> str:
    """The part that lists the others."""
    for rootfile in _found(_tree(archive, _CONTAINER), "rootfile"):
        return rootfile.get("full-path", "")
    raise ValueError(f"{_CONTAINER} names no package")


def _spine(archive: ZipArchive, package: str) -> list[str]:
    """The parts that are read, in order, by their names in the archive."""
    tree = _tree(archive, package)
    items = {
        item.get("id"): item.get("href", "")
        for item in _found(tree, "item")
        if item.get("media-type", "").endswith(("html", "xml"))  # a picture may stand there by itself
    }
    wanted = [items.get(reference.get("idref"), "") for reference in _found(tree, "itemref")]
    return [_resolved(package, href) for href in wanted if href]


def _titles(archive: ZipArchive, package: str) -> dict[str, str]:
    """The title of each part that the table of contents names, the first where it names several."""
    titles: dict[str, str] = {}
    for item in _found(_tree(archive, package), "item"):
        name = _resolved(package, item.get("href", ""))
        kind = (item.get("properties") or "").split(), item.get("media-type")
        if name not in archive or ("nav" not in kind[0] and kind[1] != "application/x-dtbncx+xml"):
            continue
        with suppress(ElementTree.ParseError):  # titles are a help, and books without them are read too
            for href, title in _entries(_tree(archive, name)):
                titles.setdefault(_resolved(name, href), title)
    return titles


def _entries(contents: Element) -> Iterator[tuple[str, str]]:
    """Where each line of a table of contents leads, and what it says: EPUB 3's and the older NCX."""
    for link in _found(contents, "a"):
        yield link.get("href", ""), _words(link)
    for point in _found(contents, "navPoint"):
        for content, label in zip(_found(point, "content")[:1], _found(point, "navLabel"), strict=False):
            yield content.get("src", ""), _words(label)


def _refuse_locked(path: Path, archive: ZipArchive, parts: Sequence[str]) -> None:
    if _ENCRYPTION not in archive:
        return
    locked = {unquote(r.get("URI", "")) for r in _found(_tree(archive, _ENCRYPTION), "CipherReference")}
    if locked & set(parts):
        raise TextError(f"{path} is locked by DRM: its text is encrypted", "take a copy without it")


def _tree(archive: ZipArchive, name: str) -> Element:
    return ElementTree.fromstring(archive.read(name, _MOST_INDEX))


def _found(tree: Element, name: str) -> list[Element]:
    """Elements of a name, whatever their namespace, in the order of the document."""
    return [element for element in tree.iter() if element.tag.rpartition("}")[2] == name]


def _words(element: Element) -> str:
    return " ".join(" ".join(element.itertext()).split())


def _resolved(base: str, href: str) -> str:
    """The archive's name for a link that stands in the part `base`."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(base), unquote(href.partition("#")[0])))
