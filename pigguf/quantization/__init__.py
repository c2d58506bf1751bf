"""Quantization: recipes (the type of every tensor), importance matrices, and the engine's own kernels."""

from pigguf.quantization.choose_tensor_types import (
    QuantizationParams,
    TensorTypeChoice,
    choose_tensor_types,
    parse_type_overrides,
)
from pigguf.quantization.dequantize import float_tensors
from pigguf.quantization.ggml_kernels import decode, encode
from pigguf.quantization.imatrix_file import ImatrixSums, ImportanceMatrix, read_imatrix, serialize_imatrix
from pigguf.quantization.recipes import RECIPES, QuantizationRecipe

__all__ = [
    "RECIPES",
    "ImatrixSums",
    "ImportanceMatrix",
    "QuantizationParams",
    "QuantizationRecipe",
    "TensorTypeChoice",
    "choose_tensor_types",
    "decode",
    "encode",
    "float_tensors",
    "parse_type_overrides",
    "read_imatrix",
    "serialize_imatrix",
]
