"""Files that appear complete or not at all.

On Linux the bytes go to a file without a name (O_TMPFILE), so that even a killed process leaves nothing
behind; elsewhere to a temporary file next to the target, which is removed on any error. The file takes the
target's name in one step once the bytes are safe on the disk. If the target is a symbolic link, the file that
it points to is written and the link stays. Devices, pipes and the like are never replaced.
"""

from __future__ import annotations

import errno
import os
import secrets
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from pigguf.common.file_io import read_error, read_exactly
from pigguf.common.output_target import (
    TEMPORARY_PREFIX,
    TEMPORARY_SUFFIX,
    check_file_target,
    output_error,
    permissions_for,
    resolve_link,
)

_WRITE_BACK_BYTES = 64 << 20  # write-back starts this far behind, so that the last fsync is short
_COPY_BACK_BYTES = 256 << 20  # the same for a copy, which write-back would only slow down
_COPY_BYTES = 64 << 20  # copied by one call, between two reports of progress
_BLOCK_BYTES = 4096  # block size of a file system
_READ_BYTES = 4 << 20  # where a copy goes through our own memory
# copy_file_range cannot: another disk, a file system or kernel without it, or a seccomp filter
_NOT_COPIED = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF)


@contextmanager
def atomic_write(target: Path, expected_bytes: int = 0) -> Iterator[AtomicFile]:
    """Yield a file that becomes `target` when the block ends, or nothing if the block raises.

    Args:
        target: the file to create or replace; its directory must exist.
        expected_bytes: how much will be written; if the disk has less, it is refused at once.

    Raises:
        OutputError: the target is not a regular file, its directory is missing or not writable, or the disk
            is full or fails.
    """
    with atomic_write_all([target], expected_bytes) as (file,):
        yield file


@contextmanager
def atomic_write_all(targets: Sequence[Path], expected_bytes: int = 0) -> Iterator[tuple[AtomicFile, ...]]:
    """Yield files of one directory that belong together: all become targets when the block ends, or none.

    They take their names from the last to the first, so that whoever opens the first finds the others.

    Args:
        targets: the files to create or replace; their directory must exist.
        expected_bytes: how much will be written in all; if the disk has less, it is refused at once.

    Raises:
        OutputError: as atomic_write.
    """
    try:
        paths = [resolve_link(target) for target in targets]
        for path in paths:
            check_file_target(path, expected_bytes)
        with ThreadPoolExecutor(1, thread_name_prefix="pigguf-flush") as flusher, ExitStack() as stack:
            files = tuple(stack.enter_context(AtomicFile(path, flusher)) for path in paths)
            yield files
            _publish(files)
    except OSError as error:
        raise output_error(targets[0], error) from error


def _publish(files: Sequence[AtomicFile]) -> None:
    """Make all bytes safe, then give the files their names; if one fails, take the names back."""
    for file in files:
        file.prepare()
    with ExitStack() as published:
        for file in reversed(files):
            file.publish()
            published.callback(file.unpublish)
        published.pop_all()


class AtomicFile:
    """A file that is written in order and takes its name at the end."""

    def __init__(self, target: Path, flusher: ThreadPoolExecutor) -> None:
        self._target = target
        self._descriptor: int
        self._path: Path | None  # None while the file has no name
        self._descriptor, self._path = _open_unnamed(target) or _open_named(target)
        self._unflushed = 0
        self._flusher = flusher
        self._flush: Future[None] | None = None

    @property
    def path(self) -> Path:
        """A path under which the bytes written so far can be read, until the file is published."""
        return self._path or Path(f"/proc/self/fd/{self._descriptor}")

    def write(self, data: bytes | memoryview) -> None:
        """Append all of `data`."""
        view = memoryview(data).cast("B")
        while view:
            written = os.write(self._descriptor, view)
            view = view[written:]
            self._start_write_back(written, _WRITE_BACK_BYTES)

    def copy(self, source: Path, start: int, count: int, advance: Callable[[int], None]) -> None:
        """Append `count` bytes of another file, from `start` on, without reading them where possible.

        The kernel copies (copy_file_range), or shares blocks if the file system can (btrfs, XFS) and both
        offsets are aligned alike; otherwise the bytes are read and written.

        Args:
            source: the file to copy from.
            start: the offset of the first byte.
            count: how many bytes.
            advance: called with the number of bytes copied since the last call.

        Raises:
            ReadError: the source cannot be read, or is too short.
        """
        try:
            descriptor = os.open(source, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        except OSError as error:
            raise read_error(source, error) from error
        try:
            while count > 0:
                chunk = min(
                    count, -start % _BLOCK_BYTES or _COPY_BYTES
                )  # aligned to blocks after the first chunk
                done = self._copy_chunk(descriptor, source, start, chunk)
                start, count = start + done, count - done
                self._start_write_back(done, _COPY_BACK_BYTES)
                advance(done)
        finally:
            os.close(descriptor)

    def _copy_chunk(self, descriptor: int, source: Path, start: int, count: int) -> int:
        if hasattr(os, "copy_file_range"):
            try:
                done = os.copy_file_range(descriptor, self._descriptor, count, start)
            except OSError as error:
                if error.errno not in _NOT_COPIED:
                    raise
            else:
                if done:
                    return done
        # 0 above means the end of the source, or a file system that cannot copy: reading shows which.
        buffer = memoryview(bytearray(min(count, _READ_BYTES)))
        read_exactly(descriptor, buffer, start, source)
        return os.write(self._descriptor, buffer)

    def _start_write_back(self, count: int, interval: int) -> None:
        """Count written bytes, and start to flush them to the disk every `interval` bytes."""
        self._unflushed += count
        if self._unflushed >= interval and (self._flush is None or self._flush.done()):
            self._unflushed = 0
            self._flush = self._flusher.submit(os.fsync, self._descriptor)

    def prepare(self) -> None:
        """Flush the bytes to the disk, under a temporary name next to the target."""
        os.fsync(self._descriptor)
        if self._path is None:
            self._path = _link(self._descriptor, self._target)
        os.chmod(self._path, permissions_for(self._target))

    def publish(self) -> None:
        """Rename the prepared file to the target."""
        assert self._path is not None
        os.replace(self._path, self._target)
        self._path = None
        _sync_directory(self._target.parent)

    def unpublish(self) -> None:
        """Remove the target again."""
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
    """Open a file without a name in the target's directory, or return None if the system has none."""
    if not hasattr(os, "O_TMPFILE") or not os.path.isdir("/proc/self/fd"):
        return None
    try:
        return os.open(target.parent, os.O_TMPFILE | os.O_WRONLY, 0o600), None
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):  # a file system without O_TMPFILE
            return None
        raise


def _open_named(target: Path) -> tuple[int, Path]:
    descriptor, path = tempfile.mkstemp(prefix=TEMPORARY_PREFIX, suffix=TEMPORARY_SUFFIX, dir=target.parent)
    return descriptor, Path(path)


def _link(descriptor: int, target: Path) -> Path:
    """Give an unnamed file a temporary name next to the target: a link cannot replace the target itself."""
    temporary = target.with_name(f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}{TEMPORARY_SUFFIX}")
    directory = os.open(target.parent, os.O_RDONLY)
    try:
        # A directory descriptor makes Python call linkat, which follows /proc's link to the file.
        os.link(
            f"/proc/self/fd/{descriptor}",
            temporary.name,
            src_dir_fd=directory,
            dst_dir_fd=directory,
            follow_symlinks=True,
        )
    finally:
        os.close(directory)
    return temporary


def _sync_directory(directory: Path) -> None:
    if os.name == "nt":  # directories cannot be opened there
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
