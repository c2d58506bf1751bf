"""Reading GGUF files: one file's header, checked, and tensor rows.

Our own, because a header must be checked before llama.cpp sees it (a bad one can abort the process)
and because gguf's reader maps the whole file. The checks follow llama.cpp ggml/src/gguf.cpp, and
are harder where that lets pass what no converter writes. Time and memory are bounded by the header's
size, which has a limit of its own: one flipped bit in a count must not read a model as metadata.

Left out: big-endian files and version 1. What joins the parts of a split model is join.py.
"""

from __future__ import annotations

import math
import os
import struct
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np

from pigguf.common.file_io import read_error, read_exactly
from pigguf.common.lazy_tensor import Array
from pigguf.errors import GGUFError, UnsupportedModel
from pigguf.gguf_io.layout import (
    ARRAY,
    MAGIC,
    MAX_DIMENSIONS,
    MAX_NAME_BYTES,
    SCALARS,
    STRING,
    GGUFFile,
    GGUFTensor,
    TensorType,
    alignment_of,
    block_elements,
    named,
    padded,
    row_bytes,
    tensor_bytes,
)
from pigguf.gguf_io.metadata import Typed

MAX_HEADER_BYTES = 128 << 20  # several times the largest there is: 262,144 tokens and a tokenizer.json

_DAMAGED = "the file is damaged: download or convert it again"
_CUT = "the file was cut short: download or convert it again"
_LENGTH = struct.Struct("<Q")
# The least that each can take up: a name, type and value; a name, one dimension, type and offset.
_LEAST_KEY = 8 + 1 + 4 + 1
_LEAST_TENSOR = 8 + 1 + 4 + 8 + 4 + 8

_Listed = tuple[str, tuple[int, ...], TensorType, int]  # name, shape, type and offset as they stand


def read_part(path: str | os.PathLike[str]) -> GGUFFile:
    """Read and check the header of this file alone, whatever it is a part of.

    Raises:
        GGUFError: the file is missing, not GGUF, damaged, or shorter than its header says.
        UnsupportedModel: a whole GGUF of a sort that is not read (version 1, big-endian).
        ReadError: the system refuses to read it.
    """
    path = Path(path)
    try:
        with open(path, "rb") as stream:
            return _HeaderReader(path, stream).read()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise GGUFError(f"{path}: {error.strerror}", "give the path of a .gguf file") from error
    except OSError as error:
        raise read_error(path, error) from error


