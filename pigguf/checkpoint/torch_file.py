"""One file of torch.save: a state dict of tensors, read as promises. The only importer of torch here.

torch's own loader reads the pickle with weights_only, which runs no code of the file, and onto its device
"meta", which loads no data but says where in the file each storage lies. Rows are then read from there
with positioned reads, as those of safetensors are: memory stays flat, and views share what they share.
What is read is checked first: a zip file's entries must lie in it uncompressed and end to end as it says,
and a tensor within its storage. Files from before torch 1.6 are no zip files; they are loaded whole.

Source: torch 2.13's serialization.py (_load, _legacy_load) and docs "Serialization semantics".
Left out: TorchScript archives, big-endian files, sparse and quantized tensors: all refused.
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
from pigguf.common.lazy_tensor import Array, LazyTensor
from pigguf.errors import CheckpointError, MissingPackage

if TYPE_CHECKING:
    import torch

# torch's dtype -> (safetensors' name of it, numpy's dtype)
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
MAX_PICKLE_BYTES = 100_000_000  # as many as a safetensors header may have
_LOCAL_HEADER_BYTES = 30  # of a zip file's entry, before its name and its extra field

StorageSizes = dict[int, int]  # byte of the file at which a storage begins -> its length


class TorchFile:
    """An open file of torch.save that holds tensors by name.

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
        """Open a file and check that it is a state dict, whole and without code.

        Raises:
            MissingPackage: torch is not installed, or too old.
            CheckpointError: the file is damaged or holds other things.
            ReadError: the system refuses to read it.
        """
        return open_with(path, partial(cls, path))

    def close(self) -> None:
        """Let go of the file; arrays that were read stay."""
        self.tensors = {}
        os.close(self._descriptor)

    def _read_tensors(self) -> dict[str, LazyTensor]:
        beginning = os.pread(self._descriptor, 64, 0)
        storages = _storages(self.path) if beginning.startswith(b"PK\3\4") else None
        state = _load(self.path, storages is None, beginning)
        if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
            raise CheckpointError(f"{self.path} holds a {type(state).__name__}, not tensors by name")
        return {name: self._promise(name, tensor, storages) for name, tensor in state.items()}

    def _promise(self, name: str, tensor: Any, storages: StorageSizes | None) -> LazyTensor:
        found = str(getattr(tensor, "dtype", type(tensor).__name__))
        if found not in _DTYPES or str(tensor.layout) != "torch.strided":
            kind = found if found not in _DTYPES else f"a tensor of layout {tensor.layout}"
            raise CheckpointError(
                f"{self.path}: {name} is {kind}, not a plain tensor of floats or whole numbers",
                SAVE_PLAIN,
            )
        dtype, numpy_dtype = _DTYPES[found]
        tensor = tensor.detach()
        if storages is None:
            read, whole_rows = _read_held(tensor, numpy_dtype), False
        else:
            start = self._place(name, tensor, storages)
            read, whole_rows = self._read_at(start, tensor, np.dtype(numpy_dtype)), not tensor.is_contiguous()
        promise = LazyTensor(name, tuple(tensor.shape), dtype, read)
        if not whole_rows:
            return promise
        return LazyTensor(name, promise.shape, dtype, read, row_group=max(1, promise.rows))

    def _place(self, name: str, tensor: torch.Tensor, storages: StorageSizes) -> int:
        """The byte at which a tensor begins, sure to end within its storage, and that within the file."""
        storage = tensor.untyped_storage()
        start = getattr(storage, "_checkpoint_offset", None)
        if start is None:
            import torch

            raise MissingPackage(
                f"{self.path}: torch {torch.__version__} does not say where in the file {name} lies",
                'pip install --upgrade -e ".[torch]" in the clone',
            )
        if storages.get(start) != storage.nbytes():
            raise CheckpointError(
                f"{self.path}: the storage of {name} should be {storage.nbytes()} bytes at byte {start}, "
                f"where the file has {storages.get(start, 'none')}",
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
                "an expanded view is saved by its contiguous(); otherwise the file is damaged",
            )
        return int(start) + int(tensor.storage_offset()) * tensor.element_size()

    def _read_at(self, begin: int, tensor: torch.Tensor, dtype: Any) -> Callable[[int, int], Array]:
        """Reads rows of a tensor that lies in the file; of a view across rows all that it spans."""
        shape, strides = tuple(tensor.shape), tuple(tensor.stride())
        row_shape = shape[-1:] if len(shape) > 1 else ()

        def read_contiguous(start: int, stop: int) -> Array:
            rows = np.empty((stop - start, *row_shape), dtype)
            place = begin + start * dtype.itemsize * int(np.prod(row_shape, dtype=np.int64))
            read_exactly(self._descriptor, memoryview(rows.reshape(-1).view(np.uint8)), place, self.path)
            return rows

        def read_view(start: int, stop: int) -> Array:
            span = 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
            held = np.empty(span, dtype)
            read_exactly(self._descriptor, memoryview(held.view(np.uint8)), begin, self.path)
            steps = [stride * dtype.itemsize for stride in strides]
            whole = np.lib.stride_tricks.as_strided(held, shape, steps, writeable=False)
            rows: Array = whole.reshape(-1, *row_shape)[start:stop]
            return np.ascontiguousarray(rows)

        return read_contiguous if tensor.is_contiguous() else read_view


