"""The ggml kernels of the installed llama.cpp: float rows to the bytes of a tensor type, and back.

`encode` returns what llama.cpp's llama_model_quantize writes at the same version, because the same functions
compute it; `decode` is the inverse. Both run on the calling thread with a scratch buffer of bounded size,
release the GIL and may run on many threads at once: the caller distributes slabs of rows over the cores
(gguf_io.write_gguf).

The shared libraries are loaded on first use, without importing llama_cpp. Not here: importance matrices
(imatrix_file.py), and ternary types. Upstream: ggml.h (ggml_quantize_chunk, ggml_validate_row_data,
ggml_get_type_traits) and ggml-cpu.h.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import ml_dtypes
import numpy as np

from pigguf.common.lazy_tensor import Array
from pigguf.errors import BackendUnavailable, InvalidTensor
from pigguf.gguf_io import TensorType, block_elements, row_bytes

FLOAT_DTYPES: dict[TensorType, np.dtype[Any]] = {
    TensorType.F32: np.dtype(np.float32),
    TensorType.F16: np.dtype(np.float16),
    TensorType.BF16: np.dtype(ml_dtypes.bfloat16),
}
QUANTIZED_TYPES = frozenset(
    {
        *(TensorType.Q4_0, TensorType.Q4_1, TensorType.Q5_0, TensorType.Q5_1, TensorType.Q8_0),
        *(TensorType.Q2_K, TensorType.Q3_K, TensorType.Q4_K, TensorType.Q5_K, TensorType.Q6_K),
        *(TensorType.IQ4_NL, TensorType.IQ4_XS, TensorType.IQ3_S, TensorType.IQ3_XXS),
        *(TensorType.IQ2_S, TensorType.IQ2_XS, TensorType.IQ2_XXS, TensorType.IQ1_M, TensorType.IQ1_S),
    }
)
# Their kernels search a grid, and abort the process if squares of values overflow. No value near
# _GRID_MAX is representable: a block's scale is a float16, and grids end at about 500 times the scale.
_GRID_TYPES = frozenset(
    {
        *(TensorType.IQ3_S, TensorType.IQ3_XXS, TensorType.IQ2_S, TensorType.IQ2_XS, TensorType.IQ2_XXS),
        *(TensorType.IQ1_M, TensorType.IQ1_S),
    }
)
_GRID_MAX = float(1 << 26)
# Their kernels abort the process without an imatrix (ggml.c, ggml_quantize_requires_imatrix).
NEED_IMATRIX = frozenset({TensorType.IQ2_XS, TensorType.IQ2_XXS, TensorType.IQ1_S})

# The bits of infinity; without the sign, only NaNs are larger.
_INFINITY: dict[np.dtype[Any], np.unsignedinteger[Any]] = {
    FLOAT_DTYPES[TensorType.F32]: np.uint32(0x7F80_0000),
    FLOAT_DTYPES[TensorType.F16]: np.uint16(0x7C00),
    FLOAT_DTYPES[TensorType.BF16]: np.uint16(0x7F80),
}

# Rows are processed in blocks of about this many elements: as float32, 1 MiB, they stay in a core's cache.
# Smaller blocks were slower: threads then compete for the GIL around each foreign call.
_BLOCK_ELEMENTS = 1 << 18


class InvalidTensorValue(InvalidTensor):
    """A value that cannot be encoded: NaN, infinite, or beyond the target type's range.

    Attributes:
        index: its index in the array given to `encode`.
        problem: what is wrong with it, for the message.
    """

    def __init__(self, index: tuple[int, ...], problem: str, hint: str) -> None:
        super().__init__(f"element {list(index)} {problem}", hint)
        self.index = index
        self.problem = problem

    def in_tensor(self, tensor: str, first_row: int = 0) -> InvalidTensor:
        """Return the error for the tensor whose rows from `first_row` on were the array."""
        index = [self.index[0] + first_row, *self.index[1:]]
        return InvalidTensor(f"{tensor}: element {index} {self.problem}", self.hint)


def encode(values: Array, tensor_type: TensorType, importance: Array | None = None) -> Array:
    """Encode rows as llama_model_quantize does: through float32, unless they already have the type.

    Args:
        values: (..., n_columns), float32, float16 or ml_dtypes.bfloat16.
        tensor_type: a key of FLOAT_DTYPES or one of QUANTIZED_TYPES.
        importance: (n_columns,), float32, how much each column matters; required by NEED_IMATRIX, and not
            used by float types and Q8_0.

    Returns:
        (n_rows, row_bytes), uint8; a view of `values` if they already have the type.

    Raises:
        InvalidTensorValue: at the first value that is NaN or infinite, or becomes so in the type.
        GGUFError: a row is not a whole number of the type's blocks.
        BackendUnavailable: the engine's libraries are missing or cannot be loaded.
    """
    if tensor_type not in FLOAT_DTYPES and tensor_type not in QUANTIZED_TYPES:
        raise ValueError(f"{tensor_type.name} is not encoded here")  # ggml would abort the process
    if importance is None and tensor_type in NEED_IMATRIX:
        raise ValueError(f"{tensor_type.name} is not encoded without an importance")
    values = np.ascontiguousarray(values)
    width = values.shape[-1]
    if importance is not None and (importance.shape != (width,) or importance.dtype != np.float32):
        raise ValueError(f"the importance of {width} columns is {importance.dtype}{importance.shape}")
    rows = values.reshape(-1, width)
    if values.dtype == FLOAT_DTYPES.get(tensor_type):
        _raise_if_invalid(first_non_finite(rows), values, tensor_type)
        return rows.view(np.uint8)
    encoded = np.empty((len(rows), row_bytes(tensor_type, width)), np.uint8)
    step = max(1, _BLOCK_ELEMENTS // width)
    scratch = np.empty((min(step, len(rows)), width), np.float32)
    for start in range(0, len(rows), step):
        block = slice(start, start + step)
        bad = _encode_block(rows[block], tensor_type, encoded[block], scratch, importance)
        _raise_if_invalid(bad, values, tensor_type, start * width)
    return encoded


def decode(raw: Array, tensor_type: TensorType, row_elements: int) -> Array:
    """Decode rows of any type that represents floats.

    Args:
        raw: (n_rows, row_bytes), uint8, as stored in a GGUF file.
        tensor_type: their type.
        row_elements: how many values a row has.

    Returns:
        (n_rows, row_elements), float32; a view of `raw` if the type is F32.

    Raises:
        InvalidTensor: the type does not represent floats (I32 and the like).
        GGUFError: `elements` is not a whole number of the type's blocks.
        BackendUnavailable: the engine's libraries are missing or cannot be loaded.
    """
    raw = np.ascontiguousarray(raw).reshape(-1, row_bytes(tensor_type, row_elements))
    if tensor_type is TensorType.F32:
        return raw.view(np.float32)
    values = np.empty((len(raw), row_elements), np.float32)
    _to_float32(tensor_type)(raw.ctypes.data, values.ctypes.data, values.size)
    return values


def first_non_finite(values: Array) -> int | None:
    """Return the index of the first NaN or infinity in the flattened array, or None, at memory bandwidth.

    Args:
        values: contiguous float32, float16 or ml_dtypes.bfloat16, of any shape.
    """
    infinity = _INFINITY[values.dtype]
    bits = values.reshape(-1).view(infinity.dtype)
    all_but_sign = np.iinfo(infinity.dtype).max >> 1
    for start in range(0, bits.size, _BLOCK_ELEMENTS):
        magnitudes = bits[start : start + _BLOCK_ELEMENTS] & infinity.dtype.type(all_but_sign)
        if magnitudes.max() >= infinity:
            return start + int(np.argmax(magnitudes >= infinity))
    return None


def _encode_block(
    values: Array, kind: TensorType, encoded: Array, scratch: Array, importance: Array | None
) -> int | None:
    """Encode a few rows, and return the flat index of the first value that is not finite before or after."""
    bad = first_non_finite(values)
    if bad is not None:
        return bad
    floats = _widen(values, scratch)
    if kind in _GRID_TYPES and max(floats.max(), -floats.min()) > _GRID_MAX:
        return int((np.abs(floats) > _GRID_MAX).argmax())
    if kind is TensorType.F16:  # the same bits as ggml_quantize_chunk, which converts element by element
        _ggml_cpu().ggml_cpu_fp32_to_fp16(floats.ctypes.data, encoded.ctypes.data, floats.size)
    else:
        weights = None if importance is None else np.ascontiguousarray(importance)
        _ggml_base().ggml_quantize_chunk(
            kind,
            floats.ctypes.data,
            encoded.ctypes.data,
            0,
            len(floats),
            floats.shape[1],
            None if weights is None else weights.ctypes.data,
        )
    if kind in FLOAT_DTYPES:
        return first_non_finite(encoded.view(FLOAT_DTYPES[kind]))
    if _ggml_base().ggml_validate_row_data(kind, encoded.ctypes.data, encoded.nbytes):
        return None
    return _largest_of_bad_block(floats, kind, decode(encoded, kind, floats.shape[1]))


def _largest_of_bad_block(floats: Array, kind: TensorType, decoded: Array) -> int:
    """Return the flat index of the value that made the scale of the first bad block overflow float16."""
    bad = first_non_finite(decoded) or 0
    start = bad - bad % block_elements(kind)
    return start + int(np.abs(floats.reshape(-1)[start : start + block_elements(kind)]).argmax())


def _widen(values: Array, scratch: Array) -> Array:
    """Return the values as float32: unchanged, or written to the first rows of `scratch`."""
    if values.dtype == np.float32:
        return values
    floats = scratch[: len(values)]
    kind = TensorType.F16 if values.dtype == np.float16 else TensorType.BF16
    _to_float32(kind)(values.ctypes.data, floats.ctypes.data, floats.size)
    return floats


def _raise_if_invalid(bad: int | None, values: Array, kind: TensorType, offset: int = 0) -> None:
    """Raise InvalidTensorValue for the flat index `offset + bad`, unless `bad` is None."""
    if bad is None:
        return
    index = tuple(int(i) for i in np.unravel_index(offset + bad, values.shape))
    value = float(values[index])
    if np.isfinite(value):
        hint = "F32 and BF16 have a larger range"
        raise InvalidTensorValue(index, f"is {value:g}, which {kind.name} cannot represent", hint)
    raise InvalidTensorValue(
        index, f"is {value}, not a finite number", "the checkpoint is damaged or diverged"
    )


# The libraries. ctypes releases the GIL during every call below.

_ADDRESS, _COUNT = ctypes.c_void_p, ctypes.c_int64
_Convert = ctypes.CFUNCTYPE(None, _ADDRESS, _ADDRESS, _COUNT)  # (from, to, elements)


class _TypeTraits(ctypes.Structure):
    """struct ggml_type_traits."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", _Convert),
        ("from_float_ref", _Convert),
    )


