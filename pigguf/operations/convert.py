"""Convert: a checkpoint, in a directory or on a hub, to one GGUF, in one pass.

    convert() -> plan_conversion(): everything that headers and config files decide
              -> write_files():     read, convert and encode each tensor in turn (gguf_io)
              -> _check_written():  read the file back (operations/readback.py) before it gets its name

The keys and bytes are those of llama.cpp's convert_hf_to_gguf.py and llama-quantize; pigguf.rope decides the
rope keys and the context length from all the evidence. An adapter is merged on the way
(checkpoint/adapter_merge.py), a slab of rows at a time.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from pigguf.architectures import (
    HF_CLASS_KEY,
    Family,
    family_from_config,
    hparams_from_config,
    map_tensors_to_gguf,
    positions_from_config,
)
from pigguf.architectures.hparams import HParams
from pigguf.architectures.tensor_names import lm_head_name
from pigguf.checkpoint import (
    Adapter,
    AdapterSummary,
    Checkpoint,
    merge_adapter,
    model_name_from_path,
    read_pooling_config,
)
from pigguf.common.lazy_tensor import SLAB_ELEMENTS, Array, LazyTensor
from pigguf.errors import InvalidTensor, UsageError
from pigguf.gguf_io import (
    PlannedTensor,
    TensorType,
    file_size,
    plan_files,
    write_gguf_files,
)
from pigguf.gguf_io.metadata import TypedValue, string, u32
from pigguf.operations.readback import check_tokenization, check_written_gguf
from pigguf.progress import SILENT, Progress
from pigguf.quantization import (
    RECIPES,
    ImportanceMatrix,
    QuantizationParams,
    QuantizationRecipe,
    TensorTypeChoice,
    choose_tensor_types,
    encode,
    parse_type_overrides,
    read_imatrix,
)
from pigguf.quantization.ggml_kernels import InvalidTensorValue
from pigguf.rope import Positions, RopeOverrides
from pigguf.tokenizer import Vocab, load_reference_encoder, read_vocab

QUANTIZATION_VERSION = 2  # GGML_QNT_VERSION
DEFAULT_TYPE = "F16"


@dataclass(frozen=True)
class ConversionPlan:
    """Everything that is decided before the first tensor is read.

    Attributes:
        name: The model's name: that of the directory, or of the repository for a hub's snapshot. An adapter's
            name is appended, or replaces it if it begins with the base model's.
        hparams: The hyperparameters, including positions.
        vocab: The tokenizer as GGUF stores it.
        quantization: How the model is quantized.
        type_choices: The type of every tensor, by name.
        metadata: Every key of the file, in order.
        tensors: Every tensor of the file, in order.
        bytes: The size of the file, or of all files of a split model.
        adapter: What is merged into the checkpoint, or None.
        notes: What was done to weights and tokens that a user should know, one sentence each.
    """

    name: str
    hparams: HParams
    vocab: Vocab
    quantization: QuantizationParams
    type_choices: Mapping[str, TensorTypeChoice]
    metadata: dict[str, TypedValue]
    tensors: tuple[PlannedTensor, ...]
    bytes: int
    adapter: AdapterSummary | None = None
    notes: tuple[str, ...] = ()

    @property
    def rope(self) -> Positions:
        """The model's positions."""
        return self.hparams.rope

    @property
    def recipe(self) -> QuantizationRecipe:
        """The recipe that chooses the tensors' types."""
        return self.quantization.recipe

    @property
    def fallbacks(self) -> tuple[str, ...]:
        """Tensors that got another type because their rows are not whole blocks, as "name: type"."""
        return tuple(
            f"{name}: {choice.type.name}" for name, choice in self.type_choices.items() if choice.is_fallback
        )


@dataclass(frozen=True)
class ConversionResult:
    """What a conversion wrote.

    Attributes:
        path: The file, or the first one of a split model; None in a dry run.
        plan: What was decided.
        seconds: How long it took.
        shards: Every file in order, written or planned.
    """

    path: Path | None
    plan: ConversionPlan
    seconds: float
    shards: tuple[Path, ...]


