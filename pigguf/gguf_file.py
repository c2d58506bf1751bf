"""GGUF files: read a header and check it, read tensor rows, write a file as a stream.

The only importer of the `gguf` package. Reading is our own, because a header must be checked
before llama.cpp sees it (a bad one can abort the process) and because GGUFReader maps the whole
file; writing keys is gguf's GGUFWriter. Format: ggml docs/gguf.md; the checks follow llama.cpp
ggml/src/gguf.cpp.

Left out: big-endian files, version 1, and split files.
"""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, cast

import gguf
import numpy as np

from pigguf.errors import GGUFError, UnsupportedModel
from pigguf.files import atomic_write, read_exactly, unreadable
from pigguf.metadata import Kind, Metadata, Typed, get
from pigguf.parallel import computed_ahead
from pigguf.progress import SILENT, Progress, stage
from pigguf.tensors import Array

TensorType = gguf.GGMLQuantizationType

MAX_DIMENSIONS = 4  # GGML_MAX_DIMS
MAX_NAME_BYTES = 63  # GGML_MAX_NAME - 1
DEFAULT_ALIGNMENT = 32  # GGUF_DEFAULT_ALIGNMENT

# GGUF value types: number -> (our kind, struct code); strings and arrays are read by hand.
_SCALARS: dict[int, tuple[Kind, str]] = {
    0: ("u8", "B"),
    1: ("i8", "b"),
    2: ("u16", "H"),
    3: ("i16", "h"),
    4: ("u32", "I"),
    5: ("i32", "i"),
    6: ("f32", "f"),
    7: ("bool", "B"),
    10: ("u64", "Q"),
    11: ("i64", "q"),
    12: ("f64", "d"),
}
_STRING, _ARRAY = 8, 9
_VALUE_TYPES: dict[Kind, Any] = {kind: gguf.GGUFValueType(number) for number, (kind, _) in _SCALARS.items()}
_VALUE_TYPES["str"] = gguf.GGUFValueType.STRING


def block_elements(kind: TensorType) -> int:
    """How many elements one block of this type holds (1 for float types)."""
    return int(gguf.GGML_QUANT_SIZES[kind][0])


