"""Importance matrices (imatrix): how much each column of a weight matrix matters, as files and in memory.

The importance of a column is the mean square of the input that it is multiplied with, over a text. Files are
llama-imatrix's: the GGUF format (sums and counts, read and written) and the older .dat (read only).
Upstream: llama.cpp tools/imatrix/imatrix.cpp (save_imatrix), common/imatrix-loader.cpp and
tools/quantize/quantize.cpp (load_imatrix).

Not here: how the sums are measured (inference/engine/activation_stats.py), and which types need an imatrix
(choose_tensor_types.py).
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
    read_header,
    serialize_header,
)
from pigguf.gguf_io.metadata import TypedValue, array, get_array, get_value, string, u32

_SUMS, _COUNTS = ".in_sum2", ".counts"
_DATASETS, _CHUNKS, _CHUNK_SIZE = "imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size"

# No engine computes with inputs whose square is larger; the kernels abort the process at 1e25.
_MAX_IMPORTANCE = 1e12

_RECOMPUTE = "compute the imatrix again with `pigguf imatrix`"
_OF_THIS_MODEL = "compute the imatrix of this model with `pigguf imatrix`"


@dataclass(frozen=True)
class ImatrixSums:
    """Sums of squares of the inputs of one weight tensor.

    Attributes:
        squares: (n_matrices, n_columns), float64: sums of squares; several matrices if there are experts.
        counts: (n_matrices,) or (1,), int64: how many rows each matrix's sums are of; one if equal for all.
    """

    squares: Array
    counts: Array


@dataclass(frozen=True)
class ImportanceMatrix:
    """The importance of every column of a model's weight matrices, as a file has it.

    Attributes:
        path: the file.
        weights: mean squares by tensor name, (n_matrices * n_columns,), float32.
        datasets: names of the texts it was computed on.
        chunks: how many chunks of text it was computed on; 0 if the file does not state it.
    """

    path: Path
    weights: Mapping[str, Array]
    datasets: tuple[str, ...]
    chunks: int

    def for_tensor(self, tensor: LazyTensor) -> Array | None:
        """Return the importances of a tensor, (n_matrices, n_columns), float32; None if it has no entry."""
        weights = self.weights.get(tensor.name)
        return None if weights is None else weights.reshape(-1, tensor.shape[-1])

    def metadata(self) -> dict[str, TypedValue]:
        """Return the GGUF keys of a file that was quantized with this imatrix."""
        keys = {"quantize.imatrix.file": string(str(self.path))}
        if self.datasets:
            keys["quantize.imatrix.dataset"] = string(self.datasets[0])
        keys["quantize.imatrix.entries_count"] = u32(len(self.weights))
        if self.chunks > 0:
            keys["quantize.imatrix.chunks_count"] = u32(self.chunks)
        return keys

    def check_fits(self, tensors: Iterable[LazyTensor]) -> None:
        """Check that the imatrix belongs to a model.

        Raises:
            UsageError: it has an entry for a tensor that the model does not have, or of another shape.
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
    """Read an importance matrix in either format.

    Raises:
        ReadError: the file cannot be read.
        GGUFError: it is missing, damaged, not an importance matrix, or has values that cannot be mean squares
            (not finite, negative, absurdly large), or only zeros for a tensor.
    """
    path = Path(path)
    try:
        with path.open("rb") as stream:
            if stream.read(4) != b"GGUF":
                stream.seek(0)
                return _checked(LegacyImatrixReader(path, stream).read())
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise GGUFError(f"{path}: {error.strerror}", "give the path of an importance matrix") from error
    except OSError as error:
        raise read_error(path, error) from error
    return _checked(_read_gguf(read_header(path)))


def _checked(matrix: ImportanceMatrix) -> ImportanceMatrix:
    """Return the imatrix, or raise GGUFError if its values cannot be mean squares."""
    for name, weights in matrix.weights.items():
        invalid = np.flatnonzero(~((weights >= 0) & (weights <= _MAX_IMPORTANCE)))
        if invalid.size:
            raise GGUFError(
                f"{matrix.path}: value {invalid[0]} of {name} is {weights[invalid[0]]:g}, not a mean square",
                _RECOMPUTE,
            )
        if not weights.any():  # the kernels would set its weights to zero
            raise GGUFError(f"{matrix.path}: every value of {name} is 0", _RECOMPUTE)
    return matrix


def _read_gguf(file: GGUFFile) -> ImportanceMatrix:
    names = [name.removesuffix(_SUMS) for name in file.tensors if name.endswith(_SUMS)]
    missing = [key for key in (_DATASETS, _CHUNKS, _CHUNK_SIZE) if key not in file.metadata]
    if not names or missing:
        lacks = missing[0] if missing else f"any tensor NAME{_SUMS}"
        raise GGUFError(
            f"{file.path} is not an importance matrix: it lacks {lacks}",
            "give a file that `pigguf imatrix` or llama-imatrix made",
        )
    with TensorData(file) as data:
        weights = {name: _means(file, data, name) for name in names}
    try:
        datasets = get_array(file.metadata, _DATASETS) or ()
        chunks = get_value(file.metadata, _CHUNKS, int, 0) or 0
    except GGUFError as error:
        raise GGUFError(f"{file.path}: {error.message}", _RECOMPUTE) from None
    return ImportanceMatrix(file.path, weights, tuple(map(str, datasets)), chunks)


