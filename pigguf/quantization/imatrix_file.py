"""Importance matrices: how much each column of a weight matrix matters, as files and as values.

A column matters as much as the input it is multiplied with is large: an importance is the mean square of
that input over a text. Files are llama-imatrix's, both the GGUF kind (sums and counts, read and written)
and the older .dat (read). Upstream: llama.cpp tools/imatrix/imatrix.cpp (save_imatrix),
common/imatrix-loader.cpp and tools/quantize/quantize.cpp (load_imatrix).

Left out: how the sums come about (inference/engine/activation_stats.py), and which types need them (recipes.py).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from pigguf.common.file_io import read_error
from pigguf.common.lazy_tensor import Array, LazyTensor
from pigguf.errors import GGUFError, PigError, UsageError
from pigguf.gguf_io import (
    DEFAULT_ALIGNMENT,
    GGUFFile,
    PlannedTensor,
    TensorData,
    TensorType,
    header_bytes,
    read_header,
)
from pigguf.gguf_io.metadata import Typed, array, elements, get, string, u32

_SUMS, _COUNTS = ".in_sum2", ".counts"
_DATASETS, _CHUNKS, _CHUNK_SIZE = "imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size"

# A square beyond this is of no input that an engine computes with; kernels abort the process at 1e25.
_LARGEST = 1e12

_MAKE_ANEW = "make the matrix again with `pigguf imatrix`"
_OF_THIS_MODEL = "make the matrix of this very model with `pigguf imatrix`"


@dataclass(frozen=True)
class Sums:
    """What was measured of one tensor's inputs.

    Attributes:
        squares: float64 (matrices, columns), sums of squares; more than one matrix where there are experts.
        counts: int64, how many rows went into each matrix's sums; a single one where it is the same for all.
    """

    squares: Array
    counts: Array


@dataclass(frozen=True)
class ImportanceMatrix:
    """What a file says of a model's columns.

    Attributes:
        path: the file.
        weights: float32 means of squares by tensor; of experts, one matrix's after another's.
        datasets: names of the texts that it was computed on.
        chunks: how many pieces of text it was computed on; 0 where the file does not say.
    """

    path: Path
    weights: Mapping[str, Array]
    datasets: tuple[str, ...]
    chunks: int

    def of(self, tensor: LazyTensor) -> Array | None:
        """float32 (matrices, columns) for a tensor, or None where the file has no entry for it."""
        weights = self.weights.get(tensor.name)
        return None if weights is None else weights.reshape(-1, tensor.shape[-1])

    def metadata(self) -> dict[str, Typed]:
        """The keys that tell of it in a file quantized with it."""
        keys = {"quantize.imatrix.file": string(str(self.path))}
        if self.datasets:
            keys["quantize.imatrix.dataset"] = string(self.datasets[0])
        keys["quantize.imatrix.entries_count"] = u32(len(self.weights))
        if self.chunks > 0:
            keys["quantize.imatrix.chunks_count"] = u32(self.chunks)
        return keys

    def refuse_misfit(self, tensors: Iterable[LazyTensor]) -> None:
        """
        Raises:
            UsageError: it speaks of a tensor that the model does not have, or has in another shape.
        """
        shapes = {tensor.name: tensor.shape for tensor in tensors}
        for name, weights in self.weights.items():
            if len(shapes.get(name, ())) < 2:
                raise UsageError(
                    f"{self.path} is the importance matrix of another model: it has {name}", _OF_THIS_MODEL
                )
            shape = shapes[name]
            matrices, columns = (shape[0] if len(shape) == 3 else 1), shape[-1]
            if len(weights) != matrices * columns:
                of_experts = f"{matrices} x " if matrices > 1 else ""
                raise UsageError(
                    f"{self.path} has {len(weights):,} values for {name}, which has "
                    f"{of_experts}{columns:,} columns",
                    _OF_THIS_MODEL,
                )


# ---- reading -------------------------------------------------------------------------------------


def read_imatrix(path: str | os.PathLike[str]) -> ImportanceMatrix:
    """Read an importance matrix of either kind.

    Raises:
        ReadError: the system refuses to read it.
        GGUFError: it is missing, damaged, no importance matrix, or holds values that cannot be means of
            squares (not finite, negative, absurdly large), or nothing but zeros for a tensor.
    """
    path = Path(path)
    try:
        with path.open("rb") as stream:
            if stream.read(4) != b"GGUF":
                stream.seek(0)
                return _checked(_Legacy(path, stream).read())
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise GGUFError(f"{path}: {error.strerror}", "give the path of an importance matrix") from error
    except OSError as error:
        raise read_error(path, error) from error
    return _checked(_read_gguf(read_header(path)))


def _checked(matrix: ImportanceMatrix) -> ImportanceMatrix:
    for name, weights in matrix.weights.items():
        bad = np.flatnonzero(~((weights >= 0) & (weights <= _LARGEST)))
        if bad.size:
            raise GGUFError(
                f"{matrix.path}: value {bad[0]} of {name} is {weights[bad[0]]:g}, not a mean of squares",
                _MAKE_ANEW,
            )
        if not weights.any():  # kernels would make zeros of its weights
            raise GGUFError(f"{matrix.path}: every value of {name} is 0", _MAKE_ANEW)
    return matrix


def _read_gguf(file: GGUFFile) -> ImportanceMatrix:
    names = [name.removesuffix(_SUMS) for name in file.tensors if name.endswith(_SUMS)]
    absent = [key for key in (_DATASETS, _CHUNKS, _CHUNK_SIZE) if key not in file.metadata]
    if not names or absent:
        lacks = absent[0] if absent else f"any tensor NAME{_SUMS}"
        raise GGUFError(
            f"{file.path} is no importance matrix: it lacks {lacks}",
            "give a file that `pigguf imatrix` or llama-imatrix made",
        )
    with TensorData(file) as data:
        weights = {name: _means(file, data, name) for name in names}
    try:
        datasets = elements(file.metadata, _DATASETS) or ()
        chunks = get(file.metadata, _CHUNKS, int, 0) or 0
    except GGUFError as error:
        raise GGUFError(f"{file.path}: {error.message}", _MAKE_ANEW) from None
    return ImportanceMatrix(file.path, weights, tuple(map(str, datasets)), chunks)


def _means(file: GGUFFile, data: TensorData, name: str) -> Array:
    """Sums by counts, in single precision as upstream; 1 where an expert was never asked."""
    sums, counts = _floats(file, data, name + _SUMS), np.rint(_floats(file, data, name + _COUNTS))
    if not np.isfinite(counts).all() or len(sums) % len(counts):
        raise GGUFError(
            f"{file.path}: {name} has {len(sums):,} sums and {len(counts):,} counts, which do not fit",
            _MAKE_ANEW,
        )
    table, divisors = sums.reshape(len(counts), -1), counts[:, None]
    ones = np.ones_like(table)
    return np.divide(table, divisors, out=ones, where=np.broadcast_to(divisors > 0, table.shape)).reshape(-1)


def _floats(file: GGUFFile, data: TensorData, name: str) -> Array:
    tensor = file.tensors.get(name)
    if tensor is None or tensor.type is not TensorType.F32:
        what = "is missing" if tensor is None else f"is {tensor.type.name}, not F32"
        raise GGUFError(f"{file.path}: {name} {what}", _MAKE_ANEW)
    return data.rows(tensor, 0, tensor.rows).view(np.float32).reshape(-1)


class _Legacy:
    """Reads the .dat of older llama-imatrix: entries, then the number of chunks and the text's name."""

    def __init__(self, path: Path, stream: BinaryIO) -> None:
        self.path = path
        self.stream = stream
        self.size = os.fstat(stream.fileno()).st_size

    def read(self) -> ImportanceMatrix:
        count = self.number("the number of entries")
        if count < 1:
            raise self.fail(f"the number of entries is {count}")
        weights = dict(self.entry() for _ in range(count))
        chunks, dataset = 0, ""
        if self.stream.tell() < self.size:  # older files end here
            chunks = self.number("the number of chunks")
            dataset = self.text("the name of the text")
        return ImportanceMatrix(self.path, weights, (dataset,) if dataset else (), max(0, chunks))

    def entry(self) -> tuple[str, Array]:
        """A name, and means of squares; the file holds them times the number of calls."""
        name = self.text("a tensor's name")
        calls, values = self.number(f"the calls of {name}"), self.number(f"the values of {name}")
        if values < 1:
            raise self.fail(f"{name} has {values} values")
        sums = np.frombuffer(self.take(4 * values, f"the values of {name}"), "<f4")
        return name, sums / np.float32(calls) if calls > 0 else sums.copy()

    def number(self, what: str) -> int:
        return int(struct.unpack("<i", self.take(4, what))[0])

    def text(self, what: str) -> str:
        length = self.number(f"the length of {what}")
        try:
            return self.take(length, what).decode("utf-8")
        except UnicodeDecodeError:
            raise self.fail(f"{what} is not UTF-8 text") from None

    def take(self, count: int, what: str) -> bytes:
        if not 0 <= count <= self.size - self.stream.tell():
            raise self.fail(f"it ends inside {what}")
        return self.stream.read(count)

    def fail(self, what: str) -> PigError:
        return GGUFError(
            f"{self.path} is no importance matrix, or a damaged one: {what}",
            "give a file that `pigguf imatrix` or llama-imatrix made",
        )


