"""The installed engine's own ggml kernels: float rows to the bytes of a tensor type, and back.

`encode` gives what llama.cpp's llama_model_quantize writes at the same version, because the same
functions compute it; `decode` is the inverse. Both work on the calling thread with a scratch of
bounded size, release the GIL and may run on many threads at once: spreading slabs of rows over
the cores is the caller's part (gguf_file.write_gguf).

The shared libraries are loaded on first use, without importing llama_cpp. Left out: which columns
matter (imatrix.py), and ternary types. Upstream: ggml.h (ggml_quantize_chunk, ggml_validate_row_data,
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

FLOATS: dict[TensorType, np.dtype[Any]] = {
    TensorType.F32: np.dtype(np.float32),
    TensorType.F16: np.dtype(np.float16),
    TensorType.BF16: np.dtype(ml_dtypes.bfloat16),
}
BLOCK_FORMATS = frozenset(
    {
        *(TensorType.Q4_0, TensorType.Q4_1, TensorType.Q5_0, TensorType.Q5_1, TensorType.Q8_0),
        *(TensorType.Q2_K, TensorType.Q3_K, TensorType.Q4_K, TensorType.Q5_K, TensorType.Q6_K),
        *(TensorType.IQ4_NL, TensorType.IQ4_XS, TensorType.IQ3_S, TensorType.IQ3_XXS),
        *(TensorType.IQ2_S, TensorType.IQ2_XS, TensorType.IQ2_XXS, TensorType.IQ1_M, TensorType.IQ1_S),
    }
)
# Their kernels search a grid, and abort the process where squares of values overflow. No value near
# _GRID_MOST can be held: a block's scale is a float16, and grids end at about 500 of it.
_GRIDS = frozenset(
    {
        *(TensorType.IQ3_S, TensorType.IQ3_XXS, TensorType.IQ2_S, TensorType.IQ2_XS, TensorType.IQ2_XXS),
        *(TensorType.IQ1_M, TensorType.IQ1_S),
    }
)
_GRID_MOST = float(1 << 26)
# Their kernels abort the process without an importance (ggml.c, ggml_quantize_requires_imatrix).
NEED_IMPORTANCE = frozenset({TensorType.IQ2_XS, TensorType.IQ2_XXS, TensorType.IQ1_S})

# The bits of infinity; with the sign masked away, only NaNs lie above.
_INFINITY: dict[np.dtype[Any], np.unsignedinteger[Any]] = {
    FLOATS[TensorType.F32]: np.uint32(0x7F80_0000),
    FLOATS[TensorType.F16]: np.uint16(0x7C00),
    FLOATS[TensorType.BF16]: np.uint16(0x7F80),
}

# Rows are worked on in blocks of about this many elements: their float32 form, 1 MiB, stays in a
# core's cache. Smaller blocks were slower: threads then fight for the GIL around each foreign call.
_BLOCK_ELEMENTS = 1 << 18


class InvalidValue(InvalidTensor):
    """A value that cannot be encoded: NaN, infinite, or beyond the target type's range.

    Attributes:
        index: where it stands in the array given to `encode`.
        problem: what is wrong with it, in words.
    """

    def __init__(self, index: tuple[int, ...], problem: str, hint: str) -> None:
        super().__init__(f"element {list(index)} {problem}", hint)
        self.index = index
        self.problem = problem

    def located(self, tensor: str, first_row: int = 0) -> InvalidTensor:
        """The same refusal in terms of `tensor`, whose rows from `first_row` on were the array."""
        index = [self.index[0] + first_row, *self.index[1:]]
        return InvalidTensor(f"{tensor}: element {index} {self.problem}", self.hint)


def encode(values: Array, kind: TensorType, importance: Array | None = None) -> Array:
    """Encode rows as llama_model_quantize does: by way of float32, unless they are of the type already.

    Args:
        values: float32, float16 or ml_dtypes.bfloat16, of any shape; the last axis is a row.
        kind: a float type or one of BLOCK_FORMATS.
        importance: float32, how much each column matters; NEED_IMPORTANCE cannot do without. Float types
            and Q8_0 make no use of it.

    Returns:
        uint8 (rows, row_bytes); a view of `values` where they are of the type already.

    Raises:
        InvalidValue: at the first value that is NaN or infinite, or becomes so in `kind`.
        GGUFError: a row is not a whole number of the type's blocks.
        BackendUnavailable: the engine's libraries are missing or cannot be loaded.
    """
    if kind not in FLOATS and kind not in BLOCK_FORMATS:
        raise ValueError(f"{kind.name} is not encoded here")  # ggml would abort the process
    if importance is None and kind in NEED_IMPORTANCE:
        raise ValueError(f"{kind.name} is not encoded without an importance")
    values = np.ascontiguousarray(values)
    width = values.shape[-1]
    if importance is not None and (importance.shape != (width,) or importance.dtype != np.float32):
        raise ValueError(f"the importance of {width} columns is {importance.dtype}{importance.shape}")
    rows = values.reshape(-1, width)
    if values.dtype == FLOATS.get(kind):
        _refuse(first_non_finite(rows), values, kind)
        return rows.view(np.uint8)
    encoded = np.empty((len(rows), row_bytes(kind, width)), np.uint8)
    step = max(1, _BLOCK_ELEMENTS // width)
    scratch = np.empty((min(step, len(rows)), width), np.float32)
    for start in range(0, len(rows), step):
        block = slice(start, start + step)
        bad = _encode_block(rows[block], kind, encoded[block], scratch, importance)
        _refuse(bad, values, kind, start * width)
    return encoded


def decode(raw: Array, kind: TensorType, elements: int) -> Array:
    """Decode rows of any type that stands for floats.

    Args:
        raw: uint8 (rows, row_bytes) as they lie in a GGUF file.
        kind: their type.
        elements: how many values a row stands for.

    Returns:
        float32 (rows, elements); a view of `raw` where it is F32.

    Raises:
        InvalidTensor: the type does not stand for floats (I32 and the like).
        GGUFError: `elements` is not a whole number of the type's blocks.
        BackendUnavailable: the engine's libraries are missing or cannot be loaded.
    """
    raw = np.ascontiguousarray(raw).reshape(-1, row_bytes(kind, elements))
    if kind is TensorType.F32:
        return raw.view(np.float32)
    values = np.empty((len(raw), elements), np.float32)
    _to_float32(kind)(raw.ctypes.data, values.ctypes.data, values.size)
    return values


def first_non_finite(values: Array) -> int | None:
    """Index of the first NaN or infinity in the flattened array, or None. Runs at memory speed.

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
    """Encode a few rows; returns the flat index of the first value that is not finite before or after."""
    bad = first_non_finite(values)
    if bad is not None:
        return bad
    floats = _widen(values, scratch)
    if kind in _GRIDS and max(floats.max(), -floats.min()) > _GRID_MOST:
        return int((np.abs(floats) > _GRID_MOST).argmax())
    if kind is TensorType.F16:  # ggml_quantize_chunk gives the same bits, but goes element by element
        _ggml_cpu().ggml_cpu_fp32_to_fp16(floats.ctypes.data, encoded.ctypes.data, floats.size)
    else:
        matters = None if importance is None else np.ascontiguousarray(importance)
        _ggml_base().ggml_quantize_chunk(
            kind,
            floats.ctypes.data,
            encoded.ctypes.data,
            0,
            len(floats),
            floats.shape[1],
            None if matters is None else matters.ctypes.data,
        )
    if kind in FLOATS:
        return first_non_finite(encoded.view(FLOATS[kind]))
    if _ggml_base().ggml_validate_row_data(kind, encoded.ctypes.data, encoded.nbytes):
        return None
    return _largest_of_bad_block(floats, kind, decode(encoded, kind, floats.shape[1]))


