"""Reading and checking the header of one GGUF file.

This is not gguf-py's reader, because a header must be checked before llama.cpp reads it (an invalid one can
abort the process), and because gguf-py maps the whole file. The checks follow llama.cpp's ggml/src/gguf.cpp,
and are stricter about what no converter writes. Time and memory are bounded by the size of the header, which
has a limit: one flipped bit in a count must not make us read the weights as metadata.

Not here: big-endian files and version 1, which are refused, and joining the shards of a split model
(read_header.py).
"""

from __future__ import annotations

import math
import os
import struct
from pathlib import Path
from typing import Any, BinaryIO

from pigguf.common.file_io import read_error
from pigguf.errors import GGUFError, UnsupportedModel
from pigguf.gguf_io.layout import (
    ARRAY_TYPE,
    MAGIC,
    MAX_DIMENSIONS,
    MAX_NAME_BYTES,
    SCALAR_TYPES,
    STRING_TYPE,
    GGUFFile,
    GGUFTensor,
    TensorType,
    block_elements,
    errors_name_file,
    get_alignment,
    padded_size,
    tensor_bytes,
)
from pigguf.gguf_io.metadata import TypedValue

MAX_HEADER_BYTES = 128 << 20  # several times the largest known: 262,144 tokens and a tokenizer.json

_DAMAGED = "the file is damaged: download or convert it again"
_TRUNCATED = "the file is truncated: download or convert it again"
_LENGTH = struct.Struct("<Q")
# The minimum sizes: of a name, type and value; of a name, one dimension, type and offset.
_MIN_KEY_BYTES = 8 + 1 + 4 + 1
_MIN_TENSOR_BYTES = 8 + 1 + 4 + 8 + 4 + 8

_TensorEntry = tuple[str, tuple[int, ...], TensorType, int]  # name, shape, type, and offset in the data


