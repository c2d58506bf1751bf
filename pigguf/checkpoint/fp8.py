"""Weights in eight bits with scales beside them -> numbers again, in float32, as rows are read.

A matrix is stored as F8_E4M3, and a scale for all of it, for each row or for each block lies beside it
under its own name. Both are multiplied in float32, and nothing is rounded before the target's type.
Which matrices these are the dtypes tell; modules_to_not_convert and ignore name the others, which are
stored as they are. Scales of activations (input_scale) serve engines that compute in eight bits; ours
does not, and they are left out.

Source: transformers 5.24's integrations/finegrained_fp8.py (Fp8Dequantize) and fbgemm_fp8.py;
compressed-tensors' quantization/quant_args.py; DeepSeek-V3's inference/kernel.py (weight_dequant).
Left out, and refused by name: every other method. Left to arch/: experts in one tensor.
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
SCALE_SUFFIXES = (
    "_scale_inv",
    "_scale",
)  # behind a weight's name; both multiply, whatever the first is called
ACTIVATION_SCALES = r"(.*\.)?(input_scale|activation_scale|input_scale_ub)"
USE_UNQUANTIZED = "give the checkpoint as it was before it was quantized"

DOWNLOAD_AGAIN = "the checkpoint is mixed with another: download it again"

BlockShape = tuple[int, int]

# What is known of other methods, for the message.
_OTHERS = {
    "gptq": "four bits or fewer, in groups",
    "awq": "four bits, in groups",
    "bitsandbytes": "eight or four bits of bitsandbytes's own",
    "mxfp4": "four-bit floats in blocks of 32",
    "nvfp4": "four-bit floats in blocks of 16",
    "hqq": "a few bits, in groups",
    "bitnet": "three values a weight",
}


def dequantize_fp8(
    path: Path, config: Mapping[str, Any], tensors: Mapping[str, LazyTensor]
) -> tuple[Mapping[str, Any], Mapping[str, LazyTensor], tuple[str, ...]]:
    """The config without its quantization, the tensors as numbers, and a note where that took anything.

    Raises:
        UnsupportedModel: the weights are quantized in a way that is not taken apart here.
        MissingTensor, InvalidTensor: a weight and its scale do not fit each other.
    """
    keys = JsonConfig(config, str(path / "config.json"))
    section = keys.section(QUANTIZATION_CONFIG)
    if section is None:
        return config, tensors, ()
    method = section.require("quant_method", str)
    if method not in _METHODS:
        kind = f" ({_OTHERS[method]})" if method in _OTHERS else ""
        raise UnsupportedModel(
            f"{section.describe('quant_method')}: weights are quantized already{kind}", USE_UNQUANTIZED
        )
    block = _METHODS[method](section)
    scaled, result = _dequantized_tensors(path, tensors, block)
    note = f"{scaled} matrices of float8 ({method}) were multiplied by their scales, in float32"
    return {key: value for key, value in config.items() if key != QUANTIZATION_CONFIG}, result, (note,)


# What a method's settings say: the block of a scale, where scales are for blocks


def _of_fp8(section: JsonConfig) -> BlockShape | None:
    _refuse_unless(section, "fmt", ("e4m3", "float8_e4m3fn"))
    _refuse_unless(section, "activation_scheme", ("dynamic", "static"))
    _refuse_unless(section, "scale_fmt", ("float", "ue8m0"))
    _refuse_unless(section, "expert_dtype", ("fp8",))
    return _block(section, "weight_block_size")


def _of_fbgemm(section: JsonConfig) -> BlockShape | None:
    return None


def _of_compressed_tensors(section: JsonConfig) -> BlockShape | None:
    _refuse_unless(section, "format", ("float-quantized", "naive-quantized"))
    _refuse_unless(section, "quantization_status", ("compressed", "frozen"))
    for key in ("sparsity_config", "kv_cache_scheme", "transform_config"):
        inner = section.section(key)
        if inner is not None and inner.values.get("format") != "dense":
            raise UnsupportedModel(f"{section.describe(key)} is not taken apart here", USE_UNQUANTIZED)
    groups = section.section("config_groups")
    if groups is None:
        raise UnsupportedModel(f"{section.file} lacks {section.prefix}config_groups", USE_UNQUANTIZED)
    blocks = set()
    for name in groups.values:
        group = groups.section(name)
        weights = None if group is None else group.section("weights")
        if weights is None:
            raise UnsupportedModel(f"{groups.describe(name)} says nothing of weights", USE_UNQUANTIZED)
        _refuse_unless(weights, "num_bits", (8,), needed=True)
        _refuse_unless(weights, "type", ("float",), needed=True)
        _refuse_unless(weights, "strategy", ("tensor", "channel", "block"))
        _refuse_unless(weights, "symmetric", (True,))
        blocks.add(_block(weights, "block_structure"))
    if len(blocks) > 1:
        raise UnsupportedModel(
            f"{section.describe('config_groups')}: groups with different blocks", USE_UNQUANTIZED
        )
    return blocks.pop()


_METHODS: dict[str, Callable[[JsonConfig], BlockShape | None]] = {
    "fp8": _of_fp8,
    "fbgemm_fp8": _of_fbgemm,
    "compressed-tensors": _of_compressed_tensors,
}


def _refuse_unless(keys: JsonConfig, key: str, allowed: tuple[Any, ...], needed: bool = False) -> None:
    if key in keys and keys.values[key] not in allowed:
        raise UnsupportedModel(f"{keys.describe(key)} is not taken apart here", USE_UNQUANTIZED)
    if needed and key not in keys:
        raise UnsupportedModel(f"{keys.file} lacks {keys.prefix}{key}", USE_UNQUANTIZED)


def _block(keys: JsonConfig, key: str) -> BlockShape | None:
    value = keys.values.get(key)
    if value is None:
        return None
    if not (isinstance(value, list) and len(value) == 2 and all(type(n) is int and n > 0 for n in value)):
        raise keys.invalid_value(key, "two whole numbers, [128, 128]")
    return (value[0], value[1])


# Weights and their scales


def _dequantized_tensors(
    path: Path, tensors: Mapping[str, LazyTensor], block: BlockShape | None
) -> tuple[int, dict[str, LazyTensor]]:
    """How many matrices had a scale, and all tensors without scales."""
    scales: dict[str, LazyTensor] = {}
    result: dict[str, LazyTensor] = {}
    for name, tensor in tensors.items():
        weight = next(
            (name.removesuffix(end) for end in SCALE_SUFFIXES if name.endswith(f".weight{end}")), None
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
            found = f"is {result[weight].dtype}" if weight in result else "is not there"
            raise InvalidTensor(
                f"{path}: {scale.name} scales {weight}, which {found}, not {FP8_DTYPE}",
                DOWNLOAD_AGAIN,
            )
    for name, tensor in result.items():
        if tensor.dtype == FP8_DTYPE and name not in scales:
            raise MissingTensor(
                f"{path}: {name} is stored as {FP8_DTYPE}, and has neither {name}_scale nor {name}_scale_inv",
                "download all shards: without its scale the matrix means nothing",
            )
        if name in scales:
            result[name] = _scaled(tensor, scales[name], block, path)
    return len(scales), result


def _scaled(weight: LazyTensor, scale: LazyTensor, block: BlockShape | None, path: Path) -> LazyTensor:
    if scale.dtype not in ("F32", "BF16", "F16"):
        raise InvalidTensor(
            f"{path}: {scale.name} is stored as {scale.dtype}, not as F32, BF16 or F16", USE_UNQUANTIZED
        )
    height, width = _block_of(weight, scale, block, path)

    def read(start: int, stop: int) -> Array:
        # read anew each time: those of a 7B model's largest matrix take 11 KB in blocks, 44 KB in rows
        factors = scale.load().astype(np.float32).reshape(-(-weight.shape[0] // height), -1)
        of_rows = factors[np.arange(start, stop) // height]
        rows: Array = weight.read(start, stop).astype(np.float32)
        rows *= np.repeat(of_rows, width, axis=1)[:, : weight.shape[1]]
        return rows

    return replace(weight, dtype="F32", read=read)


def _block_of(weight: LazyTensor, scale: LazyTensor, block: BlockShape | None, path: Path) -> BlockShape:
    """How many rows and columns share a scale."""
    if len(weight.shape) == 2 and weight.elements:
        rows, columns = weight.shape
        sizes = [block] if block else [(rows, columns), (1, columns)]
        for height, width in sizes:
            grid = (-(-rows // height), -(-columns // width))
            if scale.shape == grid or (block is None and scale.elements == grid[0] and len(scale.shape) <= 1):
                return height, width
    wanted = f"blocks of {list(block)}" if block else "all of it or its rows"
    raise InvalidTensor(
        f"{path}: {scale.name} has the shape {list(scale.shape)}, which is no scale for {wanted} of "
        f"{weight.name} {list(weight.shape)}",
        "does config.json belong to these weights?",
    )
