"""Read a state dict that torch.save wrote, as lazy tensors. The only importer of torch in this package.

torch.load runs with weights_only=True, which executes no code of the file, and map_location="meta", which
loads no data but records where each storage is in the file. Rows are then read with positioned reads, as
those of safetensors are: memory stays flat, and views of one storage stay views. Before torch.load the
zip file is checked (entries uncompressed and within the file), and after it every tensor (within its
storage). Files of torch before 1.6 are not zip files; they are loaded into memory.

Refused: TorchScript archives, big-endian files, sparse and quantized tensors.
Source: torch 2.13's serialization.py (_load, _legacy_load) and docs "Serialization semantics".
"""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from pigguf.common.file_io import damaged_file_hint, open_with, read_error, read_exactly
from pigguf.common.lazy_tensor import Array, LazyTensor, row_count
from pigguf.errors import CheckpointError, MissingPackage

if TYPE_CHECKING:
    import torch

# torch dtype -> (safetensors dtype, numpy dtype)
_DTYPES: dict[str, tuple[str, Any]] = {
    "torch.float32": ("F32", np.float32),
    "torch.float16": ("F16", np.float16),
    "torch.bfloat16": ("BF16", ml_dtypes.bfloat16),
    "torch.float64": ("F64", np.float64),
    "torch.int64": ("I64", np.int64),
    "torch.int32": ("I32", np.int32),
    "torch.int16": ("I16", np.int16),
    "torch.int8": ("I8", np.int8),
    "torch.uint8": ("U8", np.uint8),
    "torch.bool": ("BOOL", np.bool_),
    "torch.float8_e4m3fn": ("F8_E4M3", ml_dtypes.float8_e4m3fn),
    "torch.float8_e5m2": ("F8_E5M2", ml_dtypes.float8_e5m2),
}

SAVE_PLAIN = "save the model's state_dict() alone: torch.save(model.state_dict(), FILE)"
MAX_PICKLE_BYTES = 100_000_000  # the limit of a safetensors header
_LOCAL_HEADER_BYTES = 30  # of a zip entry, before its name and its extra field

StorageSizes = dict[int, int]  # offset of a storage in the file -> its size, in bytes


class TorchFile:
    """An open state dict of torch.save.

    Attributes:
        path: the file.
        tensors: name -> LazyTensor, in the file's order.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor
        self.tensors = self._read_tensors()

    @classmethod
    def open(cls, path: Path) -> TorchFile:
        """Open a file and check that it is a complete state dict without code.

        Raises:
            MissingPackage: torch is not installed, or too old.
            CheckpointError: the file is damaged, or not a state dict.
            ReadError: the system refuses to read it.
        """
        return open_with(path, partial(cls, path))

    def close(self) -> None:
        """Close the file; tensors that were not read cannot be read any more."""
        self.tensors = {}
        os.close(self._descriptor)

    def _read_tensors(self) -> dict[str, LazyTensor]:
        beginning = os.pread(self._descriptor, 64, 0)
        storages = _storage_sizes(self.path) if beginning.startswith(b"PK\3\4") else None
        state = _torch_load(self.path, storages is None, beginning)
        if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
            raise CheckpointError(
                f"{self.path} is a {type(state).__name__}, not a state dict (name -> tensor)"
            )
        return {name: self._lazy_tensor(name, tensor, storages) for name, tensor in state.items()}

    def _lazy_tensor(self, name: str, tensor: Any, storages: StorageSizes | None) -> LazyTensor:
        torch_dtype = str(getattr(tensor, "dtype", type(tensor).__name__))
        if torch_dtype not in _DTYPES or str(tensor.layout) != "torch.strided":
            kind = torch_dtype if torch_dtype not in _DTYPES else f"a tensor of layout {tensor.layout}"
            raise CheckpointError(
                f"{self.path}: {name} is {kind}, not a dense tensor of floats or integers",
                SAVE_PLAIN,
            )
        dtype, numpy_dtype = _DTYPES[torch_dtype]
        shape, row_group = tuple(tensor.shape), 1
        tensor = tensor.detach()
        if storages is None:
            read = _memory_reader(tensor, numpy_dtype)
        else:
            read = self._file_reader(self._data_offset(name, tensor, storages), tensor, np.dtype(numpy_dtype))
            if not tensor.is_contiguous():
                row_group = max(1, row_count(shape))  # its rows are not consecutive: it is read whole
        return LazyTensor(name, shape, dtype, read, row_group=row_group)

    def _data_offset(self, name: str, tensor: torch.Tensor, storages: StorageSizes) -> int:
        """Return the offset of a tensor's data in the file, after checking that it is within its storage."""
        storage = tensor.untyped_storage()
        start = getattr(storage, "_checkpoint_offset", None)
        if start is None:
            import torch

            raise MissingPackage(
                f"{self.path}: torch {torch.__version__} does not give the offset of {name} in the file",
                'pip install --upgrade -e ".[torch]" in the clone',
            )
        if storages.get(start) != storage.nbytes():
            raise CheckpointError(
                f"{self.path}: the storage of {name} should be {storage.nbytes()} bytes at byte {start}, "
                f"but the file has {storages.get(start, 'none')} there",
                "the file is damaged: download it again",
            )
        last = sum(
            (size - 1) * int(stride) for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
        )
        end = (tensor.storage_offset() + max(last + 1, tensor.numel())) * tensor.element_size()
        if tensor.numel() and end > storage.nbytes():
            raise CheckpointError(
                f"{self.path}: {name} {list(tensor.shape)} takes {end} bytes of a storage of "
                f"{storage.nbytes()}",
                "call contiguous() on an expanded view before saving it; otherwise the file is damaged",
            )
        return int(start) + int(tensor.storage_offset()) * tensor.element_size()

    def _file_reader(self, offset: int, tensor: torch.Tensor, dtype: Any) -> Callable[[int, int], Array]:
        """Return a `read` for a tensor in the file; one for a non-contiguous view reads all that it spans."""
        shape, strides = tuple(tensor.shape), tuple(tensor.stride())
        row_shape = shape[-1:] if len(shape) > 1 else ()

        def read_contiguous(start: int, stop: int) -> Array:
            rows = np.empty((stop - start, *row_shape), dtype)
            row_offset = offset + start * dtype.itemsize * int(np.prod(row_shape, dtype=np.int64))
            read_exactly(self._descriptor, memoryview(rows.reshape(-1).view(np.uint8)), row_offset, self.path)
            return rows

        def read_view(start: int, stop: int) -> Array:
            span = 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
            values = np.empty(span, dtype)
            read_exactly(self._descriptor, memoryview(values.view(np.uint8)), offset, self.path)
            byte_strides = [stride * dtype.itemsize for stride in strides]
            whole = np.lib.stride_tricks.as_strided(values, shape, byte_strides, writeable=False)
            rows: Array = whole.reshape(-1, *row_shape)[start:stop]
            return np.ascontiguousarray(rows)

        return read_contiguous if tensor.is_contiguous() else read_view


