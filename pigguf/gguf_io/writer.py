"""Writing GGUF files: serialized headers, and whole files as streams.

Keys keep the order given. Every file is version 3, and its data is aligned to its general.alignment.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import numpy as np

from pigguf.common.atomic_write import AtomicFile, atomic_write_all
from pigguf.common.lazy_tensor import Array
from pigguf.common.parallel import map_ahead
from pigguf.errors import GGUFError
from pigguf.gguf_io.layout import (
    ARRAY_TYPE,
    MAGIC,
    SCALAR_TYPES,
    STRING_TYPE,
    VERSION,
    TensorType,
    get_alignment,
    padded_size,
    tensor_bytes,
)
from pigguf.gguf_io.metadata import Metadata, TypedValue, ValueType
from pigguf.progress import SILENT, Progress, stage

_NUMBERS: dict[ValueType, tuple[int, str]] = {
    kind: (number, code) for number, (kind, code) in SCALAR_TYPES.items()
}


class TensorInfo(Protocol):
    """What a header has of a tensor: a GGUFTensor that was read, or a PlannedTensor to write."""

    @property
    def name(self) -> str:
        """Its name."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape, rows first."""
        ...

    @property
    def type(self) -> TensorType:
        """Its type."""
        ...

    @property
    def nbytes(self) -> int:
        """The size of its data in bytes."""
        ...


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor to write: its header entry, and a function that encodes its rows when it is written.

    Attributes:
        name: its name.
        shape: its shape, rows first.
        type: its type in the file.
        slabs: row ranges that cover the tensor in order, rows counted as by LazyTensor.
        encode: encode(start, stop) returns the bytes of these rows; called from worker threads.
    """

    name: str
    shape: tuple[int, ...]
    type: TensorType
    slabs: Sequence[tuple[int, int]]
    encode: Callable[[int, int], Array]

    @property
    def rows(self) -> int:
        """The number of rows."""
        return self.shape[0] if len(self.shape) == 1 else math.prod(self.shape[:-1])

    @property
    def nbytes(self) -> int:
        """The size of its data in the file."""
        return tensor_bytes(self.type, self.shape)


# ---- headers -------------------------------------------------------------------------------------


def serialize_header(metadata: Metadata, tensors: Sequence[TensorInfo]) -> bytes:
    """Return the bytes of a file before its tensor data: counts, keys and tensor entries.

    The tensor data follows in the order given. Each tensor, and the header itself, is padded to the alignment
    that the keys state (general.alignment, 32 if it is missing).

    Raises:
        GGUFError: a value does not fit its type, or the alignment is invalid.
    """
    alignment = get_alignment(metadata)
    header = bytearray(MAGIC + struct.pack("<IQQ", VERSION, len(tensors), len(metadata)))
    for key, typed in metadata.items():
        header += _string(key)
        try:
            header += _value(typed)
        except (struct.error, OverflowError, UnicodeEncodeError) as error:
            raise GGUFError(f"metadata key {key} cannot be written as {typed.type}: {error}") from error
    offset = 0
    for tensor in tensors:
        header += _string(tensor.name)
        header += struct.pack(
            f"<I{len(tensor.shape)}QIQ", len(tensor.shape), *tensor.shape[::-1], tensor.type, offset
        )
        offset += padded_size(tensor.nbytes, alignment)
    return bytes(header) + bytes(padded_size(len(header), alignment) - len(header))


def _value(typed: TypedValue) -> bytes:
    number, code = _NUMBERS.get(typed.type, (STRING_TYPE, ""))
    if not typed.is_array:
        return struct.pack("<I", number) + _scalars([typed.value], code)
    return struct.pack("<IIQ", ARRAY_TYPE, number, len(typed.value)) + _scalars(typed.value, code)


def _scalars(values: Sequence[Any], code: str) -> bytes:
    return struct.pack(f"<{len(values)}{code}", *values) if code else b"".join(map(_string, values))


def _string(text: str) -> bytes:
    data = text.encode("utf-8")
    return len(data).to_bytes(8, "little") + data


# ---- files ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PlannedFile:
    """A file to write, a whole model or a shard of it: keys and tensors in order."""

    path: Path
    metadata: Metadata
    tensors: Sequence[PlannedTensor]

    @property
    def size(self) -> int:
        """The size of the file in bytes."""
        return file_size(self.metadata, self.tensors)


def file_size(metadata: Metadata, tensors: Sequence[PlannedTensor]) -> int:
    """Return the size of the file that write_gguf would write, in bytes."""
    alignment = get_alignment(metadata)
    return len(serialize_header(metadata, tensors)) + sum(
        padded_size(tensor.nbytes, alignment) for tensor in tensors
    )


def write_gguf(
    target: str | os.PathLike[str],
    metadata: Metadata,
    tensors: Sequence[PlannedTensor],
    progress: Progress = SILENT,
    verify: Callable[[Path], None] | None = None,
) -> int:
    """Write a model as one GGUF file, atomically, and return its size in bytes.

    Args:
        target: the file to create or replace.
        metadata: the keys, in order.
        tensors: the tensors, in order.
        progress: as in `write_gguf_files`.
        verify: as in `write_gguf_files`.

    Raises:
        PigError: as in `write_gguf_files`.
    """
    return write_gguf_files([PlannedFile(Path(target), metadata, tensors)], progress, verify)


def write_gguf_files(
    files: Sequence[PlannedFile],
    progress: Progress = SILENT,
    verify: Callable[[Path], None] | None = None,
) -> int:
    """Write a model's file, or all its shards, atomically, and return their size in bytes.

    Rows are encoded on all cores, a few slabs ahead of the writing, so that memory use does not grow with the
    model. The files get their names when all bytes are safe on the disk (common/atomic_write.py): existing
    files are replaced in one step, or left unchanged.

    Args:
        files: one file, or all shards in order, in one directory (`plan_files`).
        progress: one stage, in bytes written.
        verify: called with the path of the finished file, or of the first shard, before the files get their
            names; if it raises, they do not.

    Raises:
        GGUFError: a value does not fit its type.
        OutputError: the disk is full or fails, or writing is not permitted.
        PigError: whatever `encode` and `verify` raise.
    """
    total = sum(file.size for file in files)
    with atomic_write_all([file.path for file in files], total) as streams:
        with stage(progress, f"writing {files[0].path.name}", total, "bytes"):
            for file, target in zip(files, streams, strict=True):
                _write(file, target, progress)
        if verify is not None:
            with _readable_path(files, streams) as path:
                verify(path)
    return total


def _write(file: PlannedFile, target: AtomicFile, progress: Progress) -> None:
    header = serialize_header(file.metadata, file.tensors)
    target.write(header)
    progress.advance(len(header))
    for buffer in map_ahead(_jobs(file.tensors, get_alignment(file.metadata))):
        target.write(buffer)
        progress.advance(len(buffer))


@contextmanager
def _readable_path(files: Sequence[PlannedFile], streams: Sequence[AtomicFile]) -> Iterator[Path]:
    """Yield a path to written files without names; shards get links, because they find each other by name."""
    if len(streams) == 1:
        yield streams[0].path
        return
    with TemporaryDirectory(prefix="pigguf-") as directory:
        for file, target in zip(files, streams, strict=True):
            Path(directory, file.path.name).symlink_to(target.path.absolute())
        yield Path(directory, files[0].path.name)


def _jobs(tensors: Iterable[PlannedTensor], alignment: int) -> Iterator[Callable[[], memoryview]]:
    """Yield one job per slab, in file order."""
    for tensor in tensors:
        for start, stop in tensor.slabs:
            yield partial(_encode_slab, tensor, start, stop, alignment)


def _encode_slab(tensor: PlannedTensor, start: int, stop: int, alignment: int) -> memoryview:
    encoded = np.ascontiguousarray(tensor.encode(start, stop)).reshape(-1).view(np.uint8)
    whole_rows = tensor.nbytes * (stop - start) // tensor.rows
    if encoded.nbytes != whole_rows:
        raise AssertionError(
            f"{tensor.name}: rows {start}:{stop} were encoded as {encoded.nbytes} bytes, not {whole_rows}"
        )
    if stop == tensor.rows:
        padding = padded_size(tensor.nbytes, alignment) - tensor.nbytes
        encoded = np.concatenate([encoded, np.zeros(padding, np.uint8)])
    return memoryview(encoded)
