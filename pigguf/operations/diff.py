"""diff: two GGUF files, key by key and tensor by tensor.

Keys and tensors are matched by name, so that their order and how the files are cut make no difference.
Tensors of one type are compared byte by byte; where bytes differ, or the types do, their values are, as
ggml's kernels decode them (quantization/ggml_kernels.py). Everything is read in pieces, side by side: memory does
not grow with the files. Left out: names that were changed, and tensors whose shapes differ beyond saying so.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pigguf.common.lazy_tensor import Array
from pigguf.errors import InvalidTensor
from pigguf.gguf_io import (
    GGUFFile,
    GGUFTensor,
    TensorData,
    TensorType,
    block_elements,
    read_header,
)
from pigguf.gguf_io.metadata import Metadata, Typed
from pigguf.progress import SILENT, Progress, stage
from pigguf.quantization.ggml_kernels import decode

_PIECE_ELEMENTS = 1 << 18  # compared at a time; a multiple of every block
# Types that ggml keeps as plain numbers and does not decode
_NUMBERS: dict[TensorType, np.dtype[Any]] = {
    TensorType.F64: np.dtype("<f8"),
    TensorType.I8: np.dtype("i1"),
    TensorType.I16: np.dtype("<i2"),
    TensorType.I32: np.dtype("<i4"),
    TensorType.I64: np.dtype("<i8"),
}


@dataclass(frozen=True)
class KeyDifference:
    """A key that is in one file alone (the other is None), or holds another type or value.

    `first` is where two arrays begin to differ; where one is the other's beginning, its length.
    """

    key: str
    a: Typed | None
    b: Typed | None
    first_difference: int | None = None


@dataclass(frozen=True)
class TensorDifference:
    """A tensor that is in one file alone (the other is None), or is another.

    Attributes:
        name: of the tensor.
        a, b: its places in the files, with shape and type.
        bytes, rows: how many differ, where shape and type are the same.
        max_abs: the largest difference of two values; nan where values that differ are no numbers.
        rms_relative: the root of the mean square of the differences, by that of A's values; inf where
            these are all 0. None, as max_abs, where no values were compared.
    """

    name: str
    a: GGUFTensor | None
    b: GGUFTensor | None
    differing_bytes: int | None = None
    differing_rows: int | None = None
    max_abs: float | None = None
    rms_relative: float | None = None


@dataclass(frozen=True)
class DiffResult:
    """How two files differ.

    Attributes:
        a, b: the files.
        metadata: keys that differ, A's in file order, then B's own.
        tensors: tensors that differ, in the same order.
        same_keys, same_tensors: how many do not.
        compared_data: whether the tensors' bytes were looked at.
    """

    a: Path
    b: Path
    metadata: tuple[KeyDifference, ...]
    tensors: tuple[TensorDifference, ...]
    same_keys: int
    same_tensors: int
    compared_data: bool

    @property
    def same(self) -> bool:
        """Whether nothing differs, as far as it was looked at."""
        return not self.metadata and not self.tensors


def diff(
    a: str | os.PathLike[str],
    b: str | os.PathLike[str],
    *,
    data: bool = True,
    progress: Progress = SILENT,
) -> DiffResult:
    """Compare two GGUF files; any part stands for a split model.

    Args:
        a, b: the files.
        data: compare the tensors' data too, not the headers alone.
        progress: told of the bytes of A that are compared.

    Raises:
        ReadError: the system refuses to read a file, or it became shorter.
        GGUFError: a file is damaged.
        UnsupportedModel: a sort of GGUF that is not read.
        BackendUnavailable: values are to be decoded, and the engine's libraries cannot be loaded.
    """
    files = read_header(a), read_header(b)
    keys = tuple(_key_differences(files[0].metadata, files[1].metadata))
    tensors = tuple(_tensor_differences(*files, data, progress))
    return DiffResult(
        a=files[0].path,
        b=files[1].path,
        metadata=keys,
        tensors=tensors,
        same_keys=len(files[0].metadata.keys() | files[1].metadata.keys()) - len(keys),
        same_tensors=len(files[0].tensors.keys() | files[1].tensors.keys()) - len(tensors),
        compared_data=data,
    )


# ---- keys --------------------------------------------------------------------------------------------


def _key_differences(a: Metadata, b: Metadata) -> Iterator[KeyDifference]:
    for key in dict.fromkeys((*a, *b)):
        one, other = a.get(key), b.get(key)
        if one is None or other is None or one[::2] != other[::2]:  # another type, or array or not
            yield KeyDifference(key, one, other)
        elif one.is_array:
            first = _first_difference(one.value, other.value)
            if first is not None:
                yield KeyDifference(key, one, other, first)
        elif not _equal(one.value, other.value):
            yield KeyDifference(key, one, other)


def _first_difference(a: tuple[object, ...], b: tuple[object, ...]) -> int | None:
    if a == b:
        return None
    shorter = min(len(a), len(b))
    differing = (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if not _equal(x, y))
    return next(differing, None if len(a) == len(b) else shorter)


def _equal(x: object, y: object) -> bool:
    """Equal, or both not a number."""
    return x == y or (x != x and y != y)


# ---- tensors ---------------------------------------------------------------------------------------------


def _tensor_differences(
    a: GGUFFile, b: GGUFFile, data: bool, progress: Progress
) -> Iterator[TensorDifference]:
    pairs = [
        (name, a.tensors.get(name), b.tensors.get(name)) for name in dict.fromkeys((*a.tensors, *b.tensors))
    ]
    if not data:
        yield from (TensorDifference(*pair) for pair in pairs if not _alike(*pair[1:]))
        return
    total = sum(one.nbytes for _, one, other in pairs if one and other and one.shape == other.shape)
    with TensorData(a) as data_a, TensorData(b) as data_b, stage(progress, "comparing", total, "bytes"):
        compare = _Comparison(data_a, data_b, progress)
        for name, one, other in pairs:
            if one is None or other is None or one.shape != other.shape:
                yield TensorDifference(name, one, other)
            elif one.type != other.type:
                yield TensorDifference(name, one, other, None, None, *compare.values(one, other))
                progress.advance(one.nbytes)
            else:
                bytes_, rows = compare.bytes(one, other)
                if bytes_:
                    yield TensorDifference(name, one, other, bytes_, rows, *compare.values(one, other))


def _alike(a: GGUFTensor | None, b: GGUFTensor | None) -> bool:
    return a is not None and b is not None and (a.shape, a.type) == (b.shape, b.type)


class _Comparison:
    """Two files' data, side by side, a piece at a time."""

    def __init__(self, a: TensorData, b: TensorData, progress: Progress) -> None:
        self._a, self._b = a, b
        self._progress = progress

    def bytes(self, one: GGUFTensor, other: GGUFTensor) -> tuple[int, int]:
        """How many bytes, and how many rows, differ in two tensors of one shape and type."""
        block = block_elements(one.type)
        differing = rows = 0
        last = -1  # the row of the last difference, which may go on in the next piece
        for start, stop in _pieces(one):
            raw, beside = self._raw(self._a, one, start, stop), self._raw(self._b, other, start, stop)
            unequal = raw != beside
            if unequal.any():
                differing += int(np.count_nonzero(unequal))
                blocks = np.flatnonzero(unequal.any(axis=1)) + start // block
                found = np.unique(blocks * block // one.row_elements)
                rows += len(found) - int(found[0] == last)
                last = int(found[-1])
            self._progress.advance(raw.nbytes)
        return differing, rows

    def values(self, one: GGUFTensor, other: GGUFTensor) -> tuple[float | None, float | None]:
        """The largest absolute difference, and the relative one in the root of the mean square."""
        largest = squares = reference = 0.0
        for start, stop in _pieces(one):
            values = _values(self._raw(self._a, one, start, stop), one.type)
            beside = _values(self._raw(self._b, other, start, stop), other.type)
            if values is None or beside is None:
                return None, None
            equal = (values == beside) | (np.isnan(values) & np.isnan(beside))  # infinities among them
            with np.errstate(invalid="ignore", over="ignore"):
                difference = np.where(equal, 0.0, values - beside)
                largest = float(np.maximum(largest, np.abs(difference).max()))  # nan stays
                squares += float(np.square(difference).sum())
                reference += float(np.square(values).sum())
        if reference:
            return largest, math.sqrt(squares / reference)
        return largest, math.inf if squares else 0.0

    def _raw(self, data: TensorData, tensor: GGUFTensor, start: int, stop: int) -> Array:
        """Elements [start, stop) as bytes, a row a block."""
        block = block_elements(tensor.type)
        by_block = replace(tensor, shape=(tensor.elements // block, block))
        return data.rows(by_block, start // block, stop // block)


def _pieces(tensor: GGUFTensor) -> Iterator[tuple[int, int]]:
    for start in range(0, tensor.elements, _PIECE_ELEMENTS):
        yield start, min(start + _PIECE_ELEMENTS, tensor.elements)


def _values(raw: Array, kind: TensorType) -> Array | None:
    """Blocks as float64, flat; None where the type stands for no values."""
    if kind in _NUMBERS:
        numbers: Array = raw.reshape(-1).view(_NUMBERS[kind]).astype(np.float64)
        return numbers
    try:
        return decode(raw, kind, block_elements(kind)).reshape(-1).astype(np.float64)
    except InvalidTensor:
        return None
