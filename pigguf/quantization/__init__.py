"""Which tensor gets which type (recipes), and the engine's kernels that make its bytes and read them."""

from pigguf.quantization.dequantize import float_tensors
from pigguf.quantization.kernels import decode, encode
from pigguf.quantization.recipes import RECIPES, Recipe, choose_types

__all__ = ["RECIPES", "Recipe", "choose_types", "decode", "encode", "float_tensors"]
