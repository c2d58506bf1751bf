"""The tensors of a GGUF file as floats, whatever their type."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np

from pigguf.gguf_file import GGUFFile, GGUFTensor, TensorData, TensorType
from pigguf.quantization.kernels import decode
from pigguf.tensors import Array, TensorRef

_AS_STORED = {
    TensorType.F32: np.dtype(np.float32),
    TensorType.F16: np.dtype(np.float16),
    TensorType.BF16: np.dtype(ml_dtypes.bfloat16),
}


def float_tensors(file: GGUFFile, data: TensorData) -> list[TensorRef]:
    """Every tensor of an open file, in file order: floats as they are stored, quantized ones as float32."""
    return [_float_tensor(tensor, data) for tensor in file.tensors.values()]


def _float_tensor(tensor: GGUFTensor, data: TensorData) -> TensorRef:
    stored = _AS_STORED.get(tensor.type)
    if len(tensor.shape) == 1:
        return _float_vector(tensor, data, stored)
    rows_a_step = math.prod(tensor.shape[1:-1])  # more than one where a tensor has three dimensions

    def read(start: int, stop: int) -> Array:
        raw = data.rows(tensor, start * rows_a_step, stop * rows_a_step)
        values = decode(raw, tensor.type, tensor.row_elements) if stored is None else raw.view(stored)
        return values.reshape(stop - start, *tensor.shape[1:])

    return TensorRef(tensor.name, tensor.shape, _dtype(tensor), read)


def _float_vector(tensor: GGUFTensor, data: TensorData, stored: np.dtype[np.generic] | None) -> TensorRef:
    """A vector is one row in the file, and its elements are a TensorRef's rows."""

    def read(start: int, stop: int) -> Array:
        raw = data.rows(tensor, 0, 1)
        values = decode(raw, tensor.type, tensor.row_elements) if stored is None else raw.view(stored)
        return values.reshape(-1)[start:stop]

    return TensorRef(tensor.name, tensor.shape, _dtype(tensor), read)


def _dtype(tensor: GGUFTensor) -> str:
    return tensor.type.name if tensor.type in _AS_STORED else "F32"
