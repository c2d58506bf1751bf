"""Which tensor gets which type (recipes), which columns matter (imatrix), and the engine's own kernels."""

from pigguf.quantization.dequantize import float_tensors
from pigguf.quantization.ggml_kernels import decode, encode
from pigguf.quantization.imatrix_file import ImportanceMatrix, Sums, imatrix_bytes, read_imatrix
from pigguf.quantization.recipes import RECIPES, Choice, Recipe, Scheme, choose_types, read_overrides

__all__ = [
    "RECIPES",
    "Choice",
    "ImportanceMatrix",
    "Recipe",
    "Scheme",
    "Sums",
    "choose_types",
    "decode",
    "encode",
    "float_tensors",
    "imatrix_bytes",
    "read_imatrix",
    "read_overrides",
]
