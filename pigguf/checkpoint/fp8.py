"""Dequantize FP8 checkpoints: multiply float8 weights by their scales, in float32, as rows are read.

A weight is stored as F8_E4M3; a tensor named after it has one scale for the whole matrix, one per row, or one
per block. Nothing is rounded before the target type. The dtypes show which matrices are quantized; the
others (modules_to_not_convert, ignore) are read as they are stored. Activation scales (input_scale) are for
engines that compute in FP8, so they are dropped.

Every other quantization method is refused by name. Not here: experts in one tensor (architectures/).
Source: transformers 5.24's integrations/finegrained_fp8.py (Fp8Dequantize) and fbgemm_fp8.py;
compressed-tensors' quantization/quant_args.py; DeepSeek-V3's inference/kernel.py (weight_dequant).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pigguf.common.json_config import JsonConfig
from pigguf.common.lazy_tensor import Array, LazyTensor
from pigguf.errors import InvalidTensor, MissingTensor, UnsupportedModel

QUANTIZATION_CONFIG = "quantization_config"
FP8_DTYPE = "F8_E4M3"
SCALE_SUFFIXES = ("_scale_inv", "_scale")  # after a weight's name; despite its name _scale_inv multiplies too
ACTIVATION_SCALES = r"(.*\.)?(input_scale|activation_scale|input_scale_ub)"
USE_UNQUANTIZED = "give the checkpoint as it was before it was quantized"

DOWNLOAD_AGAIN = "the checkpoint is mixed with another: download it again"

BlockShape = tuple[int, int]

# Other methods -> what they are, for the message.
_UNSUPPORTED_METHODS = {
    "gptq": "four bits or fewer, in groups",
    "awq": "four bits, in groups",
    "bitsandbytes": "eight or four bits, in a layout of its own",
    "mxfp4": "four-bit floats in blocks of 32",
    "nvfp4": "four-bit floats in blocks of 16",
    "hqq": "a few bits, in groups",
    "bitnet": "ternary weights",
}


def dequantize_fp8(
    path: Path, config: Mapping[str, Any], tensors: Mapping[str, LazyTensor]
) -> tuple[Mapping[str, Any], Mapping[str, LazyTensor], tuple[str, ...]]:
    """Return the config and the tensors of a checkpoint without FP8 quantization.

    Args:
        path: the checkpoint's directory, for messages.
        config: config.json.
        tensors: name -> tensor, as stored.

    Returns:
        The config without quantization_config; the tensors without scales, the scaled ones as F32; and a
        note if any were dequantized.

    Raises:
        UnsupportedModel: the weights are quantized in a way that cannot be dequantized here.
        MissingTensor, InvalidTensor: a weight and its scale do not fit each other.
    """
    keys = JsonConfig(config, str(path / "config.json"))
    section = keys.section(QUANTIZATION_CONFIG)
    if section is None:
        return config, tensors, ()
    method = section.require("quant_method", str)
    if method not in _BLOCK_SHAPE_READERS:
        kind = f" ({_UNSUPPORTED_METHODS[method]})" if method in _UNSUPPORTED_METHODS else ""
        raise UnsupportedModel(
            f"{section.describe('quant_method')}: the weights are already quantized{kind}", USE_UNQUANTIZED
        )
    block = _BLOCK_SHAPE_READERS[method](section)
    n_scaled, result = _dequantize_tensors(path, tensors, block)
    note = f"{n_scaled} matrices of float8 ({method}) were multiplied by their scales, in float32"
    return {key: value for key, value in config.items() if key != QUANTIZATION_CONFIG}, result, (note,)


# quantization_config -> the block that shares a scale; None where scales are per matrix or per row


def _read_fp8_config(section: JsonConfig) -> BlockShape | None:
    _check_value(section, "fmt", ("e4m3", "float8_e4m3fn"))
    _check_value(section, "activation_scheme", ("dynamic", "static"))
    _check_value(section, "scale_fmt", ("float", "ue8m0"))
    _check_value(section, "expert_dtype", ("fp8",))
    return _read_block_shape(section, "weight_block_size")


def _read_fbgemm_config(section: JsonConfig) -> BlockShape | None:
    return None


def _read_compressed_tensors_config(section: JsonConfig) -> BlockShape | None:
    _check_value(section, "format", ("float-quantized", "naive-quantized"))
    _check_value(section, "quantization_status", ("compressed", "frozen"))
    for key in ("sparsity_config", "kv_cache_scheme", "transform_config"):
        inner = section.section(key)
        if inner is not None and inner.values.get("format") != "dense":
            raise UnsupportedModel(f"{section.describe(key)} is not supported", USE_UNQUANTIZED)
    groups = section.section("config_groups")
    if groups is None:
        raise UnsupportedModel(f"{section.file} lacks {section.prefix}config_groups", USE_UNQUANTIZED)
    blocks = set()
    for name in groups.values:
        group = groups.section(name)
        weights = None if group is None else group.section("weights")
        if weights is None:
            raise UnsupportedModel(f"{groups.describe(name)} has no weights section", USE_UNQUANTIZED)
        _check_value(weights, "num_bits", (8,), required=True)
        _check_value(weights, "type", ("float",), required=True)
        _check_value(weights, "strategy", ("tensor", "channel", "block"))
        _check_value(weights, "symmetric", (True,))
        blocks.add(_read_block_shape(weights, "block_structure"))
    if len(blocks) > 1:
        raise UnsupportedModel(
            f"{section.describe('config_groups')}: the groups have different blocks", USE_UNQUANTIZED
        )
    return blocks.pop()


_BLOCK_SHAPE_READERS: dict[str, Callable[[JsonConfig], BlockShape | None]] = {
    "fp8": _read_fp8_config,
    "fbgemm_fp8": _read_fbgemm_config,
    "compressed-tensors": _read_compressed_tensors_config,
}


def _check_value(keys: JsonConfig, key: str, allowed: tuple[Any, ...], required: bool = False) -> None:
    if key in keys and keys.values[key] not in allowed:
        raise UnsupportedModel(f"{keys.describe(key)} is not supported", USE_UNQUANTIZED)
    if required and key not in keys:
        raise UnsupportedModel(f"{keys.file} lacks {keys.prefix}{key}", USE_UNQUANTIZED)


def _read_block_shape(keys: JsonConfig, key: str) -> BlockShape | None:
    value = keys.values.get(key)
    if value is None:
        return None
    if not (isinstance(value, list) and len(value) == 2 and all(type(n) is int and n > 0 for n in value)):
        raise keys.invalid_value(key, "two positive integers, as in [128, 128]")
    return (value[0], value[1])


# Weights and their scales


def _dequantize_tensors(
    path: Path, tensors: Mapping[str, LazyTensor], block: BlockShape | None
) -> tuple[int, dict[str, LazyTensor]]:
    """Return how many matrices had a scale, and all tensors, without the scales."""
    scales: dict[str, LazyTensor] = {}
    result: dict[str, LazyTensor] = {}
    for name, tensor in tensors.items():
        weight = next(
            (name.removesuffix(suffix) for suffix in SCALE_SUFFIXES if name.endswith(f".weight{suffix}")),
            None,
        )
        if weight in scales:
            raise InvalidTensor(
                f"{path}: {weight} has two scales, {scales[weight].name} and {name}", DOWNLOAD_AGAIN
            )
        if weight is not None:
            scales[weight] = tensor
        elif not re.fullmatch(ACTIVATION_SCALES, name):
            result[name] = tensor
    for weight, scale in scales.items():
        if weight not in result or result[weight].dtype != FP8_DTYPE:
            problem = f"is stored as {result[weight].dtype}" if weight in result else "is missing"
            raise InvalidTensor(
                f"{path}: {scale.name} is the scale of {weight}, which {problem}, not {FP8_DTYPE}",
                DOWNLOAD_AGAIN,
            )
    for name, tensor in result.items():
        if tensor.dtype == FP8_DTYPE and name not in scales:
            raise MissingTensor(
                f"{path}: {name} is stored as {FP8_DTYPE}, but there is no {name}_scale or {name}_scale_inv",
                "download all shards: the weight cannot be used without its scale",
            )
        if name in scales:
            result[name] = _dequantize(tensor, scales[name], block, path)
    return len(scales), result


def _dequantize(weight: LazyTensor, scale: LazyTensor, block: BlockShape | None, path: Path) -> LazyTensor:
    if scale.dtype not in ("F32", "BF16", "F16"):
        raise InvalidTensor(
            f"{path}: {scale.name} is stored as {scale.dtype}, not as F32, BF16 or F16", USE_UNQUANTIZED
        )
    height, width = _block_shape(weight, scale, block, path)

    def read(start: int, stop: int) -> Array:
        # Read again each time: the scales of a 7B model's largest matrix are 11 KB (blocks) or 44 KB (rows).
        factors = scale.load().astype(np.float32).reshape(-(-weight.shape[0] // height), -1)
        row_factors = factors[np.arange(start, stop) // height]
        rows: Array = weight.read(start, stop).astype(np.float32)
        rows *= np.repeat(row_factors, width, axis=1)[:, : weight.shape[1]]
        return rows

    return replace(weight, dtype="F32", read=read)


def _block_shape(weight: LazyTensor, scale: LazyTensor, block: BlockShape | None, path: Path) -> BlockShape:
    """Return how many rows and columns share a scale, (height, width)."""
    if len(weight.shape) == 2 and weight.elements:
        rows, columns = weight.shape
        candidates = [block] if block else [(rows, columns), (1, columns)]
        for height, width in candidates:
            grid = (-(-rows // height), -(-columns // width))
            if scale.shape == grid or (block is None and scale.elements == grid[0] and len(scale.shape) <= 1):
                return height, width
    unit = f"for blocks of {list(block)}" if block else "per matrix or per row"
    raise InvalidTensor(
        f"{path}: {scale.name} has the shape {list(scale.shape)}, which does not fit scales {unit} "
        f"of {weight.name} {list(weight.shape)}",
        "check that config.json belongs to these weights",
    )
