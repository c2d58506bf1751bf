"""The layout of GGUF files: value and tensor types, limits, and a header as a value.

Format: ggml docs/gguf.md. The limits are those of llama.cpp ggml/src/gguf.cpp and ggml.h, unless another
source is named.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import gguf

from pigguf.errors import GGUFError, PigError
from pigguf.gguf_io.metadata import Metadata, TypedValue, ValueType, get_value

TensorType = gguf.GGMLQuantizationType

MAGIC = b"GGUF"
VERSION = 3  # what we write; version 2 differs only on big-endian machines
MAX_DIMENSIONS = 4  # GGML_MAX_DIMS
MAX_NAME_BYTES = 63  # GGML_MAX_NAME - 1
DEFAULT_ALIGNMENT = 32  # GGUF_DEFAULT_ALIGNMENT
MAX_ALIGNMENT = 1 << 24  # our own limit: larger than any memory page

# GGUF value types: number -> (our name, struct code); strings and arrays are special.
SCALAR_TYPES: dict[int, tuple[ValueType, str]] = {
    0: ("u8", "B"),
    1: ("i8", "b"),
    2: ("u16", "H"),
    3: ("i16", "h"),
    4: ("u32", "I"),
    5: ("i32", "i"),
    6: ("f32", "f"),
    7: ("bool", "?"),
    10: ("u64", "Q"),
    11: ("i64", "q"),
    12: ("f64", "d"),
}
STRING_TYPE, ARRAY_TYPE = 8, 9


def block_elements(tensor_type: TensorType) -> int:
    """Return the number of elements in a block of the type (1 for float types)."""
    return int(gguf.GGML_QUANT_SIZES[tensor_type][0])


def row_bytes(tensor_type: TensorType, elements: int) -> int:
    """Return the bytes of a row of `elements` values.

    Raises:
        GGUFError: the row is not a whole number of blocks.
    """
    per_block, block_size = gguf.GGML_QUANT_SIZES[tensor_type]
    if elements % per_block:
        raise GGUFError(
            f"a row of {elements} elements is not a whole number of {tensor_type.name} blocks of {per_block}"
        )
    return int(elements // per_block * block_size)


def tensor_bytes(tensor_type: TensorType, shape: tuple[int, ...]) -> int:
    """Return the bytes of a tensor; the last axis of `shape` is a row.

    Raises:
        GGUFError: a row is not a whole number of blocks.
    """
    return row_bytes(tensor_type, shape[-1]) * math.prod(shape[:-1])


def get_alignment(metadata: Metadata) -> int:
    """Return the alignment of a file's data in bytes, from its keys.

    Raises:
        GGUFError: general.alignment is not a u32, not a power of two, or absurdly large.
    """
    typed = metadata.get("general.alignment", TypedValue("u32", DEFAULT_ALIGNMENT))
    if typed.type != "u32" or typed.is_array:
        raise GGUFError(f"general.alignment is {typed.type}{'[]' if typed.is_array else ''}, not u32")
    alignment = int(typed.value)
    if alignment <= 0 or alignment & (alignment - 1):
        raise GGUFError(f"general.alignment is {alignment}, not a power of two")
    if alignment > MAX_ALIGNMENT:
        raise GGUFError(f"general.alignment is {alignment}, more than {MAX_ALIGNMENT}")
    return alignment


@contextmanager
def errors_name_file(path: Path) -> Iterator[None]:
    """Add the path to the message of errors about keys and values, which do not know their file."""
    try:
        yield
    except PigError as error:
        if not error.message.startswith(str(path)):
            error.message = f"{path}: {error.message}"
            error.args = (error.message,)
        raise


def padded_size(nbytes: int, alignment: int) -> int:
    """Return `nbytes`, rounded up to a multiple of the alignment."""
    return -(-nbytes // alignment) * alignment


@dataclass(frozen=True, slots=True)
class GGUFTensor:
    """A tensor of a GGUF file.

    Attributes:
        name: its name.
        shape: its shape, rows first as in numpy: the reverse of ggml's ne.
        type: its type.
        offset: the offset of its data from the start of its own file.
        nbytes: the size of its data.
        shard: the index of its file in GGUFFile.shards.
    """

    name: str
    shape: tuple[int, ...]
    type: TensorType
    offset: int
    nbytes: int
    shard: int = 0

    @property
    def elements(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def row_elements(self) -> int:
        """The number of elements of a row."""
        return self.shape[-1]

    @property
    def rows(self) -> int:
        """The number of rows."""
        return self.elements // self.row_elements


@dataclass(frozen=True)
class GGUFFile:
    """The checked header of a GGUF: of one file, or of all shards of a split model.

    Attributes:
        path: the file, or the first shard.
        version: the version of the format.
        metadata: every key in file order.
        tensors: every tensor in file order, shard after shard.
        data_offset: where the data of the file at `path` starts.
        size: the bytes of all shards together.
        alignment: the alignment of the data; the smallest of all shards.
        shards: every file, in order; one if the model is not split.
    """

    path: Path
    version: int
    metadata: dict[str, TypedValue]
    tensors: dict[str, GGUFTensor]
    data_offset: int
    size: int
    alignment: int
    shards: tuple[Path, ...]

    @property
    def architecture(self) -> str:
        """The value of general.architecture.

        Raises:
            GGUFError: the key is missing or not a string.
        """
        with errors_name_file(self.path):
            value = get_value(self.metadata, "general.architecture", str)
        if value is None:
            raise GGUFError(
                f"{self.path}: general.architecture is missing", "the file does not state which model it is"
            )
        return value
