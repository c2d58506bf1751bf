"""Writing GGUF files: a header's bytes, and whole files as streams.

Keys stand in the order given. Every file is version 3, its data aligned as its own general.alignment says.
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
    ARRAY,
    MAGIC,
    SCALARS,
    STRING,
    VERSION,
    TensorType,
    alignment_of,
    padded,
    tensor_bytes,
)
from pigguf.gguf_io.metadata import Kind, Metadata, Typed
from pigguf.progress import SILENT, Progress, stage

_NUMBERS: dict[Kind, tuple[int, str]] = {kind: (number, code) for number, (kind, code) in SCALARS.items()}


class TensorInfo(Protocol):
    """What a header says of a tensor: a GGUFTensor that was read, or a PlannedTensor to be written."""

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def type(self) -> TensorType: ...
    @property
    def nbytes(self) -> int: ...


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor to be written: its header now, its bytes when their turn comes.

    Attributes:
        name, shape, type: what the header says; shape is rows first.
        slabs: row ranges that cover the tensor in order, rows counted as LazyTensor does.
        encode: encode(start, stop) -> the file's bytes of these rows; called from worker threads.
    """

    name: str
    shape: tuple[int, ...]
    type: TensorType
    slabs: Sequence[tuple[int, int]]
    encode: Callable[[int, int], Array]

    @property
    def rows(self) -> int:
        return self.shape[0] if len(self.shape) == 1 else math.prod(self.shape[:-1])

    @property
    def nbytes(self) -> int:
        return tensor_bytes(self.type, self.shape)


# ---- headers -------------------------------------------------------------------------------------


def header_bytes(metadata: Metadata, tensors: Sequence[TensorInfo]) -> bytes:
    """All of a file that stands before its data: counts, keys, what each tensor is and where it lies.

    The tensors lie in the order given, the first at the header's end and each padded to the alignment
    that the keys state (general.alignment, 32 where it is absent); so is the header itself.

    Raises:
        GGUFError: a value that its type cannot hold, or an alignment that cannot be.
    """
    alignment = alignment_of(metadata)
    header = bytearray(MAGIC + struct.pack("<IQQ", VERSION, len(tensors), len(metadata)))
    for key, typed in metadata.items():
        header += _text(key)
        try:
            header += _value(typed)
        except (struct.error, OverflowError, UnicodeEncodeError) as error:
            raise GGUFError(f"metadata key {key} cannot be written as {typed.kind}: {error}") from error
    offset = 0
    for tensor in tensors:
        header += _text(tensor.name)
        header += struct.pack(
            f"<I{len(tensor.shape)}QIQ", len(tensor.shape), *tensor.shape[::-1], tensor.type, offset
        )
        offset += padded(tensor.nbytes, alignment)
    return bytes(header) + bytes(padded(len(header), alignment) - len(header))


def _value(typed: Typed) -> bytes:
    number, code = _NUMBERS.get(typed.kind, (STRING, ""))
    if not typed.is_array:
        return struct.pack("<I", number) + _plain([typed.value], code)
    return struct.pack("<IIQ", ARRAY, number, len(typed.value)) + _plain(typed.value, code)


def _plain(values: Sequence[Any], code: str) -> bytes:
    return struct.pack(f"<{len(values)}{code}", *values) if code else b"".join(map(_text, values))


def _text(text: str) -> bytes:
    data = text.encode("utf-8")
    return len(data).to_bytes(8, "little") + data


# ---- files ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PlannedFile:
    """A file to be written, the whole of a model or a part of it: keys and tensors in order."""

    path: Path
    metadata: Metadata
    tensors: Sequence[PlannedTensor]

    @property
    def bytes(self) -> int:
        return file_bytes(self.metadata, self.tensors)


