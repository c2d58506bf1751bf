"""Diff: compare two GGUF files, key by key and tensor by tensor.

Keys and tensors are matched by name, so their order and how the files are split do not matter. Tensors of
the same type are compared byte by byte; if bytes or types differ, so are their values as ggml's kernels
decode them (quantization/ggml_kernels.py). Both files are read in slabs side by side, so memory does not
grow with them. Not here: renamed keys or tensors, and the values of tensors whose shapes differ.
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
from pigguf.gguf_io.metadata import Metadata, TypedValue
from pigguf.progress import SILENT, Progress, stage
from pigguf.quantization.ggml_kernels import decode

_SLAB_ELEMENTS = 1 << 18  # compared at a time; a multiple of every block size
# Types that store plain numbers, for which ggml has no decoding kernels.
_PLAIN_DTYPES: dict[TensorType, np.dtype[Any]] = {
    TensorType.F64: np.dtype("<f8"),
    TensorType.I8: np.dtype("i1"),
    TensorType.I16: np.dtype("<i2"),
    TensorType.I32: np.dtype("<i4"),
    TensorType.I64: np.dtype("<i8"),
}


@dataclass(frozen=True)
class KeyDifference:
    """A key that only one file has, or that has another type or value.

    Attributes:
        key: The key.
        a, b: Its values in the files; None if it is absent.
        first_difference: The index at which two arrays first differ; the length of the shorter one if the
            longer begins with it. None for other values.
    """

    key: str
    a: TypedValue | None
    b: TypedValue | None
    first_difference: int | None = None


@dataclass(frozen=True)
class TensorDifference:
    """A tensor that only one file has, or that differs.

    Attributes:
        name: The tensor's name.
        a, b: The tensor in the files, with shape and type; None if it is absent.
        differing_bytes, differing_rows: How many differ, if shape and type are the same.
        max_abs: The largest difference of two values; nan if values that differ include nan. None if no
            values were compared.
        rms_relative: The root mean square of the differences divided by that of A's values; inf if these are
            all 0. None as for max_abs.
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
        a, b: The files.
        metadata: The keys that differ: those of A in order, then those only B has.
        tensors: The tensors that differ, in the same order.
        same_keys, same_tensors: How many do not differ.
        compared_data: Whether the tensors' data was compared.
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
        """Whether nothing differs in what was compared."""
        return not self.metadata and not self.tensors


