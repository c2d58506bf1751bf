"""quantize: a float GGUF -> the same model in another type, by the same recipes as convert.

Left out: quantizing what is quantized already, which loses twice.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pigguf.architectures import family_from_metadata
from pigguf.errors import UnsupportedModel, UsageError
from pigguf.gguf_io import (
    GGUFFile,
    TensorData,
    TensorType,
    planned_files,
    read_header,
    write_files,
)
from pigguf.gguf_io.metadata import Typed, u32
from pigguf.operations.convert import QUANTIZATION_VERSION, plan_tensors, read_scheme
from pigguf.operations.rope_from_gguf import rope_from_gguf
from pigguf.operations.readback import check_written_gguf
from pigguf.progress import SILENT, Progress
from pigguf.quantization import choose_types, float_tensors

_FLOATS = (TensorType.F32, TensorType.F16, TensorType.BF16)


@dataclass(frozen=True)
class QuantizationResult:
    """What was made: the file or its first part, its size and that of the source in bytes, how long it took,
    and every file of it in order.
    """

    path: Path
    type: str
    bytes: int
    source_bytes: int
    seconds: float
    parts: tuple[Path, ...]


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
    """Write a float GGUF again in another type; every key but the type's own stays as it is.

    Args:
        source: a GGUF whose tensors are F32, F16 or BF16.
        output: the file to write; it appears whole and verified, or not at all.
        type: a name in pigguf.quantization.RECIPES.
        imatrix, tensor_types, shard_size: as convert takes them.
        progress: told of the bytes written.

    Raises:
        ReadError: the system refuses to read the source.
        GGUFError: the source or the importance matrix is damaged.
        UnsupportedModel: the source is quantized already, or of an unknown architecture.
        ConversionError: a value is not finite, or the target cannot be written.
        UsageError: source and output are one file, or type, matrix and patterns do not fit (as for convert).
    """
    begun = time.monotonic()
    scheme = read_scheme(type, imatrix, tensor_types)
    target = Path(output)
    file = read_header(source)
    _refuse_quantized(file)
    family = family_from_metadata(file.metadata)
    hparams = family.hparams_from_metadata(file.metadata, file.tensors)
    metadata: dict[str, Typed] = {
        **file.metadata,
        "general.file_type": u32(scheme.recipe.file_type),
        "general.quantization_version": u32(QUANTIZATION_VERSION),
        **(scheme.matrix.metadata() if scheme.matrix else {}),
    }
    with TensorData(file) as data:
        floats = float_tensors(file, data)
        tensors = plan_tensors(floats, choose_types(scheme, hparams, floats), scheme.matrix)
        verify = partial(check_written_gguf, metadata=metadata, tensors=tensors, rope=rope_from_gguf(file))
        files = planned_files(target, metadata, tensors, shard_size)
        parts = tuple(planned.path for planned in files)
        _refuse_own_files(file, parts)
        size = write_files(files, progress, verify)
    return QuantizationResult(parts[0], scheme.recipe.name, size, file.size, time.monotonic() - begun, parts)


def _refuse_own_files(source: GGUFFile, targets: tuple[Path, ...]) -> None:
    for target in targets:
        if target.exists() and any(target.samefile(part) for part in source.parts):
            raise UsageError(f"{target} is both source and output", "give the output another name")


def _refuse_quantized(file: GGUFFile) -> None:
    for tensor in file.tensors.values():
        if tensor.type not in _FLOATS:
            raise UnsupportedModel(
                f"{file.path}: {tensor.name} is {tensor.type.name} already, and quantizing twice loses twice",
                "quantize an F32, F16 or BF16 file; `pigguf convert` makes one from the checkpoint",
            )
