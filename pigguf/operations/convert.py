"""convert: a checkpoint, in a directory or on a hub -> one GGUF, in one pass, proven before it has a name.

Source of the form: llama.cpp's convert_hf_to_gguf.py and llama-quantize, whose keys and bytes this
gives; the rope keys and the context length are decided by pigguf.rope, from all the evidence.

An adapter is merged on the way (checkpoint/adapter_merge.py): no merged tensor is ever held.
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

from pigguf.architectures import HF_CLASS_KEY, Family, family_from_config, map_tensors_to_gguf
from pigguf.architectures.hparams import HParams
from pigguf.checkpoint import Adapter, AdapterFacts, Checkpoint, model_name_from_path, read_pooling, with_adapter
from pigguf.common.lazy_tensor import SLAB_ELEMENTS, Array, LazyTensor
from pigguf.errors import InvalidTensor, UsageError
from pigguf.gguf_io import (
    PlannedTensor,
    TensorType,
    file_bytes,
    planned_files,
    write_files,
)
from pigguf.gguf_io.metadata import Typed, string, u32
from pigguf.operations.readback import check_written_gguf, check_tokenization
from pigguf.progress import SILENT, Progress
from pigguf.quantization import (
    RECIPES,
    Choice,
    ImportanceMatrix,
    Recipe,
    Scheme,
    choose_types,
    encode,
    read_imatrix,
    read_overrides,
)
from pigguf.quantization.ggml_kernels import InvalidValue
from pigguf.rope import RopeOverrides, RopeScaling
from pigguf.tokenizer import Vocab, read_vocab, source_encoder

QUANTIZATION_VERSION = 2  # GGML_QNT_VERSION
DEFAULT_TYPE = "F16"


@dataclass(frozen=True)
class ConversionPlan:
    """Everything that is decided before the first tensor is read.

    Attributes:
        name: the model's name: the directory's, or the repository's where that is a hub's snapshot; with
            an adapter its name follows, or stands alone where it begins with the base's.
        hparams: the model's shape, its rope included.
        vocab: the tokenizer as GGUF holds it.
        scheme: how it is quantized.
        choices: the type of every tensor, by name.
        metadata: every key of the file, in order.
        tensors: every tensor of the file, in order.
        bytes: the size of the file to be, or of its parts together.
        adapter: what is merged into the checkpoint, or None.
        notes: what was done to weights and tokens that a person should know, a sentence each.
    """

    name: str
    hparams: HParams
    vocab: Vocab
    scheme: Scheme
    choices: Mapping[str, Choice]
    metadata: dict[str, Typed]
    tensors: tuple[PlannedTensor, ...]
    bytes: int
    adapter: AdapterFacts | None = None
    notes: tuple[str, ...] = ()

    @property
    def rope(self) -> RopeScaling:
        return self.hparams.rope

    @property
    def recipe(self) -> Recipe:
        return self.scheme.recipe

    @property
    def fallbacks(self) -> tuple[str, ...]:
        """Tensors whose rows are not whole blocks of the type they should have, as "name: type"."""
        return tuple(
            f"{name}: {choice.type.name}" for name, choice in self.choices.items() if choice.fell_back
        )


@dataclass(frozen=True)
class ConversionResult:
    """What a conversion made.

    Attributes:
        path: the file, or its first part; None where nothing was to be written.
        plan: what was decided.
        seconds: how long it took.
        parts: every file, one or several in order, there or to be.
    """

    path: Path | None
    plan: ConversionPlan
    seconds: float
    parts: tuple[Path, ...]


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
    """Convert a checkpoint directory to a GGUF file.

    The file appears whole and verified, or not at all: its shapes, types and rope keys are read back
    and compared with what was decided, and a multilingual sample is tokenized with the source's
    tokenizer and with the file's.

    Args:
        source: a directory with config.json, safetensors and tokenizer files; or a str OWNER/NAME or
            OWNER/NAME@REVISION that is nothing on this disk, to be fetched from the hub into its cache.
        output: the file to write; by default NAME-TYPE.gguf in the current directory.
        adapter: a directory as PEFT saves a LoRA adapter, or a hub's, to be merged into the checkpoint.
            A config.json in it is the extended model's, and its position facts must agree with the
            checkpoint's.
        type: a name in pigguf.quantization.RECIPES: "F16", "Q8_0", "Q4_K_M", ...
        imatrix: a file that pigguf.imatrix or llama-imatrix made of this model: columns that matter more
            are kept more exactly. The types of the fewest bits need one.
        tensor_types: types for tensors whose names a regular expression is found in, such as
            {"ffn_down": "q6_k"}, in place of the recipe's; the first that is found decides.
        rope: position facts that overrule the checkpoint's.
        shard_size: most bytes of tensors in one file; what is larger is split as llama.cpp's gguf-split
            does it, and NAME.gguf becomes NAME-00001-of-00003.gguf and so on.
        dry_run: decide everything, check every header, write nothing.
        progress: told of the bytes fetched and written.

    Raises:
        CheckpointError, TokenizerError, UnsupportedModel: the source or the adapter is damaged, not
            understood, or they do not belong together.
        ReadError: the system refuses to read a file of it.
        HubError, MissingPackage: it cannot be fetched.
        RopeConflict: its position facts contradict each other.
        ConversionError: a tensor is missing, unknown or not finite, the target cannot be written, or
            the written file does not verify.
        GGUFError: the importance matrix is damaged.
        UsageError: no such type, a type that needs an importance matrix, a matrix of another model, a
            pattern that is found in no tensor; or the output is a file of the checkpoint or the adapter
            itself.
    """
    begun = time.monotonic()
    scheme = read_scheme(type, imatrix, tensor_types)
    with ExitStack() as opened:
        checkpoint = opened.enter_context(Checkpoint.open(source, progress))
        merged = opened.enter_context(Adapter.open(adapter, progress)) if adapter is not None else None
        plan = plan_conversion(checkpoint, scheme, rope or RopeOverrides(), merged)
        target = Path(output) if output is not None else Path(f"{plan.name}-{plan.recipe.name}.gguf")
        files = planned_files(target, plan.metadata, plan.tensors, shard_size)
        plan = replace(plan, bytes=sum(file.bytes for file in files))
        parts = tuple(file.path for file in files)
        if dry_run:
            return ConversionResult(None, plan, time.monotonic() - begun, parts)
        for part in parts:
            _refuse_own_files("checkpoint", checkpoint.path, part)
            if merged is not None:
                _refuse_own_files("adapter", merged.path, part)
        write_files(files, progress, partial(_verify, plan, checkpoint.path))
    return ConversionResult(parts[0], plan, time.monotonic() - begun, parts)


def plan_conversion(
    checkpoint: Checkpoint, scheme: Scheme, rope: RopeOverrides, adapter: Adapter | None = None
) -> ConversionPlan:
    """Decide everything about the file to be, from headers and config files alone. Raises as convert does."""
    family = family_from_config(checkpoint.config)
    config, weights = _merged(checkpoint, adapter, family)
    base, facts = model_name_from_path(checkpoint.path), adapter.facts if adapter else None
    name = base if facts is None else _merged_name(base, facts.name)
    extended = adapter.extended if adapter else None
    positions = family.read_positions(checkpoint.config, checkpoint.tokenizer_config, rope, extended, name)
    hparams = family.read_hparams(config, positions)
    vocab = read_vocab(checkpoint.path, config, hparams.vocab_size)
    named = map_tensors_to_gguf(family, hparams, weights, str(checkpoint.path))
    choices = choose_types(scheme, hparams, named)
    tensors = plan_tensors(named, choices, scheme.matrix)
    pooled = read_pooling(checkpoint.path, hparams.architecture)
    metadata = {
        **general_metadata(hparams.architecture, vocab.model_name(name), scheme.recipe),
        **(_base_metadata(base) if facts else {}),
        **({HF_CLASS_KEY: string(hparams.hf_class)} if family.runs_as_other_architecture else {}),
        **hparams.to_metadata(),
        **pooled.metadata,
        **vocab.metadata(),
        **(scheme.matrix.metadata() if scheme.matrix else {}),
    }
    size = file_bytes(metadata, tensors)
    left_out = (family.ignored_tensors_note,) if family.ignored_tensors_note else ()
    notes = checkpoint.notes + left_out + pooled.notes + vocab.notes
    return ConversionPlan(name, hparams, vocab, scheme, choices, metadata, tensors, size, facts, notes)


def _merged(
    checkpoint: Checkpoint, adapter: Adapter | None, family: Family
) -> tuple[Mapping[str, Any], Mapping[str, LazyTensor]]:
    """config.json and the tensors, of the checkpoint or of what an adapter makes of it."""
    if adapter is None:
        return checkpoint.config, checkpoint.tensors
    tensors = with_adapter(checkpoint, adapter)
    return {**checkpoint.config, "tie_word_embeddings": family.output not in tensors}, tensors


def _merged_name(base: str, adapter: str) -> str:
    return adapter if adapter.lower().startswith(base.lower()) else f"{base}-{adapter}"


def _refuse_own_files(what: str, source: Path, target: Path) -> None:
    """A file of the source is read while the target is written, and would be lost after it."""
    if target.exists() and any(
        file.exists() and target.samefile(file) for file in source.iterdir() if file.suffix != ".gguf"
    ):
        raise UsageError(f"{target} is a file of the {what} {source}", "give the output another name")


def read_scheme(
    type: str, imatrix: str | os.PathLike[str] | None, tensor_types: Mapping[str, str] | None
) -> Scheme:
    """The recipe of that name, whatever its case, with the matrix and the tensors' own types.

    Raises:
        UsageError: no such type, or a pattern that is no regular expression.
        ReadError, GGUFError: the matrix cannot be read.
    """
    recipe = RECIPES.get(type.upper())
    if recipe is None:
        raise UsageError(f"there is no type {type!r}", f"types are {', '.join(RECIPES)}")
    matrix = None if imatrix is None else read_imatrix(imatrix)
    return Scheme(recipe, matrix, read_overrides(tensor_types or {}))


def general_metadata(architecture: str, name: str, recipe: Recipe) -> dict[str, Typed]:
    """The general.* keys."""
    return {
        "general.architecture": string(architecture),
        "general.type": string("model"),
        "general.name": string(name),
        "general.file_type": u32(recipe.file_type),
        "general.quantization_version": u32(QUANTIZATION_VERSION),
    }


def _base_metadata(base: str) -> dict[str, Typed]:
    """The keys that name what a model was made from (llama.cpp gguf-py constants.py)."""
    return {"general.base_model.count": u32(1), "general.base_model.0.name": string(base)}


def plan_tensors(
    tensors: Sequence[LazyTensor], choices: Mapping[str, Choice], matrix: ImportanceMatrix | None
) -> tuple[PlannedTensor, ...]:
    """Give every tensor its type and its way to bytes.

    Raises:
        InvalidTensor: a tensor is stored as something other than floats.
    """
    for tensor in tensors:
        if tensor.dtype not in ("F32", "F16", "BF16"):
            raise InvalidTensor(
                f"{tensor.name} is stored as {tensor.dtype}, not as F32, F16 or BF16",
                "give the checkpoint as it was before it was quantized",
            )
    return tuple(
        _planned(tensor, choices[tensor.name].type, matrix.of(tensor) if matrix else None)
        for tensor in tensors
    )


def _planned(tensor: LazyTensor, kind: TensorType, importance: Array | None) -> PlannedTensor:
    """`importance` is (matrices, columns): of experts each has its own."""

    def encode_rows(start: int, stop: int) -> Array:
        values = tensor.read(start, stop)
        if importance is None:
            return encode_part(values, start, None)
        height = tensor.rows // len(importance)  # of one matrix
        edges = [start, *range(height * (start // height + 1), stop, height), stop]
        parts = [
            encode_part(values[first - start : last - start], first, importance[first // height])
            for first, last in pairwise(edges)
        ]
        return np.concatenate(parts)

    def encode_part(values: Array, start: int, columns: Array | None) -> Array:
        try:
            return encode(values, kind, columns)
        except InvalidValue as error:
            raise error.located(tensor.name, start) from error

    return PlannedTensor(tensor.name, tensor.shape, kind, tuple(tensor.slabs(SLAB_ELEMENTS)), encode_rows)


def _verify(plan: ConversionPlan, source: Path, written: Path) -> None:
    check_written_gguf(written, plan.metadata, plan.tensors, plan.rope)
    check_tokenization(written, source_encoder(source), plan.vocab)