@functools.cache
def _to_float32(kind: TensorType) -> Callable[[int, int, int], None]:
    """Return the function (from address, to address, elements) that converts `kind` to float32."""
    if kind is TensorType.BF16:  # the same bits as its to_float, many at a time
        return cast(Callable[[int, int, int], None], _ggml_cpu().ggml_cpu_bf16_to_fp32)
    to_float = _ggml_base().ggml_get_type_traits(kind).contents.to_float
    if not to_float:
        raise InvalidTensor(f"tensor type {kind.name} does not represent floats")
    return cast(Callable[[int, int, int], None], to_float)


@functools.cache
def _ggml_base() -> ctypes.CDLL:
    library = _load("ggml-base")
    _declare(
        library,
        "ggml_quantize_chunk",
        [ctypes.c_int, _ADDRESS, _ADDRESS, _COUNT, _COUNT, _COUNT, _ADDRESS],
        ctypes.c_size_t,
    )
    _declare(library, "ggml_validate_row_data", [ctypes.c_int, _ADDRESS, ctypes.c_size_t], ctypes.c_bool)
    _declare(library, "ggml_get_type_traits", [ctypes.c_int], ctypes.POINTER(_TypeTraits))
    return library


@functools.cache
def _ggml_cpu() -> ctypes.CDLL:
    library = _load("ggml-cpu")
    _declare(library, "ggml_cpu_bf16_to_fp32", [_ADDRESS, _ADDRESS, _COUNT], None)
    _declare(library, "ggml_cpu_fp32_to_fp16", [_ADDRESS, _ADDRESS, _COUNT], None)
    return library


def _declare(library: ctypes.CDLL, name: str, arguments: list[Any], result: Any) -> None:
    try:
        function = getattr(library, name)
    except AttributeError:
        raise _unavailable(f"{library._name} has no function {name}") from None
    function.argtypes, function.restype = arguments, result


def _load(name: str) -> ctypes.CDLL:
    package = importlib.util.find_spec("llama_cpp")
    if package is None or not package.submodule_search_locations:
        raise _unavailable("the package llama-cpp-python is not installed")
    folder = Path(package.submodule_search_locations[0], "lib")
    path = folder / _file_name(name)
    if not path.exists():
        raise _unavailable(f"llama-cpp-python has no library {path}")
    try:
        if sys.platform == "win32":
            os.add_dll_directory(str(folder))
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise _unavailable(f"cannot load {path}: {error}") from error


def _file_name(library: str) -> str:
    if sys.platform == "win32":
        return f"{library}.dll"
    return f"lib{library}.dylib" if sys.platform == "darwin" else f"lib{library}.so"


def _unavailable(what: str) -> BackendUnavailable:
    return BackendUnavailable(what, "`pigguf doctor` shows what is missing and how to build the engine")
