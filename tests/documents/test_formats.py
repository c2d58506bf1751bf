"""Every format as text with locations, and what is refused of each."""

from __future__ import annotations

import logging
import resource
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from support import sample_documents

from pigguf.documents import Document, load_document
from pigguf.documents.document import DocumentTooLong
from pigguf.documents.formats import DOCUMENT_FORMATS
from pigguf.documents.zip_archive import MAX_UNPACKED_BYTES
from pigguf.errors import MissingPackage, PigError, ReadError, TextError, UsageError

MOST = 1_000_000
FACT = "The password of the lighthouse is 4711."


def location_of(document: Document, text: str) -> str:
    """Return where a text is, without the folder."""
    start = document.text.index(text)
    return str(document.location(start, start + len(text), document.path.name))


# ---- what is read --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["novel.txt", "notes.md", "code.py", "LICENSE", "data.json", "page.svg"])
def test_text_is_itself_with_its_own_lines(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes("\ufeffErste Zeile\r\n\r\nnaïve 漢字\nlast".encode())
    document = load_document(path, MOST)
    assert document.text == "Erste Zeile\n\nnaïve 漢字\nlast"
    assert document.unit == "line"
    assert location_of(document, "Erste") == f"{name}:1"
    assert location_of(document, "漢字") == f"{name}:3"
    assert location_of(document, "Zeile\n\nnaïve") == f"{name}:1-3"
    assert location_of(document, "last") == f"{name}:4"


def test_html_bears_the_lines_of_its_source(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(
        "<!DOCTYPE html><html>\n<head><title>A page</title>\n<style>p { color: red }</style>\n"
        "<script>if (a < b) { alert('no text') }</script></head>\n<body><h2>Light &amp; house</h2>\n"
        "<p>Words of <b>one</b>\n   paragraph,<br>second\nline.<p>Not closed\n"
        "<ul><li>one<li>two</ul><table><tr><th>a</th><td>b</td></tr>\n<tr><td>c<td>d</table>\n"
        "<pre>x = 1\n  y = 2</pre>end"
    )
    document = load_document(path, MOST)
    assert document.text == (
        "A page\n\n## Light & house\n\nWords of one paragraph,\nsecond line.\n\nNot closed\n\n"
        "- one\n- two\n\na | b\nc | d\n\nx = 1\n  y = 2\n\nend"
    )
    for text, line in {
        "A page": 2,
        "Light": 5,
        "Words": 6,
        "second": 7,
        "Not": 8,
        "two": 9,
        "c |": 10,
    }.items():
        assert location_of(document, text) == f"page.html:{line}"
    assert location_of(document, "x = 1") == "page.html:11"
    assert location_of(document, "  y = 2") == "page.html:12"
    assert location_of(document, "end") == "page.html:12"


def test_html_is_known_by_how_it_begins(tmp_path: Path) -> None:
    path = tmp_path / "saved"
    path.write_text("\n <HTML lang=de><p>Text")
    assert load_document(path, MOST).text == "Text"


def test_a_pdf_has_pages(tmp_path: Path) -> None:
    document = load_document(sample_documents.pdf(tmp_path / "report.PDF", ["One.", FACT, "Three."]), MOST)
    assert document.unit == "page"
    assert location_of(document, FACT) == "report.PDF, page 2"
    assert location_of(document, "4711.\n\nThree") == "report.PDF, pages 2-3"
    renamed = document.path.rename(tmp_path / "report")
    assert FACT in load_document(renamed, MOST).text, "a PDF is known by its first bytes"


def test_words_hyphenated_at_a_line_s_end_in_a_pdf_are_joined(tmp_path: Path) -> None:
    text = load_document(sample_documents.pdf(tmp_path / "a.pdf", ["The light-\nhouse keeper."]), MOST).text
    assert "lighthouse keeper" in text


def test_scanned_pages_among_others_are_warned_about(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = sample_documents.pdf(tmp_path / "part.pdf", ["One.", None, "", None])
    with caplog.at_level(logging.WARNING, "pigguf"):
        document = load_document(path, MOST)
    assert document.text.strip() == "One."
    assert caplog.messages == [f"{path}: no text on pages 2, 4 of 4: not read"]


def test_a_docx_has_paragraphs(tmp_path: Path) -> None:
    path = sample_documents.word(
        tmp_path / "a.docx", ["First.", "", f"Tab\there. {FACT}"], [["a", "b"], ["c", ""]]
    )
    document = load_document(path, MOST)
    assert document.text == f"First.\nTab\there. {FACT}\na | b\nc | "
    assert location_of(document, FACT) == "a.docx, paragraph 2"
    assert location_of(document, "a | b\nc") == "a.docx, paragraphs 3-4"


def test_a_docx_s_text_boxes_insertions_and_controls_are_read_once_and_deletions_not(tmp_path: Path) -> None:
    body = (
        '<w:document xmlns:w="urn:w" xmlns:mc="urn:mc"><w:body>'
        "<w:sdt><w:sdtContent><w:p><w:r><w:t>In a control.</w:t></w:r></w:p></w:sdtContent></w:sdt>"
        "<w:p><w:r><w:t>Kept </w:t></w:r><w:ins><w:r><w:t>inserted</w:t></w:r></w:ins>"
        "<w:del><w:r><w:delText>deleted</w:delText></w:r></w:del>"
        "<w:r><mc:AlternateContent><mc:Choice><w:txbxContent><w:p><w:r><w:t>Boxed.</w:t></w:r></w:p>"
        "</w:txbxContent></mc:Choice><mc:Fallback><w:p><w:r><w:t>Boxed.</w:t></w:r></w:p></mc:Fallback>"
        "</mc:AlternateContent></w:r><w:r><w:br/><w:t>below.</w:t></w:r></w:p></w:body></w:document>"
    )
    path = sample_documents.with_member(
        sample_documents.word(tmp_path / "a.docx", []), "word/document.xml", body.encode()
    )
    path = sample_documents.with_member(
        path, "word/footnotes.xml", b'<w:f xmlns:w="urn:w"><w:p><w:r><w:t>A note.</w:t></w:r></w:p></w:f>'
    )
    assert load_document(path, MOST).text == "In a control.\nBoxed.\nKept inserted\nbelow.\nA note."


def test_an_epub_has_titled_chapters(tmp_path: Path) -> None:
    path = sample_documents.book(
        tmp_path / "b.epub", {"The Storm": "<h1>I</h1><p>Wind.", "The Calm": f"<p>{FACT}</p>"}
    )
    document = load_document(path, MOST)
    assert document.text == f"# I\n\nWind.\n\n{FACT}\n"
    assert location_of(document, FACT) == "b.epub, chapter 2, “The Calm”"
    assert location_of(document, f"Wind.\n\n{FACT}") == "b.epub, chapters 1-2, “The Storm” to “The Calm”"
    renamed = path.rename(tmp_path / "b")
    assert FACT in load_document(renamed, MOST).text, "an EPUB is known by its first bytes"


def test_an_older_epub_s_contents_are_an_ncx(tmp_path: Path) -> None:
    ncx = (
        '<ncx xmlns="http://www.daisy.org/z3986/2005/ncx/"><navMap><navPoint><navLabel><text>Old</text>'
        '</navLabel><content src="text/chapter%201.xhtml"/></navPoint></navMap></ncx>'
    )
    package = (
        '<package><manifest><item id="a" href="text/chapter%201.xhtml" media-type="text/html"/>'
        '<item id="n" href="toc.ncx" media-type="application/x-dtbncx+xml"/></manifest>'
        '<spine><itemref idref="a"/></spine></package>'
    )
    extra = {"OEBPS/toc.ncx": ncx.encode(), "OEBPS/content.opf": package.encode()}
    document = load_document(sample_documents.book(tmp_path / "b.epub", {"x": "Text"}, extra), MOST)
    assert location_of(document, "Text") == "b.epub, chapter 1, “Old”"


# ---- what is refused -----------------------------------------------------------------------------


def refused(path: Path) -> PigError:
    with pytest.raises(PigError) as error:
        load_document(path, MOST)
    assert str(path) in error.value.message
    assert error.value.hint
    return error.value


def test_a_scanned_pdf_is_refused(tmp_path: Path) -> None:
    error = refused(sample_documents.pdf(tmp_path / "scan.pdf", [None, None]))
    assert isinstance(error, TextError)
    assert "was scanned: 2 pages of pictures without text" in error.message
    assert "ocrmypdf" in str(error.hint)


def test_an_encrypted_pdf_is_refused(tmp_path: Path) -> None:
    error = refused(sample_documents.pdf(tmp_path / "locked.pdf", [FACT], password="secret"))
    assert isinstance(error, TextError)
    assert "is encrypted" in error.message


def test_a_pdf_whose_password_is_for_changes_alone_is_read(tmp_path: Path) -> None:
    assert FACT in load_document(sample_documents.pdf(tmp_path / "a.pdf", [FACT], password=""), MOST).text


@pytest.mark.parametrize("size", [6, 60])
def test_damaged_documents_are_refused(tmp_path: Path, size: int) -> None:
    paths = [
        sample_documents.pdf(tmp_path / "a.pdf", [FACT]),
        sample_documents.word(tmp_path / "a.docx", [FACT]),
        sample_documents.book(tmp_path / "a.epub", {"One": FACT}),
    ]
    for path in paths:
        path.write_bytes(path.read_bytes()[:size])
        error = refused(path)
        assert isinstance(error, TextError)
        assert f"is a damaged {path.suffix[1:].upper()}" in error.message


@pytest.mark.parametrize("kind", ["docx", "epub"])
def test_a_flipped_byte_in_an_archive_is_found(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    if kind == "docx":
        sample_documents.word(path, [FACT * 50])
        name = "word/document.xml"
    else:
        sample_documents.book(path, {"One": FACT * 50})
        name = "OEBPS/text/chapter 1.xhtml"
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        at = archive.getinfo(name).header_offset + 30 + len(name) + 20
    data[at] ^= 0xFF
    path.write_bytes(data)
    assert "is a damaged" in refused(path).message


def test_an_archive_without_its_main_part_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "a.docx"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("other.xml", "<a/>")
    assert "it has no word/document.xml" in refused(path).message


def test_a_locked_book_is_refused_and_one_with_hidden_fonts_is_not(tmp_path: Path) -> None:
    def listing(part: str) -> dict[str, bytes]:
        return {"META-INF/encryption.xml": f'<e><CipherReference URI="{part}"/></e>'.encode()}

    locked = listing("OEBPS/text/chapter%201.xhtml")
    assert "DRM" in refused(sample_documents.book(tmp_path / "a.epub", {"One": FACT}, locked)).message
    fonts = listing("OEBPS/fonts/a.otf")
    assert FACT in load_document(sample_documents.book(tmp_path / "b.epub", {"One": FACT}, fonts), MOST).text


@pytest.mark.parametrize("name", ["bomb.docx", "bomb.epub"])
def test_an_archive_that_unpacks_to_a_thousand_times_its_size_is_refused_unread(
    tmp_path: Path, name: str
) -> None:
    path = tmp_path / name
    if name.endswith("docx"):
        sample_documents.zip_bomb(
            sample_documents.word(path, [FACT]), "word/document.xml", MAX_UNPACKED_BYTES + (1 << 20)
        )
    else:
        sample_documents.zip_bomb(
            sample_documents.book(path, {"One": FACT}),
            "OEBPS/text/chapter 1.xhtml",
            MAX_UNPACKED_BYTES + (1 << 20),
        )
    assert path.stat().st_size < 2 << 20
    begun = time.monotonic()
    assert f"more than the {MAX_UNPACKED_BYTES:,}" in refused(path).message
    assert time.monotonic() - begun < 2


def test_a_header_that_claims_less_than_a_part_holds_does_not_unpack_more(tmp_path: Path) -> None:
    name = "word/document.xml"
    path = sample_documents.zip_bomb(sample_documents.word(tmp_path / "a.docx", [FACT]), name, 4 << 20)
    data = path.read_bytes()
    central = data.rindex(b"PK\x01\x02", 0, data.rindex(name.encode()))
    lied = data[: central + 24] + (100).to_bytes(4, "little") + data[central + 28 :]
    path.write_bytes(lied)
    assert "is a damaged DOCX" in refused(path).message


def test_xml_whose_entities_multiply_is_refused(tmp_path: Path) -> None:
    entities = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 12))
    laughs = f'<!DOCTYPE d [<!ENTITY e0 "{"ha" * 50}">{entities}]><d><p><t>&e11;</t></p></d>'
    path = sample_documents.with_member(
        sample_documents.word(tmp_path / "a.docx", []), "word/document.xml", laughs.encode()
    )
    assert "is a damaged DOCX" in refused(path).message


@pytest.mark.parametrize(
    ("name", "data", "problem"),
    [
        ("a.bin", b"\x01\x02\0\x03", "is a binary file"),
        ("a.txt", b"text\0text", "is a binary file"),
        ("a.png", b"\x89PNG\r\n\x1a\n\0", "is a PNG picture"),
        ("model.gguf", b"GGUF\x03\0\0\0", "is a GGUF model"),
        ("a.zip", b"PK\x03\x04\x14\0\0\0", "is a ZIP archive"),
        ("old.docx", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1\0", "is an encrypted or old Office file"),
        ("fake.pdf", b"just text", "is damaged, or is not a PDF"),
        ("wide.txt", "text".encode("utf-16"), "is UTF-16 text"),
        ("empty.txt", b"", "holds no text"),
        ("blank.md", b" \n\n", "holds no text"),
    ],
)
def test_files_that_are_not_documents_are_refused_by_name(
    tmp_path: Path, name: str, data: bytes, problem: str
) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    error = refused(path)
    assert isinstance(error, TextError)
    assert problem in error.message


def test_text_that_is_not_utf_8_is_refused_with_the_byte(tmp_path: Path) -> None:
    path = tmp_path / "latin.txt"
    path.write_bytes("Das Ende ist n\xe4her".encode("latin-1"))
    error = refused(path)
    assert isinstance(error, UsageError)
    assert "not UTF-8 text (byte 14)" in error.message


def test_what_is_not_there_or_no_file_is_refused(tmp_path: Path) -> None:
    assert isinstance(refused(tmp_path / "missing.txt"), ReadError)
    assert "is not a regular file" in refused(tmp_path).message
    assert "is not a regular file" in refused(Path("/dev/zero")).message


def test_a_terabyte_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "huge.txt"
    with path.open("wb") as file:
        file.write(b"text\n" * 2000)
        file.truncate(1 << 40)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert isinstance(refused(path), DocumentTooLong)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10  # kB


@pytest.mark.parametrize("kind", ["pdf", "docx", "epub", "html"])
def test_no_format_gives_more_than_may_be_held(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    if kind == "pdf":
        sample_documents.pdf(path, [FACT * 20] * 3)
    elif kind == "docx":
        sample_documents.word(path, [FACT] * 60)
    elif kind == "epub":
        sample_documents.book(path, {"One": f"<p>{FACT}</p>" * 60})
    else:
        path.write_text(f"<p>{FACT}</p>" * 60)
    assert load_document(path, 10_000)
    with pytest.raises(DocumentTooLong, match="over 1,000 characters"):
        load_document(path, 1000)


# ---- packages ------------------------------------------------------------------------------------


def test_a_missing_package_is_an_error_with_the_way_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = sample_documents.pdf(tmp_path / "a.pdf", [FACT])
    monkeypatch.setitem(sys.modules, "pypdfium2", None)
    with pytest.raises(MissingPackage, match="reading a PDF needs the package pypdfium2") as error:
        load_document(path, MOST)
    assert 'pip install -e ".[docs]" in the clone' in str(error.value.hint)


def test_the_registry_s_readers_are_there_and_imported_when_needed() -> None:
    assert {known.name for known in DOCUMENT_FORMATS} == {"PDF", "DOCX", "EPUB", "HTML"}
    code = (
        "import sys, pigguf.documents, pigguf.cli.ask;"
        "print([name for name in ('pypdfium2', 'bm25s') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
