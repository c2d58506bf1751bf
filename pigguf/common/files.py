"""Files as pigguf reads and writes them: exactly, and whole or not at all.

Reading: positioned reads that fail rather than come back short.
Writing: on Linux the bytes go to a file without a name (O_TMPFILE), so that even a killed process leaves
nothing behind; elsewhere to a temporary neighbour that is removed on any error. The target's name
is taken in one step once the bytes are safe on the disk. A target that is a symbolic link stays one: the
file that it points to is written. Devices, pipes and the like are never replaced.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from pigguf.errors import OutputError, ReadError, UsageError

T = TypeVar("T")

_WRITE_BACK_BYTES = 64 << 20  # the disk begins this far behind, so that the last fsync is short
_COPY_BACK_BYTES = 256 << 20  # the same behind a copy, which a busy disk would only hold up
_COPY_BYTES = 64 << 20  # copied by one call, between two words of progress
_BLOCK_BYTES = 4096  # of a file system
_READ_BYTES = 4 << 20  # where a copy goes through our own memory
# Why copy_file_range does not: another disk, a file system or kernel without it, or a filter against it
_NOT_COPIED = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF)
# A temporary neighbour's name: by chance, for threads may write one target; short, for a target's may be long
_PREFIX, _SUFFIX = ".pigguf-", ".partial"


def read_exactly(descriptor: int, buffer: memoryview, offset: int, path: Path) -> None:
    """Fill `buffer` (bytes) from `offset`, without moving the descriptor's own position.

    Raises:
        ReadError: the file ends before the buffer is full, or the disk fails.
    """
    done = 0
    while done < len(buffer):
        try:
            got = os.preadv(descriptor, [buffer[done:]], offset + done)
        except OSError as error:
            raise ReadError(f"{path}: {error.strerror or error} at byte {offset + done}") from error
        if got == 0:
            raise ReadError(
                f"{path}: the file ends at byte {offset + done}, and became shorter while it was read"
            )
        done += got


def opened(path: Path, read: Callable[[int], T]) -> T:
    """What `read` makes of a file's descriptor, which is its to close; it closes here if `read` fails.

    Raises:
        ReadError: the system refuses to open or read the file.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    except OSError as error:
        raise unreadable(path, error) from error
    try:
        return read(descriptor)
    except BaseException as error:
        os.close(descriptor)
        if isinstance(error, OSError):
            raise unreadable(path, error) from error
        raise


def unreadable(path: Path, error: OSError) -> ReadError:
    """What to raise where the system refuses to open or read a file."""
    hints = {
        errno.ENOENT: "see that the path is spelled as it is on the disk",
        errno.EACCES: f"make it readable first, as its owner: chmod +r {path}",
        errno.EISDIR: "a file should have this name, not a directory",
    }
    return ReadError(f"{path}: {error.strerror or error}", hints.get(error.errno or 0))


def cache_directory(what: str) -> Path:
    """Where something is kept between runs: $XDG_CACHE_HOME/pigguf/<what>, which may not be there yet.

    The default is ~/.cache; a relative one is to be ignored, says the XDG base directory specification.

    Raises:
        UsageError: the system knows no home of this user.
    """
    cache = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(cache):
        return Path(cache, "pigguf", what)
    try:
        return Path.home() / ".cache" / "pigguf" / what
    except RuntimeError as error:
        raise UsageError(
            f"there is no home directory to keep {what} in", "set HOME, or XDG_CACHE_HOME to a directory"
        ) from error


def download_hint(beginning: bytes) -> str:
    """What to do about a file that does not hold what it should, by its first bytes."""
    if beginning.startswith(b"version https://git-lfs"):
        return "this is only git-lfs's pointer to the file: run `git lfs pull` in the checkpoint's directory"
    return "the file is damaged: download it again"


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object as people like to read it."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@contextmanager
def atomic_write(target: Path, expected_bytes: int = 0) -> Iterator[AtomicFile]:
    """A file to write into that becomes `target` when the block ends well, and nothing when it does not.

    Args:
        target: the file to make or to replace; its directory must exist.
        expected_bytes: how much is going to be written; refused at once where there is no room.

    Raises:
        OutputError: the target is no regular file, its directory is missing or not writable, or the disk
            is full or failing.
    """
    with atomic_writes([target], expected_bytes) as (file,):
        yield file