def read_shard(path: str | os.PathLike[str]) -> GGUFFile:
    """Read and check the header of one file, even if it is a shard of a split model.

    Raises:
        GGUFError: the file is missing, not GGUF, damaged, or shorter than its header states.
        UnsupportedModel: a valid GGUF of an unsupported kind (version 1, big-endian).
        ReadError: the file cannot be read.
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
    """Reads a header from start to end, never past the end of the file or MAX_HEADER_BYTES."""

    def __init__(self, path: Path, stream: BinaryIO) -> None:
        self._path = path
        self._stream = stream
        self._file_size = os.fstat(stream.fileno()).st_size
        self._limit = min(self._file_size, MAX_HEADER_BYTES)
        self._position = 0

    def read(self) -> GGUFFile:
        """Read and check the whole header."""
        version = self._read_version()
        tensor_count, key_count = self._read_number("Q"), self._read_number("Q")
        self._check_count(tensor_count, _MIN_TENSOR_BYTES, "tensors")
        self._check_count(key_count, _MIN_KEY_BYTES, "metadata keys")
        metadata = self._read_metadata(key_count)
        with errors_name_file(self._path):
            alignment = get_alignment(metadata)
        entries = [self._read_tensor_entry() for _ in range(tensor_count)]
        data_offset = padded_size(self._position, alignment)
        tensors = self._locate_tensors(entries, data_offset, alignment)
        return GGUFFile(
            self._path, version, metadata, tensors, data_offset, self._file_size, alignment, (self._path,)
        )

    def _error(self, what: str, hint: str = _DAMAGED) -> GGUFError:
        return GGUFError(f"{self._path}: {what}", hint)

    # ---- bytes -----------------------------------------------------------------------------------

    def _read_bytes(self, count: int) -> bytes:
        if count > self._bytes_left:
            raise self._too_short()
        self._position += count
        return self._stream.read(count)

    def _too_short(self) -> GGUFError:
        if self._limit < self._file_size:
            return self._error(
                f"its header is larger than {MAX_HEADER_BYTES} bytes, more than any model needs"
            )
        return self._error(f"the file ends at byte {self._file_size}, inside its header", _TRUNCATED)

    def _too_long(self, what: str, length: int) -> GGUFError:
        return self._error(
            f"{what} is {length} bytes long, and {self._bytes_left} remain of {self._limit_text}"
        )

    @property
    def _bytes_left(self) -> int:
        return self._limit - self._position

    @property
    def _limit_text(self) -> str:
        """What a header must fit into, for messages."""
        if self._limit < self._file_size:
            return f"the {MAX_HEADER_BYTES} bytes that a header may have"
        return f"a file of {self._file_size} bytes"

    def _read_number(self, code: str) -> Any:
        return struct.unpack("<" + code, self._read_bytes(struct.calcsize(code)))[0]

    def _read_string(self, what: str, limit: int | None = None) -> str:
        length = self._read_number("Q")
        if limit is not None and length > limit:
            raise self._error(f"{what} is {length} bytes long, more than {limit}")
        if length > self._bytes_left:
            raise self._too_long(what, length)
        try:
            return self._read_bytes(length).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self._not_utf8(what, error) from error

    def _not_utf8(self, what: str, error: UnicodeDecodeError) -> GGUFError:
        return self._error(f"{what} is not UTF-8 text ({error.reason} at byte {error.start})")

    def _check_count(self, count: int, min_bytes: int, what: str) -> None:
        if count > self._bytes_left // min_bytes:
            raise self._error(f"the header states {count} {what}, more than fit in {self._limit_text}")

    # ---- the contents of a header ----------------------------------------------------------------

    def _read_version(self) -> int:
        magic = self._read_bytes(min(4, self._file_size))
        if not MAGIC.startswith(magic):
            raise self._error(f"not a GGUF file (it begins with {magic!r})", "give the path of a .gguf file")
        self._read_bytes(4 - len(magic))
        version = int(self._read_number("I"))
        if version in (2, 3):
            return version
        if version & 0xFFFF == 0:
            raise UnsupportedModel(
                f"{self._path}: a big-endian GGUF file", "convert the checkpoint again on this machine"
            )
        raise UnsupportedModel(
            f"{self._path}: GGUF version {version} is not supported", "versions 2 and 3 are"
        )

    def _read_metadata(self, count: int) -> dict[str, TypedValue]:
        metadata: dict[str, TypedValue] = {}
        for _ in range(count):
            key = self._read_string("a metadata key", limit=65535)
            if not key:
                raise self._error("a metadata key is empty")
            if key in metadata:
                raise self._error(f"the metadata key {_shorten_key(key)} is there twice")
            metadata[key] = self._read_value(key)
        return metadata

    def _read_value(self, key: str) -> TypedValue:
        number = self._read_number("I")
        if number == STRING_TYPE:
            return TypedValue("str", self._read_string(f"the value of {_shorten_key(key)}"))
        if number == ARRAY_TYPE:
            return self._read_array(key)
        if number not in SCALAR_TYPES:
            raise self._error(f"metadata key {_shorten_key(key)} has the unknown value type {number}")
        kind, code = SCALAR_TYPES[number]
        return TypedValue(kind, self._read_number(code))

    def _read_array(self, key: str) -> TypedValue:
        number, count = self._read_number("I"), self._read_number("Q")
        if number == STRING_TYPE:
            self._check_count(count, 8, f"strings in {_shorten_key(key)}")
            return TypedValue("str", self._read_strings(key, count), is_array=True)
        if number not in SCALAR_TYPES:
            nested = "nested arrays" if number == ARRAY_TYPE else f"the unknown type {number}"
            raise self._error(f"metadata key {_shorten_key(key)} is an array of {nested}")
        kind, code = SCALAR_TYPES[number]
        width = struct.calcsize(code)
        self._check_count(count, width, f"elements in {_shorten_key(key)}")
        return TypedValue(kind, _unpack_numbers(self._read_bytes(count * width), code), is_array=True)

    def _read_strings(self, key: str, count: int) -> tuple[str, ...]:
        """Read strings. A vocabulary and its merges are most of a header, so this loop only calls read."""
        read, length_of, strings = self._stream.read, _LENGTH.unpack, []
        try:
            for index in range(count):
                if self._position + 8 > self._limit:
                    raise self._too_short()
                length = length_of(read(8))[0]
                self._position += 8 + length
                if self._position > self._limit:
                    self._position -= length
                    raise self._too_long(f"element {index} of {_shorten_key(key)}", length)
                strings.append(read(length).decode())
        except UnicodeDecodeError as error:
            raise self._not_utf8(f"element {len(strings)} of {_shorten_key(key)}", error) from error
        return tuple(strings)

    def _read_tensor_entry(self) -> _TensorEntry:
        name = self._read_string("a tensor name", limit=MAX_NAME_BYTES)
        if not name:
            raise self._error("a tensor has no name")
        dimensions = self._read_number("I")
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            raise self._error(f"tensor {name} has {dimensions} dimensions")
        shape = tuple(struct.unpack(f"<{dimensions}Q", self._read_bytes(8 * dimensions)))[::-1]
        if min(shape) < 1 or math.prod(shape) > 2**60:
            raise self._error(f"tensor {name} has the invalid shape {shape}")
        number = self._read_number("I")
        try:
            kind = TensorType(number)
        except ValueError:
            raise self._error(
                f"tensor {name} has the unknown type {number}", "a newer pigguf may read it"
            ) from None
        if shape[-1] % block_elements(kind):
            raise self._error(f"tensor {name} has rows of {shape[-1]} elements, not whole {kind.name} blocks")
        return name, shape, kind, self._read_number("Q")

    def _locate_tensors(
        self, entries: list[_TensorEntry], data_offset: int, alignment: int
    ) -> dict[str, GGUFTensor]:
        """Check that tensors follow each other, padded to the alignment and within the file."""
        tensors: dict[str, GGUFTensor] = {}
        expected = 0
        for name, shape, kind, offset in entries:
            if name in tensors:
                raise self._error(f"tensor {name} is there twice")
            if offset != expected:
                raise self._error(f"tensor {name} has the offset {offset}, not {expected}")
            nbytes = tensor_bytes(kind, shape)
            end = data_offset + offset + nbytes
            if end > self._file_size:
                raise self._error(
                    f"the file is {self._file_size} bytes long, but tensor {name} ends at byte {end}",
                    _TRUNCATED,
                )
            tensors[name] = GGUFTensor(name, shape, kind, data_offset + offset, nbytes)
            expected += padded_size(nbytes, alignment)
        return tensors


def _unpack_numbers(data: bytes, code: str) -> tuple[Any, ...]:
    """Unpack the numbers of an array. Equal narrow ones share one object.

    A Python int takes 32 bytes, many times the one or two that it was read from.
    """
    if code not in "bHh":  # Python itself shares small ints and bools
        return struct.unpack(f"<{len(data) // struct.calcsize(code)}{code}", data)
    seen: dict[int, int] = {}
    return tuple(seen.setdefault(number, number) for (number,) in struct.iter_unpack("<" + code, data))


def _shorten_key(key: str) -> str:
    """Return a key for a message; in a damaged file it may be long."""
    return key if len(key) <= 100 and key.isprintable() else repr(key[:100])
