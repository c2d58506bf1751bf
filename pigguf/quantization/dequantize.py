"""The tensors of a GGUF file as floats: as they lie there, or decoded where they are quantized.

Left out: bringing back what quantization has lost.
"""

from __future__ import annotations

from pigguf.common.lazy_tensor import Array, LazyTensor
from pigguf.errors import InvalidTensor
from pigguf.gguf_io import GGUFFile, GGUFTensor, TensorData, block_elements
from pigguf.quantization.ggml_kernels import FLOATS, decode


def float_tensors(file: GGUFFile, data: TensorData) -> list[LazyTensor]:
    """Promises of all tensors in file order; quantized ones promise float32.

    Args:
        file: the header.
        data: the same file's bytes, open for as long as the promises are read.

    Raises:
        InvalidTensor: a tensor holds whole numbers or 64-bit floats.
    """
    for tensor in file.tensors.values():
        if tensor.type not in FLOATS and block_elements(tensor.type) == 1:
            raise InvalidTensor(
                f"{file.path}: {tensor.name} is stored as {tensor.type.name}, which is no type of weights",
                "only inspect can read this file",
            )
    return [_promise(tensor, data) for tensor in file.tensors.values()]


def _promise(tensor: GGUFTensor, data: TensorData) -> LazyTensor:
    def read(start: int, stop: int) -> Array:
        if len(tensor.shape) == 1:
            return _floats(tensor, data.rows(tensor, 0, 1))[0, start:stop]
        return _floats(tensor, data.rows(tensor, start, stop))

    dtype = tensor.type.name if tensor.type in FLOATS else "F32"
    return LazyTensor(tensor.name, tensor.shape, dtype, read)


def _floats(tensor: GGUFTensor, raw: Array) -> Array:
    if tensor.type in FLOATS:
        return raw.view(FLOATS[tensor.type])
    return decode(raw, tensor.type, tensor.row_elements)