def convert(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    adapter: str | os.PathLike[str] | None = None,
    type: str = DEFAULT_TYPE,
    imatrix: str | os.PathLike[str] | None = None,
    tensor_types: Mapping[str, str] | None = None,
    rope: RopeOverrides | None = None,
    shard_size: int | None = None,
    dry_run: bool = False,
    progress: Progress = SILENT,
) -> ConversionResult:
    """Convert a checkpoint to a GGUF file.

    The file appears whole and verified (operations/readback.py), or not at all.

    Args:
        source: A directory with config.json, safetensors and tokenizer files; or OWNER/NAME or
            OWNER/NAME@REVISION, if no such path exists, to be downloaded from the hub into its cache.
        output: The file to write; by default NAME-TYPE.gguf in the current directory.
        adapter: A LoRA adapter to merge into the checkpoint, as a directory that PEFT saved or on the hub.
            A config.json in it describes the extended model, and must agree with the checkpoint's positions.
        type: A name in pigguf.quantization.RECIPES: "F16", "Q8_0", "Q4_K_M", ...
        imatrix: An importance matrix of this model, by pigguf.imatrix or llama-imatrix: important columns
            are quantized more precisely. The smallest types need one.
        tensor_types: Types that replace the recipe's for tensors whose names match a regular expression,
            such as {"ffn_down": "q6_k"}; the first that matches counts.
        rope: Rope numbers that override the checkpoint's.
        shard_size: The most bytes of tensors in one file. A larger model is split as llama.cpp's gguf-split
            does it: NAME.gguf becomes NAME-00001-of-00003.gguf and so on.
        dry_run: Decide everything and write nothing.
        progress: Reports the bytes downloaded and written.

    Raises:
        CheckpointError, TokenizerError, UnsupportedModel: The source or adapter is damaged or unsupported.
        ReadError: The system refuses to read one of its files.
        HubError, MissingPackage: It cannot be downloaded.
        RopeConflict: What it states about positions is contradictory.
        ConversionError: A tensor is missing, unknown or not finite, the target cannot be written, or the
            written file does not verify.
        GGUFError: The importance matrix is damaged.
        UsageError: The type does not exist or needs an importance matrix, the matrix is of another model, a
            pattern matches no tensor, or the output is a file of the checkpoint or the adapter itself.
    """
    begun = time.monotonic()
    params = read_quantization_params(type, imatrix, tensor_types)
    with ExitStack() as opened:
        checkpoint = opened.enter_context(Checkpoint.open(source, progress))
        merged = opened.enter_context(Adapter.open(adapter, progress)) if adapter is not None else None
        plan = plan_conversion(checkpoint, params, rope or RopeOverrides(), merged)
        target = Path(output) if output is not None else Path(f"{plan.name}-{plan.recipe.name}.gguf")
        files = plan_files(target, plan.metadata, plan.tensors, shard_size)
        plan = replace(plan, bytes=sum(file.size for file in files))
        shards = tuple(file.path for file in files)
        if dry_run:
            return ConversionResult(None, plan, time.monotonic() - begun, shards)
        _check_not_sources(shards, checkpoint, merged)
        write_gguf_files(files, progress, partial(_check_written, plan, checkpoint.path))
    return ConversionResult(shards[0], plan, time.monotonic() - begun, shards)


def plan_conversion(
    checkpoint: Checkpoint, params: QuantizationParams, rope: RopeOverrides, adapter: Adapter | None = None
) -> ConversionPlan:
    """Decide everything about the file from headers and config files alone; raises as `convert` does."""
    family = family_from_config(checkpoint.config)
    config, weights = _merged_weights(checkpoint, adapter, family)
    base_name, summary = model_name_from_path(checkpoint.path), adapter.summary if adapter else None
    name = base_name if summary is None else _merged_name(base_name, summary.name)
    extended_config = adapter.model_config if adapter else None
    positions = positions_from_config(
        family, checkpoint.config, checkpoint.tokenizer_config, rope, extended_config, name
    )
    hparams = hparams_from_config(family, config, positions)
    vocab = read_vocab(checkpoint.path, config, hparams.vocab_size)
    tensors_to_write = map_tensors_to_gguf(family, hparams, weights, str(checkpoint.path))
    type_choices = choose_tensor_types(params, hparams, tensors_to_write)
    tensors = plan_tensors(tensors_to_write, type_choices, params.imatrix)
    pooling = read_pooling_config(checkpoint.path, hparams.architecture)
    metadata = {
        **general_metadata(hparams.architecture, vocab.rstrip_compatible_name(name), params.recipe),
        **(_base_model_metadata(base_name) if summary else {}),
        **({HF_CLASS_KEY: string(hparams.hf_class)} if family.runs_as_other_architecture else {}),
        **hparams.to_metadata(),
        **pooling.metadata,
        **vocab.metadata(),
        **(params.imatrix.metadata() if params.imatrix else {}),
    }
    size = file_size(metadata, tensors)
    ignored = (family.ignored_tensors_note,) if family.ignored_tensors_note else ()
    notes = checkpoint.notes + ignored + pooling.notes + vocab.notes
    return ConversionPlan(name, hparams, vocab, params, type_choices, metadata, tensors, size, summary, notes)


def _merged_weights(
    checkpoint: Checkpoint, adapter: Adapter | None, family: Family
) -> tuple[Mapping[str, Any], Mapping[str, LazyTensor]]:
    """Return config.json and the tensors, with the adapter merged if there is one."""
    if adapter is None:
        return checkpoint.config, checkpoint.tensors
    tensors = merge_adapter(checkpoint, adapter)
    return {**checkpoint.config, "tie_word_embeddings": lm_head_name(family) not in tensors}, tensors