# ---- writing -------------------------------------------------------------------------------------


def imatrix_bytes(sums: Mapping[str, Sums], datasets: Sequence[str], chunks: int, chunk_size: int) -> bytes:
    """An importance matrix as llama-imatrix writes it, all of the file.

    Args:
        sums: by the name of the weight tensor.
        datasets: names of the texts.
        chunks: pieces of text that went in, each of `chunk_size` tokens.
    """
    metadata = {
        "general.type": string("imatrix"),
        _DATASETS: array("str", tuple(datasets)),
        _CHUNKS: u32(chunks),
        _CHUNK_SIZE: u32(chunk_size),
    }
    tensors = [
        planned
        for name in sorted(sums)
        for planned in (
            _planned(name + _SUMS, sums[name].squares),
            _planned(name + _COUNTS, sums[name].counts.reshape(-1, 1)),
        )
    ]
    pieces = [header_bytes(metadata, tensors)]
    for tensor in tensors:
        pieces += [tensor.encode(0, tensor.rows).tobytes(), bytes(-tensor.nbytes % DEFAULT_ALIGNMENT)]
    return b"".join(pieces)


def _planned(name: str, table: Array) -> PlannedTensor:
    """A small tensor in single precision; ggml knows no axes of one row."""
    values = np.ascontiguousarray(table, np.float32)
    shape = values.shape if len(values) > 1 else values.shape[1:]
    return PlannedTensor(name, shape, TensorType.F32, [(0, shape[0])], lambda start, stop: values)