def _means(file: GGUFFile, data: TensorData, name: str) -> Array:
    """Return sums divided by counts, in float32 as upstream; 1 for an expert that was never used."""
    sums, counts = _floats(file, data, name + _SUMS), np.rint(_floats(file, data, name + _COUNTS))
    if not np.isfinite(counts).all() or len(sums) % len(counts):
        raise GGUFError(
            f"{file.path}: {name} has {len(sums):,} sums and {len(counts):,} counts, which do not match",
            _RECOMPUTE,
        )
    table, column = sums.reshape(len(counts), -1), counts[:, None]
    ones = np.ones_like(table)
    return np.divide(table, column, out=ones, where=np.broadcast_to(column > 0, table.shape)).reshape(-1)


def _floats(file: GGUFFile, data: TensorData, name: str) -> Array:
    tensor = file.tensors.get(name)
    if tensor is None or tensor.type is not TensorType.F32:
        what = "is missing" if tensor is None else f"is {tensor.type.name}, not F32"
        raise GGUFError(f"{file.path}: {name} {what}", _RECOMPUTE)
    return data.rows(tensor, 0, tensor.rows).view(np.float32).reshape(-1)


class LegacyImatrixReader:
    """Reads the .dat format of older llama-imatrix: entries, the number of chunks, the text's name."""

    def __init__(self, path: Path, stream: BinaryIO) -> None:
        self._path = path
        self._stream = stream
        self._size = os.fstat(stream.fileno()).st_size

    def read(self) -> ImportanceMatrix:
        """Read the whole file."""
        count = self._read_int("the number of entries")
        if count < 1:
            raise self._error(f"the number of entries is {count}")
        weights = dict(self._read_entry() for _ in range(count))
        chunks, dataset = 0, ""
        if self._stream.tell() < self._size:  # older files end here
            chunks = self._read_int("the number of chunks")
            dataset = self._read_text("the name of the text")
        return ImportanceMatrix(self._path, weights, (dataset,) if dataset else (), max(0, chunks))

    def _read_entry(self) -> tuple[str, Array]:
        """Read a name and mean squares; the file has them multiplied by the number of calls."""
        name = self._read_text("a tensor's name")
        calls, values = self._read_int(f"the calls of {name}"), self._read_int(f"the values of {name}")
        if values < 1:
            raise self._error(f"{name} has {values} values")
        sums = np.frombuffer(self._read_bytes(4 * values, f"the values of {name}"), "<f4")
        return name, sums / np.float32(calls) if calls > 0 else sums.copy()

    def _read_int(self, what: str) -> int:
        return int(struct.unpack("<i", self._read_bytes(4, what))[0])

    def _read_text(self, what: str) -> str:
        length = self._read_int(f"the length of {what}")
        try:
            return self._read_bytes(length, what).decode("utf-8")
        except UnicodeDecodeError:
            raise self._error(f"{what} is not UTF-8 text") from None

    def _read_bytes(self, count: int, what: str) -> bytes:
        if not 0 <= count <= self._size - self._stream.tell():
            raise self._error(f"it ends inside {what}")
        return self._stream.read(count)

    def _error(self, what: str) -> PigError:
        return GGUFError(
            f"{self._path} is not an importance matrix, or damaged: {what}",
            "give a file that `pigguf imatrix` or llama-imatrix made",
        )


# ---- writing -------------------------------------------------------------------------------------


def serialize_imatrix(
    sums: Mapping[str, ImatrixSums], datasets: Sequence[str], chunks: int, chunk_size: int
) -> bytes:
    """Return the bytes of an importance matrix file, as llama-imatrix writes it.

    Args:
        sums: by the name of the weight tensor.
        datasets: names of the texts.
        chunks: the number of chunks of text.
        chunk_size: the tokens of a chunk.
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
    parts = [serialize_header(metadata, tensors)]
    for tensor in tensors:
        parts += [tensor.encode(0, tensor.rows).tobytes(), bytes(-tensor.nbytes % DEFAULT_ALIGNMENT)]
    return b"".join(parts)


def _planned(name: str, table: Array) -> PlannedTensor:
    """Plan a small float32 tensor; a first axis of length 1 is dropped, as ggml does."""
    values = np.ascontiguousarray(table, np.float32)
    shape = values.shape if len(values) > 1 else values.shape[1:]
    return PlannedTensor(name, shape, TensorType.F32, [(0, shape[0])], lambda start, stop: values)
