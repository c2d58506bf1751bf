"""Which tensor gets which type (recipes), and the engine's kernels that make its bytes and read them."""

from pigguf.quantization.dequantize import float_tensors
from pigguf.quantization.kernels import decode, encode

__all__ = ["decode", "encode", "float_tensors"]