@contextmanager
def atomic_writes(targets: Sequence[Path], expected_bytes: int = 0) -> Iterator[tuple[AtomicFile, ...]]:
    """Files of one directory that belong together: all of them appear when the block ends well, or none.

    They take their names from the last to the first, so that who opens the first finds the others.

    Args:
        targets: the files to make or to replace; their directory must exist.
        expected_bytes: how much is going to be written in all; refused at once where there is no room.

    Raises:
        OutputError: as atomic_write.
    """
    try:
        places = [_behind_link(target) for target in targets]
        for place in places:
            _check_room(place, expected_bytes)
        with ThreadPoolExecutor(1, thread_name_prefix="pigguf-flush") as flusher, ExitStack() as opened:
            files = tuple(opened.enter_context(AtomicFile(place, flusher)) for place in places)
            yield files
            _publish(files)
    except OSError as error:
        raise _refusal(targets[0], error) from error


def _publish(files: Sequence[AtomicFile]) -> None:
    """First all that can fail, then the names; where one cannot be had, those that were are given back."""
    for file in files:
        file.settle()
    with ExitStack() as taken:
        for file in reversed(files):
            file.appear()
            taken.callback(file.vanish)
        taken.pop_all()


@contextmanager
def atomic_directory(target: Path) -> Iterator[Path]:
    """A directory to fill that becomes `target` when the block ends well, and vanishes when it does not.

    An empty directory that is there already stays the same one (somebody may stand in it, or it is a
    mount): the files move into it at the end.

    Raises:
        OutputError: the target exists and is not an empty directory, or cannot be made.
    """
    try:
        place = _behind_link(target)
        refuse_used(place)
        _check_parent(place)
        home = place if place.is_dir() else place.parent
        temporary = Path(tempfile.mkdtemp(prefix=_PREFIX, suffix=_SUFFIX, dir=home))
        try:
            yield temporary
            _let_umask_decide(temporary)
            if home is place:
                _move_up(temporary)
            else:
                temporary.chmod(0o777 & ~_umask())
                temporary.replace(place)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    except OSError as error:
        raise _refusal(target, error) from error


def refuse_used(directory: Path) -> None:
    """For what takes hours before it writes: refuse at once what atomic_directory would refuse.

    Raises:
        OutputError: something is there, and it is not an empty directory.
    """
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise OutputError(f"{directory} exists and is not an empty directory", "name a new one")


def _behind_link(target: Path) -> Path:
    """Where a symbolic link leads, whether something is there or not; any other path is itself."""
    return Path(os.path.realpath(target)) if target.is_symlink() else target


def _let_umask_decide(directory: Path) -> None:
    """Some libraries write through private temporary files, which others on the machine could not read."""
    for file in directory.rglob("*"):
        if file.is_file():
            file.chmod(0o666 & ~_umask())


def _move_up(directory: Path) -> None:
    """Put a directory's files in its parent, and remove it."""
    for file in list(directory.iterdir()):
        file.replace(directory.parent / file.name)
    directory.rmdir()


