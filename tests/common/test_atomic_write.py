"""Files and directories that appear complete or not at all, whatever the target is."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from pigguf.common.atomic_directory import atomic_directory
from pigguf.common.atomic_write import atomic_write
from pigguf.errors import OutputError, ReadError


def write(target: Path, content: bytes = b"new") -> None:
    with atomic_write(target) as file:
        file.write(content)


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_stays_one_and_what_it_points_to_is_written(exists: bool, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    real, link = tmp_path / "elsewhere" / "real.gguf", tmp_path / "link.gguf"
    if exists:
        real.write_bytes(b"old")
    link.symlink_to(Path("elsewhere") / "real.gguf")
    write(link)
    assert link.is_symlink()
    assert real.read_bytes() == b"new"
    assert sorted(os.listdir(tmp_path)) == ["elsewhere", "link.gguf"]


def test_only_regular_files_are_replaced(tmp_path: Path) -> None:
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    for target in (pipe, link, Path(os.devnull)):
        with pytest.raises(OutputError, match="is a device or a pipe") as raised:
            write(target)
        assert raised.value.hint
    assert pipe.is_fifo()
    assert Path(os.devnull).is_char_device()


@pytest.mark.parametrize("unnamed", [True, False])
def test_the_longest_name_can_be_written(
    unnamed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not unnamed:
        monkeypatch.setattr("pigguf.common.atomic_write._open_unnamed", lambda target: None)
    write(tmp_path / ("x" * 255))
    assert os.listdir(tmp_path) == ["x" * 255]


@pytest.mark.parametrize("unnamed", [True, False])
def test_two_may_write_one_target_and_the_last_one_stays(
    unnamed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Write a second file between the link and the renaming of the first, when both have temporary names."""
    if not unnamed:
        monkeypatch.setattr("pigguf.common.atomic_write._open_unnamed", lambda target: None)
    replace, inner = os.replace, [True]

    def meet(old: Path, new: Path) -> None:
        if inner and inner.pop():
            write(tmp_path / "target", b"first")
        replace(old, new)

    monkeypatch.setattr("os.replace", meet)
    write(tmp_path / "target", b"last")
    assert (tmp_path / "target").read_bytes() == b"last"
    assert os.listdir(tmp_path) == ["target"]


def fill(target: Path) -> None:
    with atomic_directory(target) as directory:
        (directory / "file").write_text("new")


def test_private_files_get_the_permissions_of_the_umask(tmp_path: Path) -> None:
    with atomic_directory(tmp_path / "out") as directory:
        (directory / "weights").touch(mode=0o600)
    (tmp_path / "usual").touch()
    assert (tmp_path / "out" / "weights").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_an_empty_directory_stays_the_same_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    empty, link = tmp_path / "empty", tmp_path / "link"
    empty.mkdir()
    link.symlink_to(empty)
    before = empty.stat().st_ino
    monkeypatch.chdir(empty)
    fill(Path())
    assert os.listdir() == ["file"]
    (empty / "file").unlink()
    fill(link)
    assert os.listdir(empty) == ["file"]
    assert empty.stat().st_ino == before
    assert sorted(os.listdir(tmp_path)) == ["empty", "link"]


@pytest.mark.parametrize("exists", [True, False])
def test_a_failure_leaves_a_directory_as_it_was(exists: bool, tmp_path: Path) -> None:
    target = tmp_path / "target"
    if exists:
        target.mkdir()
    with pytest.raises(RuntimeError), atomic_directory(target) as directory:
        (directory / "file").write_text("half")
        raise RuntimeError
    assert os.listdir(tmp_path) == (["target"] if exists else [])
    assert not exists or os.listdir(target) == []


@pytest.mark.parametrize("refused", [None, errno.EXDEV, errno.ENOSYS])
def test_a_range_of_another_file_is_copied_whole(
    refused: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copy by the system, and by reading and writing if it cannot; both in several chunks."""
    if refused is not None:

        def refuse(*arguments: int) -> int:
            raise OSError(refused, os.strerror(refused))

        monkeypatch.setattr("os.copy_file_range", refuse)
    monkeypatch.setattr("pigguf.common.atomic_write._COPY_BYTES", 8192)
    monkeypatch.setattr("pigguf.common.atomic_write._READ_BYTES", 3000)
    content = os.urandom(50_000)
    (tmp_path / "source").write_bytes(content)
    copied: list[int] = []
    with atomic_write(tmp_path / "target") as file:
        file.write(b"head")
        file.copy(tmp_path / "source", 1234, 40_000, copied.append)
        file.write(b"tail")
    assert (tmp_path / "target").read_bytes() == b"head" + content[1234:41_234] + b"tail"
    assert sum(copied) == 40_000
    assert len(copied) > 4


def test_a_failed_copy_leaves_the_target_unchanged(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"short")
    (tmp_path / "target").write_bytes(b"precious")
    for source, words in (("source", "ends at byte 5"), ("missing", "No such file")):
        with (
            pytest.raises(ReadError, match=words) as raised,
            atomic_write(tmp_path / "target") as file,
        ):
            file.copy(tmp_path / source, 2, 10, lambda done: None)
        assert raised.value.hint
    assert (tmp_path / "target").read_bytes() == b"precious"
    assert sorted(os.listdir(tmp_path)) == ["source", "target"]