def diff(
    a: str | os.PathLike[str],
    b: str | os.PathLike[str],
    *,
    data: bool = True,
    progress: Progress = SILENT,
) -> DiffResult:
    """Compare two GGUF files.

    Args:
        a, b: The files; of a split model any file stands for all.
        data: Compare the tensors' data too, not only the headers.
        progress: Reports the bytes of A that are compared.

    Raises:
        ReadError: The system refuses to read a file, or it became shorter.
        GGUFError: A file is damaged.
        UnsupportedModel: A kind of GGUF that cannot be read.
        BackendUnavailable: Values have to be decoded, and the engine's libraries cannot be loaded.
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
        if one is None or other is None or (one.type, one.is_array) != (other.type, other.is_array):
            yield KeyDifference(key, one, other)
        elif one.is_array:
            first = _first_difference(one.value, other.value)
            if first is not None:
                yield KeyDifference(key, one, other, first)
        elif not _is_equal(one.value, other.value):
            yield KeyDifference(key, one, other)


def _first_difference(a: tuple[object, ...], b: tuple[object, ...]) -> int | None:
    """Return the first index at which two arrays differ, or None if they are equal."""
    if a == b:
        return None
    differing = (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if not _is_equal(x, y))
    return next(differing, None if len(a) == len(b) else min(len(a), len(b)))


def _is_equal(x: object, y: object) -> bool:
    """Return whether two values are equal, or both NaN."""
    return x == y or (x != x and y != y)


# ---- tensors ---------------------------------------------------------------------------------------------


def _tensor_differences(
    a: GGUFFile, b: GGUFFile, data: bool, progress: Progress
) -> Iterator[TensorDifference]:
    pairs = [
        (name, a.tensors.get(name), b.tensors.get(name)) for name in dict.fromkeys((*a.tensors, *b.tensors))
    ]
    if not data:
        yield from (TensorDifference(*pair) for pair in pairs if not _has_same_header(*pair[1:]))
        return
    total = sum(one.nbytes for _, one, other in pairs if one and other and one.shape == other.shape)
    with TensorData(a) as data_a, TensorData(b) as data_b, stage(progress, "comparing", total, "bytes"):
        comparer = _TensorComparer(data_a, data_b, progress)
        for name, one, other in pairs:
            if one is None or other is None or one.shape != other.shape:
                yield TensorDifference(name, one, other)
            elif one.type != other.type:
                yield TensorDifference(name, one, other, None, None, *comparer.compare_values(one, other))
                progress.advance(one.nbytes)
            else:
                n_bytes, n_rows = comparer.count_differences(one, other)
                if n_bytes:
                    errors = comparer.compare_values(one, other)
                    yield TensorDifference(name, one, other, n_bytes, n_rows, *errors)


def _has_same_header(a: GGUFTensor | None, b: GGUFTensor | None) -> bool:
    return a is not None and b is not None and (a.shape, a.type) == (b.shape, b.type)


class _TensorComparer:
    """Compares tensors of two files, a slab at a time."""

    def __init__(self, a: TensorData, b: TensorData, progress: Progress) -> None:
        self._a, self._b = a, b
        self._progress = progress

    def count_differences(self, one: GGUFTensor, other: GGUFTensor) -> tuple[int, int]:
        """Return how many bytes, and how many rows, differ in two tensors of the same shape and type."""
        block = block_elements(one.type)
        n_bytes = n_rows = 0
        last_row = -1  # of the last difference, which may continue in the next slab
        for start, stop in _slabs(one):
            a = self._read_blocks(self._a, one, start, stop)
            b = self._read_blocks(self._b, other, start, stop)
            unequal = a != b
            if unequal.any():
                n_bytes += int(np.count_nonzero(unequal))
                blocks = np.flatnonzero(unequal.any(axis=1)) + start // block
                rows = np.unique(blocks * block // one.row_elements)
                n_rows += len(rows) - int(rows[0] == last_row)
                last_row = int(rows[-1])
            self._progress.advance(a.nbytes)
        return n_bytes, n_rows

    def compare_values(self, one: GGUFTensor, other: GGUFTensor) -> tuple[float | None, float | None]:
        """Return the largest absolute difference and the relative root mean square of the differences.

        Both are None if a type has no values.
        """
        largest = squares = reference = 0.0
        for start, stop in _slabs(one):
            a = _decode_blocks(self._read_blocks(self._a, one, start, stop), one.type)
            b = _decode_blocks(self._read_blocks(self._b, other, start, stop), other.type)
            if a is None or b is None:
                return None, None
            equal = (a == b) | (np.isnan(a) & np.isnan(b))  # equal infinities, whose difference is nan
            with np.errstate(invalid="ignore", over="ignore"):
                difference = np.where(equal, 0.0, a - b)
                largest = float(np.maximum(largest, np.abs(difference).max()))  # propagates nan
                squares += float(np.square(difference).sum())
                reference += float(np.square(a).sum())
        if reference:
            return largest, math.sqrt(squares / reference)
        return largest, math.inf if squares else 0.0

    def _read_blocks(self, data: TensorData, tensor: GGUFTensor, start: int, stop: int) -> Array:
        """Return elements [start, stop) as they are stored: (n_blocks, bytes per block), uint8."""
        block = block_elements(tensor.type)
        by_block = replace(tensor, shape=(tensor.elements // block, block))
        return data.rows(by_block, start // block, stop // block)


def _slabs(tensor: GGUFTensor) -> Iterator[tuple[int, int]]:
    """Yield the ranges [start, stop) of elements to compare at a time."""
    for start in range(0, tensor.elements, _SLAB_ELEMENTS):
        yield start, min(start + _SLAB_ELEMENTS, tensor.elements)


def _decode_blocks(raw: Array, kind: TensorType) -> Array | None:
    """Return blocks as values, flat float64, or None if the type has no values."""
    if kind in _PLAIN_DTYPES:
        numbers: Array = raw.reshape(-1).view(_PLAIN_DTYPES[kind]).astype(np.float64)
        return numbers
    try:
        return decode(raw, kind, block_elements(kind)).reshape(-1).astype(np.float64)
    except InvalidTensor:
        return None