def file_bytes(metadata: Metadata, tensors: Sequence[PlannedTensor]) -> int:
    """Size of the file that write_gguf would write."""
    alignment = alignment_of(metadata)
    return len(header_bytes(metadata, tensors)) + sum(padded(tensor.nbytes, alignment) for tensor in tensors)


def write_gguf(
    target: str | os.PathLike[str],
    metadata: Metadata,
    tensors: Sequence[PlannedTensor],
    progress: Progress = SILENT,
    verify: Callable[[Path], None] | None = None,
) -> int:
    """Write a model as one GGUF file, whole or not at all, and return its size in bytes.

    Args:
        target: the file to make or replace.
        metadata: keys in the order in which they are to stand.
        tensors: in the order in which they are to stand.
        progress, verify: as in write_files.

    Raises:
        As write_files.
    """
    return write_files([PlannedFile(Path(target), metadata, tensors)], progress, verify)


def write_files(
    files: Sequence[PlannedFile],
    progress: Progress = SILENT,
    verify: Callable[[Path], None] | None = None,
) -> int:
    """Write a model's file, or its parts, whole or not at all, and return their size in bytes.

    Rows are encoded on all cores a few slabs ahead of the writing, so that memory does not grow
    with the model. The bytes reach the disk under no name, or a temporary neighbour's, and take
    the targets' names when all are safe: existing files are replaced in one step or not harmed.

    Args:
        files: one, or all parts in order, in one directory (split.planned_files).
        progress: told of the bytes written, one stage.
        verify: called with a path to the finished bytes before they take their names: the file, or the
            first part, with the others beside it; what it raises keeps them from doing so.

    Raises:
        GGUFError: a value that its type cannot hold.
        OutputError: no room, no right to write, or the disk failed.
        Whatever `encode` and `verify` raise.
    """
    total = sum(file.bytes for file in files)
    with atomic_write_all([file.path for file in files], total) as opened:
        with stage(progress, f"writing {files[0].path.name}", total, "bytes"):
            for file, target in zip(files, opened, strict=True):
                _write(file, target, progress)
        if verify is not None:
            with _readable(files, opened) as path:
                verify(path)
    return total


def _write(file: PlannedFile, target: AtomicFile, progress: Progress) -> None:
    header = header_bytes(file.metadata, file.tensors)
    target.write(header)
    progress.advance(len(header))
    for buffer in map_ahead(_jobs(file.tensors, alignment_of(file.metadata))):
        target.write(buffer)
        progress.advance(len(buffer))


@contextmanager
def _readable(files: Sequence[PlannedFile], opened: Sequence[AtomicFile]) -> Iterator[Path]:
    """A path to what was written and has no name yet; parts are linked, for they find each other by name."""
    if len(opened) == 1:
        yield opened[0].path
        return
    with TemporaryDirectory(prefix="pigguf-") as directory:
        for file, target in zip(files, opened, strict=True):
            Path(directory, file.path.name).symlink_to(target.path.absolute())
        yield Path(directory, files[0].path.name)


def _jobs(tensors: Iterable[PlannedTensor], alignment: int) -> Iterator[Callable[[], memoryview]]:
    """One job a slab, in file order."""
    for tensor in tensors:
        for start, stop in tensor.slabs:
            yield partial(_encode_slab, tensor, start, stop, alignment)


def _encode_slab(tensor: PlannedTensor, start: int, stop: int, alignment: int) -> memoryview:
    encoded = np.ascontiguousarray(tensor.encode(start, stop)).reshape(-1).view(np.uint8)
    whole_rows = tensor.nbytes * (stop - start) // tensor.rows
    if encoded.nbytes != whole_rows:
        raise AssertionError(
            f"{tensor.name}: rows {start}:{stop} came as {encoded.nbytes} bytes, not {whole_rows}"
        )
    if stop == tensor.rows:
        padding = padded(tensor.nbytes, alignment) - tensor.nbytes
        encoded = np.concatenate([encoded, np.zeros(padding, np.uint8)])
    return memoryview(encoded)
