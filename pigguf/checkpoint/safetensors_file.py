"""Read and write safetensors files: a checked header and lazy tensors, or a streamed file.

The file is read with positioned reads. The safetensors library maps the whole file, so that a converter
appears to use as much memory as the model.

Format: https://github.com/huggingface/safetensors#format (an 8-byte length, a JSON header, data
without gaps).
"""

from __future__ import annotations

import json
import math
import os
import reprlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from pigguf.checkpoint.safetensors_header import parse_header
from pigguf.common.atomic_write import atomic_write
from pigguf.common.file_io import damaged_file_hint, open_with, read_exactly
from pigguf.common.lazy_tensor import SLAB_ELEMENTS, Array, LazyTensor
from pigguf.common.parallel import map_ahead
from pigguf.errors import CheckpointError
from pigguf.progress import SILENT, Progress, stage

MAX_HEADER_BYTES = 100_000_000  # the format's own limit
MAX_ELEMENTS, MAX_AXES = 2**40, 32  # no tensor is larger, and numpy has no more axes

# dtype -> (bytes per element, numpy dtype)
_DTYPES: dict[str, tuple[int, Any]] = {
    "F32": (4, np.float32),
    "F16": (2, np.float16),
    "BF16": (2, ml_dtypes.bfloat16),
    "F64": (8, np.float64),
    "I64": (8, np.int64),
    "I32": (4, np.int32),
    "I16": (2, np.int16),
    "I8": (1, np.int8),
    "U64": (8, np.uint64),
    "U32": (4, np.uint32),
    "U16": (2, np.uint16),
    "U8": (1, np.uint8),
    "BOOL": (1, np.bool_),
    "F8_E4M3": (1, ml_dtypes.float8_e4m3fn),
    "F8_E5M2": (1, ml_dtypes.float8_e5m2),
}