def _read_held(tensor: torch.Tensor, dtype: Any) -> Callable[[int, int], Array]:
    """Reads rows of a tensor that is in memory, whatever numpy knows of its dtype."""
    import torch

    size = tensor.element_size()
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[size]
    row_shape = tuple(tensor.shape[-1:]) if tensor.ndim > 1 else ()

    def read(start: int, stop: int) -> Array:
        rows = tensor.reshape(-1, *row_shape)[start:stop].contiguous()
        values: Array = rows.view(integers).numpy().view(dtype)
        return values

    return read


def _storages(path: Path) -> StorageSizes:
    """Where a zip file of torch's keeps its storages; all of it is checked before anything is unpacked.

    Raises:
        CheckpointError: an entry is compressed, not whole, or larger than it can sensibly be.
    """
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            storages: StorageSizes = {}
            if any(name.rpartition("/")[2] == "constants.pkl" for name in archive.namelist()):
                raise CheckpointError(
                    f"{path} is a TorchScript archive, whose weights come with a program", SAVE_PLAIN
                )
            for entry in archive.infolist():
                begin = _data_begin(entry, file)
                _refuse_entry(path, entry, begin, size)
                if entry.filename.rpartition("/")[2] == "byteorder" and archive.read(entry) != b"little":
                    raise CheckpointError(
                        f"{path} was saved on a big-endian machine", "save it again on a little-endian one"
                    )
                storages[begin] = entry.file_size
    except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError) as error:
        raise CheckpointError(
            f"{path} is no zip file of torch's: {error}", "the file is damaged: download it again"
        ) from error
    except OSError as error:
        raise read_error(path, error) from error
    return storages


def _data_begin(entry: zipfile.ZipInfo, file: Any) -> int:
    """The byte at which an entry's data begin: after its local header, whose extra field is its own."""
    file.seek(entry.header_offset)
    header = file.read(_LOCAL_HEADER_BYTES)
    if not header.startswith(b"PK\3\4") or len(header) < _LOCAL_HEADER_BYTES:
        raise zipfile.BadZipFile(f"{entry.filename!r} has no header at byte {entry.header_offset}")
    lengths = [int.from_bytes(header[at : at + 2], "little") for at in (26, 28)]
    return entry.header_offset + _LOCAL_HEADER_BYTES + sum(lengths)


def _refuse_entry(path: Path, entry: zipfile.ZipInfo, begin: int, size: int) -> None:
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
            f"{path}: {entry.filename} has {entry.file_size} bytes, which no list of tensors needs",
            SAVE_PLAIN,
        )


def _load(path: Path, whole: bool, beginning: bytes) -> Any:
    """What torch makes of the file; its tensors hold no data unless it is loaded whole."""
    try:
        import torch
    except ImportError as error:
        raise MissingPackage(
            f"{path}: torch is needed to read this file, and is not installed",
            'pip install -e ".[torch]" in the clone, or save the weights as safetensors',
        ) from error
    try:
        return torch.load(path, map_location="cpu" if whole else "meta", weights_only=True)
    except Exception as error:  # a damaged file raises whatever its bytes lead the unpickler into
        code = re.search(r"GLOBAL (\S+) (was not an allowed|whose module)", str(error))
        if code:
            raise CheckpointError(
                f"{path} asks for {code[1]}, which is code and no tensor; nothing of it was run",
                "get the weights as safetensors, or the state_dict() alone",
            ) from error
        raise CheckpointError(
            f"{path} is no state dict of torch: {_reason(error)}", damaged_file_hint(beginning)
        ) from error


def _reason(error: Exception) -> str:
    """What torch says is wrong, in a line, without its advice to run the file's code."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if lines and lines[0].startswith("Weights only load failed"):
        lines = [line for line in lines[1:] if not line.startswith(("Please file", "Check the"))]
    return lines[0] if lines else type(error).__name__
