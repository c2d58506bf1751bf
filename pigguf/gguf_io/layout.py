"""What a GGUF file is made of: value and tensor types, limits, and a header as a value.

Format: ggml docs/gguf.md; the limits are those of llama.cpp ggml/src/gguf.cpp and ggml.h, where no
other source is named.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import gguf

from pigguf.errors import GGUFError, PigError
from pigguf.gguf_io.metadata import Kind, Metadata, Typed, get

TensorType = gguf.GGMLQuantizationType

MAGIC = b"GGUF"
VERSION = 3  # what we write; 2 differs only in what big-endian machines write
MAX_DIMENSIONS = 4  # GGML_MAX_DIMS
MAX_NAME_BYTES = 63  # GGML_MAX_NAME - 1
DEFAULT_ALIGNMENT = 32  # GGUF_DEFAULT_ALIGNMENT
MAX_ALIGNMENT = 1 << 24  # ours: larger than any page of memory

# GGUF value types: number -> (our kind, struct code); strings and arrays are read by hand.
SCALARS: dict[int, tuple[Kind, str]] = {
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
STRING, ARRAY = 8, 9


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


def tensor_bytes(kind: TensorType, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor whose shape is rows first.

    Raises:
        GGUFError: its rows are not whole blocks.
    """
    return row_bytes(kind, shape[-1]) * math.prod(shape[:-1])


def alignment_of(metadata: Metadata) -> int:
    """To how many bytes the data of a file with these keys is aligned.

    Raises:
        GGUFError: general.alignment is no u32, no power of two, or absurdly large.
    """
    typed = metadata.get("general.alignment", Typed("u32", DEFAULT_ALIGNMENT))
    if typed.kind != "u32" or typed.is_array:
        raise GGUFError(f"general.alignment is {typed.kind}{'[]' if typed.is_array else ''}, not u32")
    alignment = int(typed.value)
    if alignment <= 0 or alignment & (alignment - 1):
        raise GGUFError(f"general.alignment is {alignment}, not a power of two")
    if alignment > MAX_ALIGNMENT:
        raise GGUFError(f"general.alignment is {alignment}, more than {MAX_ALIGNMENT}")
    return alignment


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Let what is refused of keys and values, which do not know their file, name it."""
    try:
        yield
    except PigError as error:
        if not error.message.startswith(str(path)):
            error.message = f"{path}: {error.message}"
            error.args = (error.message,)
        raise


def padded(nbytes: int, alignment: int) -> int:
    """The next multiple of the alignment."""
    return -(-nbytes // alignment) * alignment


@dataclass(frozen=True, slots=True)
class GGUFTensor:
    """Where a tensor lies. `shape` is rows first; `offset` counts from the start of its own file.

    `part` is the number, from 0, of the file that holds it: an index of GGUFFile.parts.
    """

    name: str
    shape: tuple[int, ...]
    type: TensorType
    offset: int
    nbytes: int
    part: int = 0

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def row_elements(self) -> int:
        return self.shape[-1]

    @property
    def rows(self) -> int:
        return self.elements // self.row_elements


@dataclass(frozen=True)
class GGUFFile:
    """The header of a GGUF, one file or several parts, whose every length has been checked.

    Attributes:
        path: the file, or the first part.
        version: of the format.
        metadata: every key in file order.
        tensors: every tensor in file order, all parts' one after another.
        data_offset: where the data of the file at `path` begins.
        size: bytes of all parts together.
        alignment: of the data, the least of all parts.
        parts: every file, in order; one where it is not split.
    """

    path: Path
    version: int
    metadata: dict[str, Typed]
    tensors: dict[str, GGUFTensor]
    data_offset: int
    size: int
    alignment: int
    parts: tuple[Path, ...]

    @property
    def architecture(self) -> str:
        """The value of general.architecture.

        Raises:
            GGUFError: the key is missing or not a string.
        """
        with named(self.path):
            value = get(self.metadata, "general.architecture", str)
        if value is None:
            raise GGUFError(
                f"{self.path}: general.architecture is missing", "the file does not say what model it holds"
            )
        return value