class AtomicFile:
    """The bytes of a file to be, written in order."""

    def __init__(self, target: Path, flusher: ThreadPoolExecutor) -> None:
        self._target = target
        self._descriptor: int
        self._path: Path | None  # None while the file has no name
        self._descriptor, self._path = _open_unnamed(target) or _open_named(target)
        self._behind = 0
        self._flusher = flusher
        self._flush: Future[None] | None = None

    @property
    def path(self) -> Path:
        """A path under which the bytes written so far can be read, until they have their own name."""
        return self._path or Path(f"/proc/self/fd/{self._descriptor}")

    def write(self, data: bytes | memoryview) -> None:
        """Append all of `data`."""
        view = memoryview(data).cast("B")
        while view:
            written = os.write(self._descriptor, view)
            view = view[written:]
            self._written(written, _WRITE_BACK_BYTES)

    def copy(self, source: Path, start: int, count: int, advance: Callable[[int], None]) -> None:
        """Append `count` bytes of another file, from `start` on, without bringing them here where possible.

        The system copies (copy_file_range), and shares blocks instead where the file system can (btrfs,
        XFS) and both places lie alike in a block; else the bytes are read and written.

        Args:
            advance: told of the bytes done.

        Raises:
            ReadError: the source cannot be read, or ends before.
        """
        try:
            descriptor = os.open(source, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        except OSError as error:
            raise unreadable(source, error) from error
        try:
            while count > 0:
                piece = min(count, -start % _BLOCK_BYTES or _COPY_BYTES)  # whole blocks as soon as may be
                done = self._copy_piece(descriptor, source, start, piece)
                start, count = start + done, count - done
                self._written(done, _COPY_BACK_BYTES)
                advance(done)
        finally:
            os.close(descriptor)

    def _copy_piece(self, descriptor: int, source: Path, start: int, count: int) -> int:
        if hasattr(os, "copy_file_range"):
            try:
                done = os.copy_file_range(descriptor, self._descriptor, count, start)
            except OSError as error:
                if error.errno not in _NOT_COPIED:
                    raise
            else:
                if done:
                    return done
        # 0 above is the source's end, or a file system that cannot: reading tells which
        buffer = memoryview(bytearray(min(count, _READ_BYTES)))
        read_exactly(descriptor, buffer, start, source)
        return os.write(self._descriptor, buffer)

    def _written(self, count: int, interval: int) -> None:
        """Let the disk begin, so far behind."""
        self._behind += count
        if self._behind >= interval and (self._flush is None or self._flush.done()):
            self._behind = 0
            self._flush = self._flusher.submit(os.fsync, self._descriptor)

    def settle(self) -> None:
        """Make the bytes safe, and ready to take the target's name."""
        os.fsync(self._descriptor)
        if self._path is None:
            self._path = _link(self._descriptor, self._target)
        os.chmod(self._path, _permissions(self._target))

    def appear(self) -> None:
        """Let the target's name point at the settled bytes."""
        assert self._path is not None
        os.replace(self._path, self._target)
        self._path = None
        _sync_directory(self._target.parent)

    def vanish(self) -> None:
        """Take the target's name away again."""
        with suppress(OSError):
            self._target.unlink()

    def __enter__(self) -> AtomicFile:
        return self

    def __exit__(self, *_: object) -> None:
        if self._flush is not None:
            wait([self._flush])
        os.close(self._descriptor)
        if self._path is not None:
            with suppress(OSError):
                self._path.unlink()


def _open_unnamed(target: Path) -> tuple[int, None] | None:
    """A file without a name in the target's directory, where the system has such."""
    if not hasattr(os, "O_TMPFILE") or not os.path.isdir("/proc/self/fd"):
        return None
    try:
        return os.open(target.parent, os.O_TMPFILE | os.O_WRONLY, 0o600), None
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):  # a file system without them
            return None
        raise


def _open_named(target: Path) -> tuple[int, Path]:
    descriptor, path = tempfile.mkstemp(prefix=_PREFIX, suffix=_SUFFIX, dir=target.parent)
    return descriptor, Path(path)


def _link(descriptor: int, target: Path) -> Path:
    """Give an unnamed file a neighbour's name: a link cannot replace the target itself."""
    neighbour = target.with_name(f"{_PREFIX}{secrets.token_hex(8)}{_SUFFIX}")
    directory = os.open(target.parent, os.O_RDONLY)
    try:
        # A directory descriptor makes Python call linkat, which follows /proc's link to the file.
        os.link(
            f"/proc/self/fd/{descriptor}",
            neighbour.name,
            src_dir_fd=directory,
            dst_dir_fd=directory,
            follow_symlinks=True,
        )
    finally:
        os.close(directory)
    return neighbour


def _permissions(target: Path) -> int:
    """An existing file keeps its own; a new one gets what the user's umask leaves."""
    try:
        return target.stat().st_mode & 0o7777
    except FileNotFoundError:
        return 0o666 & ~_umask()


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def _sync_directory(directory: Path) -> None:
    if os.name == "nt":  # directories cannot be opened there
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_room(target: Path, expected_bytes: int) -> None:
    if target.is_dir():
        raise OutputError(f"{target} is a directory", "name a file")
    if target.exists() and not target.is_file():
        raise OutputError(f"{target} is a device or a pipe, not a file", "name a file")
    _check_parent(target)
    free = shutil.disk_usage(target.parent).free
    if expected_bytes > free:
        raise OutputError(
            f"{target} takes {expected_bytes / 1e9:.2f} GB and the disk has {free / 1e9:.2f} GB free",
            "free some room or write to another disk with -o",
        )


def _check_parent(target: Path) -> None:
    if not target.parent.is_dir():
        raise OutputError(f"{target.parent} is not a directory", f"make it first: mkdir -p {target.parent}")


def _refusal(target: Path, error: OSError) -> OutputError:
    hints = {
        errno.ENOSPC: "the disk is full: free some room or write to another disk with -o",
        errno.EDQUOT: "the disk quota is used up: free some room or write to another disk with -o",
        errno.EFBIG: "the file is larger than this file system or the process's limit allows",
        errno.EACCES: "write to a directory of your own with -o",
        errno.EROFS: "the disk is read-only: write to another one with -o",
        errno.EMFILE: "too many files at once: take a larger --shard-size, or raise the limit (ulimit -n)",
    }
    return OutputError(f"{target}: {error.strerror or error}", hints.get(error.errno or 0))