class _HeaderReader:
    """Reads forward through a header, never past the end of the file or the limit of headers."""

    def __init__(self, path: Path, stream: BinaryIO) -> None:
        self.path = path
        self.stream = stream
        self.size = os.fstat(stream.fileno()).st_size
        self.end = min(self.size, MAX_HEADER_BYTES)
        self.at = 0

    def read(self) -> GGUFFile:
        version = self.magic_and_version()
        tensor_count, key_count = self.number("Q"), self.number("Q")
        self.refuse_count(tensor_count, _LEAST_TENSOR, "tensors")
        self.refuse_count(key_count, _LEAST_KEY, "metadata keys")
        metadata = self.keys(key_count)
        with named(self.path):
            alignment = alignment_of(metadata)
        listed = [self.tensor_info() for _ in range(tensor_count)]
        data_offset = padded(self.at, alignment)
        tensors = self.placed(listed, data_offset, alignment)
        return GGUFFile(
            self.path, version, metadata, tensors, data_offset, self.size, alignment, (self.path,)
        )

    def fail(self, what: str, hint: str = _DAMAGED) -> GGUFError:
        return GGUFError(f"{self.path}: {what}", hint)

    # ---- bytes -----------------------------------------------------------------------------------

    def take(self, count: int) -> bytes:
        if count > self.room:
            raise self.too_short()
        self.at += count
        return self.stream.read(count)

    def too_short(self) -> GGUFError:
        if self.end < self.size:
            return self.fail(f"its header is larger than {MAX_HEADER_BYTES} bytes, which none is")
        return self.fail(f"the file ends at byte {self.size}, inside its header", _CUT)

    def too_long(self, what: str, length: int) -> GGUFError:
        return self.fail(f"{what} is {length} bytes long, and {self.room} remain of {self.whole}")

    @property
    def room(self) -> int:
        return self.end - self.at

    @property
    def whole(self) -> str:
        """What a header has to fit into, in words."""
        if self.end < self.size:
            return f"the {MAX_HEADER_BYTES} bytes that a header may have"
        return f"a file of {self.size} bytes"

    def number(self, code: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize(code)))[0]

    def text(self, what: str, limit: int | None = None) -> str:
        length = self.number("Q")
        if limit is not None and length > limit:
            raise self.fail(f"{what} is {length} bytes long, more than {limit}")
        if length > self.room:
            raise self.too_long(what, length)
        try:
            return self.take(length).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.not_text(what, error) from error

    def not_text(self, what: str, error: UnicodeDecodeError) -> GGUFError:
        return self.fail(f"{what} is not UTF-8 text ({error.reason} at byte {error.start})")

    def refuse_count(self, count: int, least_bytes: int, what: str) -> None:
        if count > self.room // least_bytes:
            raise self.fail(f"the header speaks of {count} {what}, more than {self.whole} can hold")

    # ---- parts of a header -----------------------------------------------------------------------

    def magic_and_version(self) -> int:
        magic = self.take(min(4, self.size))
        if not MAGIC.startswith(magic):
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

    def keys(self, count: int) -> dict[str, Typed]:
        metadata: dict[str, Typed] = {}
        for _ in range(count):
            key = self.text("a metadata key", limit=65535)
            if not key:
                raise self.fail("a metadata key is empty")
            if key in metadata:
                raise self.fail(f"the metadata key {_brief(key)} stands twice")
            metadata[key] = self.value(key)
        return metadata

    def value(self, key: str) -> Typed:
        number = self.number("I")
        if number == STRING:
            return Typed("str", self.text(f"the value of {_brief(key)}"))
        if number == ARRAY:
            return self.array(key)
        if number not in SCALARS:
            raise self.fail(f"metadata key {_brief(key)} has the unknown value type {number}")
        kind, code = SCALARS[number]
        return Typed(kind, self.number(code))

    def array(self, key: str) -> Typed:
        number, count = self.number("I"), self.number("Q")
        if number == STRING:
            self.refuse_count(count, 8, f"strings in {_brief(key)}")
            return Typed("str", self.texts(key, count), is_array=True)
        if number not in SCALARS:
            nested = "nested arrays" if number == ARRAY else f"the unknown type {number}"
            raise self.fail(f"metadata key {_brief(key)} is an array of {nested}")
        kind, code = SCALARS[number]
        width = struct.calcsize(code)
        self.refuse_count(count, width, f"elements in {_brief(key)}")
        return Typed(kind, _numbers(self.take(count * width), code), is_array=True)

    def texts(self, key: str, count: int) -> tuple[str, ...]:
        """Strings one after another. A vocabulary and its merges are most of a header: no call but reads."""
        read, length_of, texts = self.stream.read, _LENGTH.unpack, []
        try:
            for place in range(count):
                if self.at + 8 > self.end:
                    raise self.too_short()
                length = length_of(read(8))[0]
                self.at += 8 + length
                if self.at > self.end:
                    self.at -= length
                    raise self.too_long(f"element {place} of {_brief(key)}", length)
                texts.append(read(length).decode())
        except UnicodeDecodeError as error:
            raise self.not_text(f"element {len(texts)} of {_brief(key)}", error) from error
        return tuple(texts)

    def tensor_info(self) -> _Listed:
        name = self.text("a tensor name", limit=MAX_NAME_BYTES)
        if not name:
            raise self.fail("a tensor has no name")
        dimensions = self.number("I")
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            raise self.fail(f"tensor {name} has {dimensions} dimensions")
        shape = tuple(struct.unpack(f"<{dimensions}Q", self.take(8 * dimensions)))[::-1]
        if min(shape) < 1 or math.prod(shape) > 2**60:
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

    def placed(self, listed: list[_Listed], data_offset: int, alignment: int) -> dict[str, GGUFTensor]:
        """Tensors lie one after another, each padded to the alignment, all within the file."""
        tensors: dict[str, GGUFTensor] = {}
        expected = 0
        for name, shape, kind, offset in listed:
            if name in tensors:
                raise self.fail(f"tensor {name} stands twice")
            if offset != expected:
                raise self.fail(f"tensor {name} lies at offset {offset}, not {expected}")
            nbytes = tensor_bytes(kind, shape)
            end = data_offset + offset + nbytes
            if end > self.size:
                raise self.fail(
                    f"the file is {self.size} bytes long, but tensor {name} ends at byte {end}", _CUT
                )
            tensors[name] = GGUFTensor(name, shape, kind, data_offset + offset, nbytes)
            expected += padded(nbytes, alignment)
        return tensors


def _numbers(data: bytes, code: str) -> tuple[Any, ...]:
    """Numbers as they lie in a file. Narrow ones share an object where they are equal.

    A Python number takes 32 bytes: thirty times the one byte that it came from.
    """
    if code not in "bHh":  # bytes and truth values are shared by Python itself
        return struct.unpack(f"<{len(data) // struct.calcsize(code)}{code}", data)
    seen: dict[int, int] = {}
    return tuple(seen.setdefault(number, number) for (number,) in struct.iter_unpack("<" + code, data))


def _brief(key: str) -> str:
    """A key as a message shows it: a damaged one may be long."""
    return key if len(key) <= 100 and key.isprintable() else repr(key[:100])


class TensorData:
    """The tensor bytes of a GGUF, all parts, read on demand and never mapped, from any thread.

    Raises:
        ReadError: a part cannot be opened.
    """

    def __init__(self, file: GGUFFile) -> None:
        self._parts = file.parts
        self._descriptors: list[int] = []
        for path in file.parts:
            try:
                self._descriptors.append(os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0)))
            except OSError as error:
                self.close()
                raise read_error(path, error) from error

    def rows(self, tensor: GGUFTensor, start: int, stop: int) -> Array:
        """Rows [start, stop) as stored: uint8 of shape (stop - start, bytes of a row).

        Raises:
            ReadError: the file became shorter since its header was read.
        """
        width = row_bytes(tensor.type, tensor.row_elements)
        buffer = np.empty((stop - start, width), np.uint8)
        offset = tensor.offset + start * width
        view = memoryview(buffer).cast("B")
        read_exactly(self._descriptors[tensor.part], view, offset, self._parts[tensor.part])
        return buffer

    def close(self) -> None:
        while self._descriptors:
            with suppress(OSError):
                os.close(self._descriptors.pop())

    def __enter__(self) -> TensorData:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