class SafetensorsEntry(NamedTuple):
    """A tensor's entry in the header.

    Attributes:
        dtype: as in safetensors ("F32").
        shape: the tensor's shape.
        begin, end: its bytes, from the end of the header.
    """

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class SafetensorsFile:
    """An open safetensors file whose header has been checked against the file's size.

    Attributes:
        path: the file.
        tensors: name -> LazyTensor, in the order of their data.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor
        self.tensors = self._read_tensors()

    @classmethod
    def open(cls, path: Path) -> SafetensorsFile:
        """Open a file and check its header.

        Raises:
            CheckpointError: the file is cut short, or its header is invalid.
            ReadError: the system refuses to read it.
        """
        return open_with(path, partial(cls, path))

    def close(self) -> None:
        """Close the file; tensors that were not read cannot be read any more."""
        os.close(self._descriptor)

    def _read_tensors(self) -> dict[str, LazyTensor]:
        size = os.fstat(self._descriptor).st_size
        entries, data_start = self._read_header(size)
        tensors: dict[str, LazyTensor] = {}
        expected = 0
        for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
            if entry.begin != expected:
                raise self._header_error(
                    f"{name} begins at byte {entry.begin} of the data instead of {expected}"
                )
            expected = entry.end
            tensors[name] = self._lazy_tensor(name, entry.dtype, entry.shape, data_start + entry.begin)
        if data_start + expected != size:
            raise CheckpointError(
                f"{self.path} is {size} bytes long, but its header describes {data_start + expected}",
                "the file was cut short or damaged: download it again",
            )
        return tensors

    def _read_header(self, size: int) -> tuple[dict[str, SafetensorsEntry], int]:
        if size < 8:
            raise self._header_error(f"a file of {size} bytes is too short for a header")
        beginning = os.pread(self._descriptor, 64, 0)
        length = int.from_bytes(beginning[:8], "little")
        if length > min(size - 8, MAX_HEADER_BYTES):
            raise CheckpointError(
                f"{self.path} is not a safetensors file: {size} bytes are too few for a header of {length}",
                damaged_file_hint(beginning),
            )
        raw = bytearray(length)
        read_exactly(self._descriptor, memoryview(raw), 8, self.path)
        entries: dict[str, SafetensorsEntry] = {}
        try:
            for name, entry in parse_header(raw):
                if name in entries:
                    raise self._header_error(f"it has two entries for {name}")
                entries[name] = _check_entry(self.path, name, entry)
        except (ValueError, RecursionError) as error:
            raise self._header_error(str(error)) from error
        return entries, 8 + length

    def _lazy_tensor(self, name: str, dtype: str, shape: tuple[int, ...], offset: int) -> LazyTensor:
        element_bytes, numpy_dtype = _DTYPES[dtype]
        row_shape = shape[-1:] if len(shape) > 1 else ()
        row_bytes = element_bytes * int(np.prod(row_shape, dtype=np.int64))

        def read(start: int, stop: int) -> Array:
            rows = np.empty((stop - start, *row_shape), numpy_dtype)
            read_exactly(
                self._descriptor,
                memoryview(rows.reshape(-1).view(np.uint8)),
                offset + start * row_bytes,
                self.path,
            )
            return rows

        return LazyTensor(name, shape, dtype, read)

    def _header_error(self, problem: str) -> CheckpointError:
        return CheckpointError(
            f"{self.path}: invalid safetensors header: {problem}", "the file is damaged: download it again"
        )


def _check_entry(path: Path, name: str, entry: Any) -> SafetensorsEntry:
    """Return one entry of a header, checked for consistency."""
    try:
        dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        valid = all(type(number) is int and number >= 0 for number in (*shape, begin, end))
        valid = valid and isinstance(dtype, str) and len(shape) <= MAX_AXES
        valid = valid and math.prod(max(number, 1) for number in shape) <= MAX_ELEMENTS
    except (TypeError, KeyError, ValueError):
        valid = False
    if not valid:
        raise CheckpointError(
            f"{path}: invalid safetensors header: the entry of {name} is {reprlib.repr(entry)}",
            "download it again",
        )
    if dtype not in _DTYPES:
        raise CheckpointError(
            f"{path}: {name} has the unknown dtype {dtype[:40]!r}", f"known dtypes: {', '.join(_DTYPES)}"
        )
    expected = _DTYPES[dtype][0] * math.prod(shape)
    if end - begin != expected:
        raise CheckpointError(
            f"{path}: invalid safetensors header: {name} {dtype} {list(shape)} takes {expected} bytes, "
            f"not {end - begin}",
            "the file is damaged: download it again",
        )
    return SafetensorsEntry(dtype, shape, begin, end)


def write_safetensors(
    path: Path, tensors: Sequence[LazyTensor], dtype: str, progress: Progress = SILENT
) -> int:
    """Write tensors to one safetensors file, rounded to `dtype`.

    Rows are read and written a slab at a time. The file is written to a temporary name and renamed at the
    end, so it is never incomplete.

    Args:
        path: the file to write.
        tensors: the tensors, in the order of their data in the file.
        dtype: "F32", "F16" or "BF16".
        progress: reports the bytes written, one stage.

    Returns:
        The file's size in bytes.

    Raises:
        OutputError: the disk is full, fails, or cannot be written.
    """
    header = _header_bytes(tensors, dtype)
    total = len(header) + sum(tensor.elements for tensor in tensors) * _DTYPES[dtype][0]
    with atomic_write(path, total) as file, stage(progress, f"writing {path.name}", total, "bytes"):
        file.write(header)
        progress.advance(len(header))
        for rows in map_ahead(_encode_jobs(tensors, dtype)):
            file.write(rows)
            progress.advance(len(rows))
    return total


def _header_bytes(tensors: Sequence[LazyTensor], dtype: str) -> bytes:
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers requires the format
    begin = 0
    for tensor in tensors:
        end = begin + tensor.elements * _DTYPES[dtype][0]
        entries[tensor.name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [begin, end]}
        begin = end
    raw = json.dumps(entries, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)  # the format aligns the data to 8 bytes
    return len(raw).to_bytes(8, "little") + raw


def _encode_jobs(tensors: Sequence[LazyTensor], dtype: str) -> Iterator[Callable[[], memoryview]]:
    for tensor in tensors:
        for start, stop in tensor.slabs(SLAB_ELEMENTS):
            yield partial(_encode_rows, tensor, start, stop, dtype)


def _encode_rows(tensor: LazyTensor, start: int, stop: int, dtype: str) -> memoryview:
    rows = tensor.read(start, stop).astype(_DTYPES[dtype][1])
    return memoryview(np.ascontiguousarray(rows).reshape(-1).view(np.uint8))