def _merged_name(base: str, adapter: str) -> str:
    return adapter if adapter.lower().startswith(base.lower()) else f"{base}-{adapter}"


def _check_not_sources(targets: Sequence[Path], checkpoint: Checkpoint, adapter: Adapter | None) -> None:
    """Raise UsageError if a target is a file of the checkpoint or the adapter: writing would destroy it."""
    for target in targets:
        _check_not_source("checkpoint", checkpoint.path, target)
        if adapter is not None:
            _check_not_source("adapter", adapter.path, target)


def _check_not_source(description: str, source: Path, target: Path) -> None:
    if target.exists() and any(
        file.exists() and target.samefile(file) for file in source.iterdir() if file.suffix != ".gguf"
    ):
        raise UsageError(f"{target} is a file of the {description} {source}", "give the output another name")


def read_quantization_params(
    type: str, imatrix: str | os.PathLike[str] | None, tensor_types: Mapping[str, str] | None
) -> QuantizationParams:
    """Return the recipe of a name in any case, with the importance matrix and the types given for tensors.

    Raises:
        UsageError: The type does not exist, or a pattern is not a regular expression.
        ReadError, GGUFError: The importance matrix cannot be read.
    """
    recipe = RECIPES.get(type.upper())
    if recipe is None:
        raise UsageError(f"the type {type!r} does not exist", f"types are {', '.join(RECIPES)}")
    matrix = None if imatrix is None else read_imatrix(imatrix)
    return QuantizationParams(recipe, matrix, parse_type_overrides(tensor_types or {}))


def general_metadata(architecture: str, name: str, recipe: QuantizationRecipe) -> dict[str, TypedValue]:
    """Return the general.* keys."""
    return {
        "general.architecture": string(architecture),
        "general.type": string("model"),
        "general.name": string(name),
        "general.file_type": u32(recipe.file_type),
        "general.quantization_version": u32(QUANTIZATION_VERSION),
    }


def _base_model_metadata(name: str) -> dict[str, TypedValue]:
    """Return the keys that name the base model (llama.cpp gguf-py constants.py)."""
    return {"general.base_model.count": u32(1), "general.base_model.0.name": string(name)}


def plan_tensors(
    tensors: Sequence[LazyTensor], choices: Mapping[str, TensorTypeChoice], imatrix: ImportanceMatrix | None
) -> tuple[PlannedTensor, ...]:
    """Return the tensors to write, each with its type and the function that encodes its rows.

    Raises:
        InvalidTensor: A tensor is not stored as floats.
    """
    for tensor in tensors:
        if tensor.dtype not in ("F32", "F16", "BF16"):
            raise InvalidTensor(
                f"{tensor.name} is stored as {tensor.dtype}, not as F32, F16 or BF16",
                "use the checkpoint from before it was quantized",
            )
    return tuple(
        _planned_tensor(tensor, choices[tensor.name].type, imatrix.for_tensor(tensor) if imatrix else None)
        for tensor in tensors
    )


def _planned_tensor(tensor: LazyTensor, kind: TensorType, importance: Array | None) -> PlannedTensor:
    """Return a tensor to write in a type.

    Args:
        tensor: The tensor.
        kind: The type to encode it in.
        importance: The importance of its columns, (n_matrices, n_columns): each expert has its own row.
    """

    def encode_rows(start: int, stop: int) -> Array:
        values = tensor.read(start, stop)
        if importance is None:
            return encode_slice(values, start, None)
        rows_per_matrix = tensor.rows // len(importance)
        next_matrix = rows_per_matrix * (start // rows_per_matrix + 1)
        edges = [start, *range(next_matrix, stop, rows_per_matrix), stop]
        encoded = [
            encode_slice(values[first - start : last - start], first, importance[first // rows_per_matrix])
            for first, last in pairwise(edges)
        ]
        return np.concatenate(encoded)

    def encode_slice(values: Array, start: int, column_importance: Array | None) -> Array:
        try:
            return encode(values, kind, column_importance)
        except InvalidTensorValue as error:
            raise error.in_tensor(tensor.name, start) from error

    return PlannedTensor(tensor.name, tensor.shape, kind, tuple(tensor.slabs(SLAB_ELEMENTS)), encode_rows)


def _check_written(plan: ConversionPlan, source: Path, written: Path) -> None:
    """Raise VerificationFailed if a file is not as planned, or tokenizes differently from its source."""
    check_written_gguf(written, plan.metadata, plan.tensors, plan.rope)
    check_tokenization(written, load_reference_encoder(source), plan.vocab)
