"""The tensors of a GGUF file as floats: as stored, or dequantized."""

from __future__ import annotations

from pigguf.common.lazy_tensor import Array, LazyTensor
from pigguf.errors import InvalidTensor
from pigguf.gguf_io import GGUFFile, GGUFTensor, TensorData, block_elements
from pigguf.quantization.ggml_kernels import FLOAT_DTYPES, decode


def float_tensors(file: GGUFFile, data: TensorData) -> list[LazyTensor]:
    """Return all tensors as lazy tensors, in file order; quantized ones are read as float32.

    Args:
        file: the header.
        data: the same file's bytes, open for as long as the tensors are read.

    Raises:
        InvalidTensor: a tensor has integers or 64-bit floats.
    """
    for tensor in file.tensors.values():
        if tensor.type not in FLOAT_DTYPES and block_elements(tensor.type) == 1:
            raise InvalidTensor(
                f"{file.path}: {tensor.name} is stored as {tensor.type.name}, which is not a type of weights",
                "only `pigguf inspect` can read this file",
            )
    return [_lazy_tensor(tensor, data) for tensor in file.tensors.values()]


def _lazy_tensor(tensor: GGUFTensor, data: TensorData) -> LazyTensor:
    def read(start: int, stop: int) -> Array:
        if len(tensor.shape) == 1:
            return _floats(tensor, data.rows(tensor, 0, 1))[0, start:stop]
        return _floats(tensor, data.rows(tensor, start, stop))

    dtype = tensor.type.name if tensor.type in FLOAT_DTYPES else "F32"
    return LazyTensor(tensor.name, tensor.shape, dtype, read)


def _floats(tensor: GGUFTensor, raw: Array) -> Array:
    if tensor.type in FLOAT_DTYPES:
        return raw.view(FLOAT_DTYPES[tensor.type])
    return decode(raw, tensor.type, tensor.row_elements)