def _largest_of_bad_block(floats: Array, kind: TensorType, decoded: Array) -> int:
    """Flat index of the value that drove the scale of the first block out of float16's range."""
    bad = first_non_finite(decoded) or 0
    start = bad - bad % block_elements(kind)
    return start + int(np.abs(floats.reshape(-1)[start : start + block_elements(kind)]).argmax())


def _widen(values: Array, scratch: Array) -> Array:
    """The values as float32: themselves, or written into the first rows of `scratch`."""
    if values.dtype == np.float32:
        return values
    floats = scratch[: len(values)]
    kind = TensorType.F16 if values.dtype == np.float16 else TensorType.BF16
    _to_float32(kind)(values.ctypes.data, floats.ctypes.data, floats.size)
    return floats


def _refuse(bad: int | None, values: Array, kind: TensorType, offset: int = 0) -> None:
    """Raise InvalidValue for flat index `offset + bad`, if there is one."""
    if bad is None:
        return
    index = tuple(int(i) for i in np.unravel_index(offset + bad, values.shape))
    value = float(values[index])
    if np.isfinite(value):
        hint = "F32 and BF16 reach further"
        raise InvalidValue(index, f"is {value:g}, which {kind.name} cannot hold", hint)
    raise InvalidValue(index, f"is {value}, not a finite number", "the checkpoint is damaged or diverged")


# The libraries. ctypes lets go of the GIL in every call below.

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
    """The function (from address, to address, elements) that turns `kind` into float32."""
    if kind is TensorType.BF16:  # the same bits as its to_float, many at a time
        return cast(Callable[[int, int, int], None], _ggml_cpu().ggml_cpu_bf16_to_fp32)
    to_float = _ggml_base().ggml_get_type_traits(kind).contents.to_float
    if not to_float:
        raise InvalidTensor(f"tensor type {kind.name} does not stand for floats")
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
    hparams = importlib.util.find_spec("llama_cpp")
    if hparams is None or not hparams.submodule_search_locations:
        raise _unavailable("the package llama-cpp-python is not installed")
    folder = Path(hparams.submodule_search_locations[0], "lib")
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