def row_bytes(kind: TensorType, elements: int) -> int:
    """Bytes of a row of `elements` values.

    Raises:
        GGUFError: the row is not a whole number of blocks.
    """
    per_block, block_size = gguf.GGML_QUANT_SIZES[kind]
    if elements % per_block:
        raise GGUFError(
            f"a row of {elements} elements is not a whole number of {kind.name} blocks of {per_block}"
        )
    return int(elements // per_block * block_size)


@dataclass(frozen=True)
class GGUFTensor:
    """Where a tensor lies in a file. `shape` is rows first; `offset` counts from the file's start."""

    name: str
    shape: tuple[int, ...]
    type: TensorType
    offset: int
    nbytes: int

    @property
    def elements(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def row_elements(self) -> int:
        return self.shape[-1]

    @property
    def rows(self) -> int:
        return self.elements // self.row_elements


@dataclass(frozen=True)
class GGUFFile:
    """The header of a GGUF file whose every length has been checked against the file."""

    path: Path
    version: int
    metadata: dict[str, Typed]
    tensors: dict[str, GGUFTensor]
    data_offset: int
    size: int

    @property
    def architecture(self) -> str:
        """The value of general.architecture.

        Raises:
            GGUFError: the key is missing or not a string.
        """
        value = get(self.metadata, "general.architecture", str)
        if value is None:
            raise GGUFError(
                f"{self.path}: general.architecture is missing", "the file does not say what model it holds"
            )
        return value


def read_header(path: str | os.PathLike[str]) -> GGUFFile:
    """Read and check a GGUF header.

    Raises:
        GGUFError: the file is missing, not GGUF, damaged, or shorter than its header says.
        UnsupportedModel: a whole GGUF of a sort that is not read (version 1, big-endian, split).
        ReadError: the system refuses to read it.
    """
    path = Path(path)
    try:
        with open(path, "rb") as stream:
            return _HeaderReader(path, stream).read()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise GGUFError(f"{path}: {error.strerror}", "give the path of a .gguf file") from error
    except OSError as error:
        raise unreadable(path, error) from error


class _HeaderReader:
    """Reads forward through a header, never past the end of the file."""

    def __init__(self, path: Path, stream: BinaryIO) -> None:
        self.path = path
        self.stream = stream
        self.size = os.fstat(stream.fileno()).st_size
        self.at = 0

    def read(self) -> GGUFFile:
        version = self.magic_and_version()
        tensor_count, key_count = self.number("Q"), self.number("Q")
        self.refuse_count(tensor_count, 8 + 1 + 4 + 8 + 4 + 8, "tensors")
        self.refuse_count(key_count, 8 + 1 + 4 + 1, "metadata keys")
        metadata = self.keys(key_count)
        _refuse_split(self.path, metadata)
        alignment = self.alignment(metadata)
        listed = [self.tensor_info() for _ in range(tensor_count)]
        data_offset = -(-self.at // alignment) * alignment
        tensors = self.placed(listed, data_offset, alignment)
        return GGUFFile(self.path, version, metadata, tensors, data_offset, self.size)

    def fail(
        self, what: str, hint: str | None = "the file is damaged: download or convert it again"
    ) -> GGUFError:
        return GGUFError(f"{self.path}: {what}", hint)

    def take(self, count: int) -> bytes:
        if count > self.size - self.at:
            raise self.fail(
                f"the file ends at byte {self.size}, inside its header",
                "the file was cut short: download or convert it again",
            )
        self.at += count
        return self.stream.read(count)

    def number(self, code: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize(code)))[0]

    def text(self, what: str, limit: int | None = None) -> str:
        length = self.number("Q")
        if limit is not None and length > limit:
            raise self.fail(f"{what} is {length} bytes long, more than {limit}")
        try:
            return self.take(length).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.fail(f"{what} is not UTF-8 text ({error.reason} at byte {error.start})") from error

    def magic_and_version(self) -> int:
        magic = self.take(min(4, self.size))
        if not b"GGUF".startswith(magic):
            raise self.fail(f"not a GGUF file (it begins with {magic!r})", "give the path of a .gguf file")
        self.take(4 - len(magic))
        version = int(self.number("I"))
        if version in (2, 3):
            return version
        if version & 0xFFFF == 0:
            raise UnsupportedModel(
                f"{self.path}: a big-endian GGUF file", "convert the checkpoint again on this machine"
            )
        raise UnsupportedModel(f"{self.path}: GGUF version {version} is not read", "versions 2 and 3 are")

    def refuse_count(self, count: int, least_bytes: int, what: str) -> None:
        if count > (self.size - self.at) // least_bytes:
            raise self.fail(
                f"the header speaks of {count} {what}, more than a file of {self.size} bytes can hold"
            )

    def keys(self, count: int) -> dict[str, Typed]:
        metadata: dict[str, Typed] = {}
        for _ in range(count):
            key = self.text("a metadata key", limit=65535)
            if not key or key in metadata:
                raise self.fail(
                    f"the metadata key {key!r} stands twice" if key else "a metadata key is empty"
                )
            metadata[key] = self.value(key)
        return metadata

    def value(self, key: str) -> Typed:
        number = self.number("I")
        if number == _STRING:
            return Typed("str", self.text(f"the value of {key}"))
        if number == _ARRAY:
            return self.array(key)
        if number not in _SCALARS:
            raise self.fail(f"metadata key {key} has the unknown value type {number}")
        kind, code = _SCALARS[number]
        value = self.number(code)
        return Typed(kind, bool(value) if kind == "bool" else value)

    def array(self, key: str) -> Typed:
        number, count = self.number("I"), self.number("Q")
        if number == _STRING:
            self.refuse_count(count, 8, f"strings in {key}")
            return Typed("str", tuple(self.text(f"an element of {key}") for _ in range(count)), is_array=True)
        if number not in _SCALARS:
            raise self.fail(f"metadata key {key} is an array of the unknown or nested type {number}")
        kind, code = _SCALARS[number]
        values = struct.unpack(f"<{count}{code}", self.take_array(count, code, key))
        return Typed(kind, tuple(map(bool, values)) if kind == "bool" else values, is_array=True)

    def take_array(self, count: int, code: str, key: str) -> bytes:
        self.refuse_count(count, struct.calcsize(code), f"elements in {key}")
        return self.take(count * struct.calcsize(code))

    def alignment(self, metadata: Metadata) -> int:
        alignment = get(metadata, "general.alignment", int, DEFAULT_ALIGNMENT)
        assert alignment is not None
        if alignment <= 0 or alignment & (alignment - 1):
            raise self.fail(f"general.alignment is {alignment}, not a power of two")
        return alignment

    def tensor_info(self) -> tuple[str, tuple[int, ...], TensorType, int]:
        name = self.text("a tensor name", limit=MAX_NAME_BYTES)
        dimensions = self.number("I")
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            raise self.fail(f"tensor {name} has {dimensions} dimensions")
        shape = tuple(self.number("Q") for _ in range(dimensions))[::-1]
        if min(shape) < 1 or np.prod([float(n) for n in shape]) > 2**60:
            raise self.fail(f"tensor {name} has the impossible shape {shape}")
        number = self.number("I")
        try:
            kind = TensorType(number)
        except ValueError:
            raise self.fail(
                f"tensor {name} has the unknown type {number}", "a newer pigguf may read it"
            ) from None
        if shape[-1] % block_elements(kind):
            raise self.fail(f"tensor {name} has rows of {shape[-1]} elements, not whole {kind.name} blocks")
        return name, shape, kind, self.number("Q")

    def placed(
        self, listed: list[tuple[str, tuple[int, ...], TensorType, int]], data_offset: int, alignment: int
    ) -> dict[str, GGUFTensor]:
        """Tensors lie one after another, each padded to the alignment, all within the file."""
        tensors: dict[str, GGUFTensor] = {}
        expected = 0
        for name, shape, kind, offset in listed:
            if name in tensors:
                raise self.fail(f"tensor {name} stands twice")
            if offset != expected:
                raise self.fail(f"tensor {name} lies at offset {offset}, not {expected}")
            nbytes = row_bytes(kind, shape[-1]) * int(np.prod(shape[:-1], dtype=np.int64))
            end = data_offset + offset + nbytes
            if end > self.size:
                raise self.fail(
                    f"the file is {self.size} bytes long, but tensor {name} ends at byte {end}",
                    "the file was cut short: download or convert it again",
                )
            tensors[name] = GGUFTensor(name, shape, kind, data_offset + offset, nbytes)
            expected += -(-nbytes // alignment) * alignment
        return tensors


def _refuse_split(path: Path, metadata: Metadata) -> None:
    count = get(metadata, "split.count", int, 0)
    if count is not None and count > 1:
        raise UnsupportedModel(
            f"{path}: one part of a GGUF split into {count} files (split.count)",
            "join the parts with llama.cpp's llama-gguf-split --merge",
        )


class TensorData:
    """The tensor bytes of a GGUF file, read on demand and never mapped, from any thread."""

    def __init__(self, file: GGUFFile) -> None:
        self._file = file
        self._descriptor = os.open(file.path, os.O_RDONLY | getattr(os, "O_BINARY", 0))

    def rows(self, tensor: GGUFTensor, start: int, stop: int) -> Array:
        """Rows [start, stop) as stored: uint8 of shape (stop - start, bytes of a row).

        Raises:
            GGUFError: the file became shorter since its header was read.
        """
        width = row_bytes(tensor.type, tensor.row_elements)
        buffer = np.empty((stop - start, width), np.uint8)
        read_exactly(
            self._descriptor, memoryview(buffer).cast("B"), tensor.offset + start * width, self._file.path
        )
        return buffer

    def close(self) -> None:
        os.close(self._descriptor)

    def __enter__(self) -> TensorData:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor to be written: its header now, its bytes when their turn comes.

    Attributes:
        name, shape, type: what the header says; shape is rows first.
        slabs: row ranges that cover the tensor in order.
        encode: encode(start, stop) -> the file's bytes of these rows; called from worker threads.
    """

    name: str
    shape: tuple[int, ...]
    type: TensorType
    slabs: Sequence[tuple[int, int]]
    encode: Callable[[int, int], Array]

    @property
    def nbytes(self) -> int:
        return row_bytes(self.type, self.shape[-1]) * int(np.prod(self.shape[:-1], dtype=np.int64))


def file_bytes(metadata: Metadata, tensors: Sequence[PlannedTensor]) -> int:
    """Size of the file that write_gguf would write."""
    return len(_header(metadata, tensors)) + sum(_padded(tensor.nbytes) for tensor in tensors)


def write_gguf(
    target: str | os.PathLike[str],
    metadata: Metadata,
    tensors: Sequence[PlannedTensor],
    progress: Progress = SILENT,
    verify: Callable[[Path], None] | None = None,
) -> int:
    """Write a GGUF file whole or not at all, and return its size in bytes.

    Rows are encoded on all cores a few slabs ahead of the writing, so that memory does not grow
    with the model. The bytes reach the disk under no name, or a temporary neighbour's, and take
    the target's name when all are safe: an existing file is replaced in one step or not harmed.

    Args:
        target: the file to make or replace.
        metadata: keys in the order in which they are to stand.
        tensors: in the order in which they are to stand.
        progress: told of the bytes written, one stage.
        verify: called with a path to the finished bytes before they take the target's name; what
            it raises keeps them from doing so.

    Raises:
        OutputError: no room, no right to write, or the disk failed.
        Whatever `encode` and `verify` raise.
    """
    header = _header(metadata, tensors)
    total = len(header) + sum(_padded(tensor.nbytes) for tensor in tensors)
    target = Path(target)
    with atomic_write(target, total) as file:
        with stage(progress, f"writing {target.name}", total, "bytes"):
            file.write(header)
            progress.advance(len(header))
            for buffer in computed_ahead(_jobs(tensors)):
                file.write(buffer)
                progress.advance(len(buffer))
        if verify is not None:
            verify(file.path)
    return total


def _jobs(tensors: Sequence[PlannedTensor]) -> Iterator[Callable[[], memoryview]]:
    """One job a slab, in file order."""
    for tensor in tensors:
        for start, stop in tensor.slabs:
            yield partial(_encode_slab, tensor, start, stop)


def _encode_slab(tensor: PlannedTensor, start: int, stop: int) -> memoryview:
    encoded = np.ascontiguousarray(tensor.encode(start, stop)).reshape(-1).view(np.uint8)
    whole_rows = tensor.nbytes * (stop - start) // tensor.shape[0]
    if encoded.nbytes != whole_rows:
        raise AssertionError(
            f"{tensor.name}: rows {start}:{stop} came as {encoded.nbytes} bytes, not {whole_rows}"
        )
    if stop == tensor.shape[0]:
        encoded = np.concatenate([encoded, np.zeros(_padded(tensor.nbytes) - tensor.nbytes, np.uint8)])
    return memoryview(encoded)


def _padded(nbytes: int) -> int:
    return -(-nbytes // DEFAULT_ALIGNMENT) * DEFAULT_ALIGNMENT


class _HeaderWriter(gguf.GGUFWriter):
    """GGUFWriter into memory: the header alone, the data is streamed behind it."""

    def __init__(self, architecture: str) -> None:
        super().__init__(None, architecture)
        self.buffer = io.BytesIO()

    def open_output_file(self, path: Path | None = None) -> None:
        self.fout = [cast(Any, self.buffer)]
        self.state = gguf.gguf_writer.WriterState.EMPTY

    def header(self) -> bytes:
        self.write_header_to_file()
        self.write_kv_data_to_file()
        self.write_ti_data_to_file()
        written = self.buffer.getvalue()
        return written + bytes(_padded(len(written)) - len(written))


def _header(metadata: Metadata, tensors: Sequence[PlannedTensor]) -> bytes:
    writer = _HeaderWriter(metadata["general.architecture"].value)
    for key, (kind, value, is_array) in metadata.items():
        if is_array and not len(value):
            continue  # GGUF has no empty arrays; an absent key means the same to llama.cpp
        if key != "general.architecture":  # GGUFWriter writes it first, by itself
            value_type = gguf.GGUFValueType.ARRAY if is_array else _VALUE_TYPES[kind]
            writer.add_key_value(key, value, value_type, _VALUE_TYPES[kind] if is_array else None)
    for tensor in tensors:
        shape = tensor.shape
        if block_elements(tensor.type) > 1:  # add_tensor_info takes a quantized tensor's shape in bytes
            shape = (*shape[:-1], row_bytes(tensor.type, shape[-1]))
            writer.add_tensor_info(tensor.name, shape, np.dtype(np.uint8), tensor.nbytes, tensor.type)
        else:
            writer.add_tensor_info(tensor.name, shape, np.dtype(np.float32), tensor.nbytes, tensor.type)
    return writer.header()