def _memory_reader(tensor: torch.Tensor, dtype: Any) -> Callable[[int, int], Array]:
    """Return a `read` for a tensor in memory; works for dtypes that torch cannot hand to numpy."""
    import torch

    size = tensor.element_size()
    integer_dtype = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[size]
    row_shape = tuple(tensor.shape[-1:]) if tensor.ndim > 1 else ()

    def read(start: int, stop: int) -> Array:
        rows = tensor.reshape(-1, *row_shape)[start:stop].contiguous()
        values: Array = rows.view(integer_dtype).numpy().view(dtype)
        return values

    return read


def _storage_sizes(path: Path) -> StorageSizes:
    """Return the offsets and sizes of all entries of a torch zip file, after checking each.

    Raises:
        CheckpointError: an entry is compressed, not within the file, or unreasonably large.
    """
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            storages: StorageSizes = {}
            if any(name.rpartition("/")[2] == "constants.pkl" for name in archive.namelist()):
                raise CheckpointError(
                    f"{path} is a TorchScript archive, which has code beside the weights", SAVE_PLAIN
                )
            for entry in archive.infolist():
                begin = _entry_data_offset(entry, file)
                _check_entry(path, entry, begin, size)
                if entry.filename.rpartition("/")[2] == "byteorder" and archive.read(entry) != b"little":
                    raise CheckpointError(
                        f"{path} was saved on a big-endian machine", "save it again on a little-endian one"
                    )
                storages[begin] = entry.file_size
    except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError) as error:
        raise CheckpointError(
            f"{path} is not a valid zip file of torch.save: {error}", "the file is damaged: download it again"
        ) from error
    except OSError as error:
        raise read_error(path, error) from error
    return storages


def _entry_data_offset(entry: zipfile.ZipInfo, file: Any) -> int:
    """Return the offset of an entry's data; its local header has an extra field of its own."""
    file.seek(entry.header_offset)
    header = file.read(_LOCAL_HEADER_BYTES)
    if not header.startswith(b"PK\3\4") or len(header) < _LOCAL_HEADER_BYTES:
        raise zipfile.BadZipFile(f"{entry.filename!r} has no header at byte {entry.header_offset}")
    lengths = [int.from_bytes(header[at : at + 2], "little") for at in (26, 28)]
    return entry.header_offset + _LOCAL_HEADER_BYTES + sum(lengths)


def _check_entry(path: Path, entry: zipfile.ZipInfo, begin: int, size: int) -> None:
    if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
        raise CheckpointError(
            f"{path}: {entry.filename} is compressed, which torch.save never does",
            "save it again with torch.save",
        )
    if begin + entry.file_size > size:
        raise CheckpointError(
            f"{path}: {entry.filename} ends at byte {begin + entry.file_size} of {size}",
            "the file was cut short or damaged: download it again",
        )
    if entry.filename.endswith(".pkl") and entry.file_size > MAX_PICKLE_BYTES:
        raise CheckpointError(
            f"{path}: {entry.filename} has {entry.file_size} bytes, more than a list of tensors can need",
            SAVE_PLAIN,
        )


def _torch_load(path: Path, into_memory: bool, beginning: bytes) -> Any:
    """Return torch.load's result; its tensors have no data (device "meta") unless loaded into memory."""
    try:
        import torch
    except ImportError as error:
        raise MissingPackage(
            f"{path}: torch is needed to read this file, but is not installed",
            'pip install -e ".[torch]" in the clone, or save the weights as safetensors',
        ) from error
    try:
        return torch.load(path, map_location="cpu" if into_memory else "meta", weights_only=True)
    except Exception as error:  # a damaged pickle can raise anything
        code = re.search(r"GLOBAL (\S+) (was not an allowed|whose module)", str(error))
        if code:
            raise CheckpointError(
                f"{path} asks for {code[1]}, which is code, not a tensor; it was not run",
                "get the weights as safetensors, or the state_dict() alone",
            ) from error
        raise CheckpointError(
            f"{path} is not a state dict of torch: {_first_line(error)}", damaged_file_hint(beginning)
        ) from error


def _first_line(error: Exception) -> str:
    """Return torch's reason in one line, without its advice to run the file's code."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if lines and lines[0].startswith("Weights only load failed"):
        lines = [line for line in lines[1:] if not line.startswith(("Please file", "Check the"))]
    return lines[0] if lines else type(error).__name__
