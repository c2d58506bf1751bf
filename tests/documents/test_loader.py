"""Files and folders: what is loaded, in what order, and what is skipped."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from support import sample_documents

from pigguf.documents import load_documents, loader
from pigguf.documents.document import DocumentTooLong
from pigguf.errors import MissingPackage, ReadError, TextError
from pigguf.progress import Unit


def write(path: Path, text: str = "Some text.") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_a_folder_is_walked_in_the_order_of_names(tmp_path: Path) -> None:
    for name in ("b.txt", "a/z.md", "a/b/c.py", "a/a.txt", ".hidden/x.txt", "a/.git/config", ".env"):
        write(tmp_path / name)
    read = load_documents([tmp_path])
    names = [str(document.path.relative_to(tmp_path)) for document in read.documents]
    assert names == ["b.txt", "a/a.txt", "a/z.md", "a/b/c.py"]
    assert read.skipped == ()


def test_files_come_in_the_order_they_are_named_and_once(tmp_path: Path) -> None:
    second, first = write(tmp_path / "a.txt"), write(tmp_path / "b.txt")
    (tmp_path / "link.txt").symlink_to(first)
    read = load_documents([first, second, tmp_path, str(first)])
    assert [document.path for document in read.documents] == [first, second]


def test_links_that_lead_in_circles_and_nowhere_end(tmp_path: Path) -> None:
    write(tmp_path / "a" / "text.txt")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "a" / "gone").symlink_to(tmp_path / "missing")
    (tmp_path / "a" / "self").symlink_to(tmp_path / "a" / "self")
    elsewhere = write(tmp_path.parent / f"{tmp_path.name}-elsewhere" / "linked.txt").parent
    (tmp_path / "elsewhere").symlink_to(elsewhere)
    read = load_documents([tmp_path])
    assert {document.path.name for document in read.documents} == {"text.txt", "linked.txt"}
    assert {file.path.name for file in read.skipped} == {"gone", "self"}


def test_what_cannot_be_read_in_a_folder_is_named_with_the_reason(tmp_path: Path) -> None:
    write(tmp_path / "good.txt")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\0")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "empty.txt").touch()
    sample_documents.pdf(tmp_path / "locked.pdf", ["x"], password="p")
    os.mkfifo(tmp_path / "pipe")
    read = load_documents([tmp_path])
    assert [document.path.name for document in read.documents] == ["good.txt"]
    assert {file.path.name: file.reason for file in read.skipped} == {
        "empty.txt": "holds no text",
        "latin.txt": "not UTF-8 text (byte 3)",
        "locked.pdf": "encrypted and needs a password",
        "picture.png": "a PNG picture, not a document",
        "pipe": "not a regular file",
    }


def test_a_file_named_by_itself_must_be_readable(tmp_path: Path) -> None:
    good, bad = write(tmp_path / "good.txt"), tmp_path / "bad.png"
    bad.write_bytes(b"\x89PNG\0")
    with pytest.raises(TextError, match="PNG picture"):
        load_documents([good, bad])
    with pytest.raises(ReadError, match="No such file"):
        load_documents([good, tmp_path / "missing"])


def test_a_folder_without_documents_is_refused(tmp_path: Path) -> None:
    write(tmp_path / ".hidden")
    with pytest.raises(TextError, match=r"holds no files") as error:
        load_documents([tmp_path])
    assert "hidden files do not count" in str(error.value.hint)
    (tmp_path / "a.png").write_bytes(b"\x89PNG\0")
    with pytest.raises(TextError, match=r"no document to read \(.*a\.png: a PNG picture"):
        load_documents([tmp_path])


def test_a_missing_package_for_a_file_in_a_folder_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "a.txt")
    sample_documents.pdf(tmp_path / "b.pdf", ["x"])
    monkeypatch.setitem(__import__("sys").modules, "pypdfium2", None)
    with pytest.raises(MissingPackage):
        load_documents([tmp_path])


def test_all_documents_together_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "MAX_CHARACTERS", 1000)
    for name in "abc":
        write(tmp_path / name, "x" * 400)
    with pytest.raises(DocumentTooLong, match=r"c is over 200 characters"):
        load_documents([tmp_path])


def test_names_are_short_where_they_are_clear(tmp_path: Path) -> None:
    paths = [write(tmp_path / name) for name in ("a/README.md", "b/README.md", "c.txt")]
    names = [document.name for document in load_documents([tmp_path]).documents]
    assert names == ["c.txt", str(paths[0]), str(paths[1])]


class RecordedProgress:
    def __init__(self) -> None:
        self.stages: list[tuple[str, float, str]] = []
        self.done = 0.0

    def begin(self, stage: str, total: float, unit: Unit) -> None:
        self.stages.append((stage, total, unit))

    def advance(self, amount: float) -> None:
        self.done += amount

    def end(self) -> None:
        pass


def test_ten_thousand_small_files_take_seconds_and_report_progress(tmp_path: Path) -> None:
    for number in range(10_000):
        folder_path = tmp_path / f"{number // 100:03}"
        folder_path.mkdir(exist_ok=True)
        (folder_path / f"{number:05}.txt").write_text(f"note {number}\n")
    progress = RecordedProgress()
    begun = time.process_time()
    read = load_documents([tmp_path], progress)
    assert time.process_time() - begun < 20
    assert len(read.documents) == 10_000
    assert read.documents[4711].text == "note 4711\n"
    ((stage, total, unit),) = progress.stages
    assert (stage, unit) == ("reading documents", "bytes")
    assert total == progress.done == sum(len(document.text) for document in read.documents)
