"""Quantize: a float GGUF to the same model in another type, by the same recipes as `convert`.

Quantized files are refused: quantizing them again would lose precision twice.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pigguf.architectures import family_from_metadata, hparams_from_metadata
from pigguf.errors import UnsupportedModel, UsageError
from pigguf.gguf_io import (
    GGUFFile,
    TensorData,
    TensorType,
    plan_files,
    read_header,
    write_gguf_files,
)
from pigguf.gguf_io.metadata import TypedValue, u32
from pigguf.operations.convert import QUANTIZATION_VERSION, plan_tensors, read_quantization_params
from pigguf.operations.readback import check_written_gguf
from pigguf.operations.rope_from_gguf import rope_from_gguf
from pigguf.progress import SILENT, Progress
from pigguf.quantization import choose_tensor_types, float_tensors

_FLOAT_TYPES = (TensorType.F32, TensorType.F16, TensorType.BF16)


@dataclass(frozen=True)
class QuantizationResult:
    """What a quantization wrote.

    Attributes:
        path: The file, or the first one of a split model.
        type: The name of the type.
        bytes: The size of all files.
        source_bytes: The size of the source.
        seconds: How long it took.
        shards: Every file in order.
    """

    path: Path
    type: str
    bytes: int
    source_bytes: int
    seconds: float
    shards: tuple[Path, ...]


def quantize(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    type: str,
    imatrix: str | os.PathLike[str] | None = None,
    tensor_types: Mapping[str, str] | None = None,
    shard_size: int | None = None,
    progress: Progress = SILENT,
) -> QuantizationResult:
    """Quantize a float GGUF to another type; all keys except the type's own stay as they are.

    Args:
        source: A GGUF whose tensors are F32, F16 or BF16.
        output: The file to write; it appears whole and verified, or not at all.
        type: A name in pigguf.quantization.RECIPES.
        imatrix, tensor_types, shard_size: As for `convert`.
        progress: Reports the bytes written.

    Raises:
        ReadError: The system refuses to read the source.
        GGUFError: The source or the importance matrix is damaged.
        UnsupportedModel: The source is quantized already, or of an unknown architecture.
        ConversionError: A value is not finite, or the target cannot be written.
        UsageError: Source and output are the same file, or type, importance matrix and patterns do not fit,
            as for `convert`.
    """
    begun = time.monotonic()
    params = read_quantization_params(type, imatrix, tensor_types)
    target = Path(output)
    file = read_header(source)
    _check_not_quantized(file)
    family = family_from_metadata(file.metadata)
    hparams = hparams_from_metadata(family, file.metadata, file.tensors)
    metadata: dict[str, TypedValue] = {
        **file.metadata,
        "general.file_type": u32(params.recipe.file_type),
        "general.quantization_version": u32(QUANTIZATION_VERSION),
        **(params.imatrix.metadata() if params.imatrix else {}),
    }
    with TensorData(file) as data:
        floats = float_tensors(file, data)
        tensors = plan_tensors(floats, choose_tensor_types(params, hparams, floats), params.imatrix)
        check_written = partial(
            check_written_gguf, metadata=metadata, tensors=tensors, rope=rope_from_gguf(file)
        )
        files = plan_files(target, metadata, tensors, shard_size)
        shards = tuple(planned.path for planned in files)
        _check_not_source(file, shards)
        size = write_gguf_files(files, progress, check_written)
    return QuantizationResult(
        shards[0], params.recipe.name, size, file.size, time.monotonic() - begun, shards
    )


def _check_not_source(source: GGUFFile, targets: tuple[Path, ...]) -> None:
    """Raise UsageError if a target is a file of the source."""
    for target in targets:
        if target.exists() and any(target.samefile(shard) for shard in source.shards):
            raise UsageError(f"{target} is both source and output", "give the output another name")


def _check_not_quantized(file: GGUFFile) -> None:
    """Raise UnsupportedModel if a tensor is quantized already."""
    for tensor in file.tensors.values():
        if tensor.type not in _FLOAT_TYPES:
            raise UnsupportedModel(
                f"{file.path}: {tensor.name} is {tensor.type.name}, and quantizing it again would lose "
                "precision twice",
                "quantize an F32, F16 or BF16 file; `pigguf convert` makes one from the checkpoint",
            )
