"""export: a GGUF file -> a Hugging Face checkpoint, through the same rename tables read backwards.

Quantized tensors are dequantized; weights are written as bfloat16. The result loads with
transformers and converts again with `convert`.

Left out: what a quantized file has lost, and families that only `inspect` can read.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace
from pathlib import Path

from pigguf.architectures import (
    config_from_hparams,
    family_from_metadata,
    hparams_from_metadata,
    map_tensors_to_hf,
)
from pigguf.architectures.hparams import HParams
from pigguf.checkpoint import write_safetensors
from pigguf.common.atomic_directory import atomic_directory
from pigguf.common.file_io import write_json
from pigguf.gguf_io import TensorData, read_header
from pigguf.operations.rope_from_gguf import rope_from_gguf
from pigguf.progress import SILENT, Progress
from pigguf.quantization import float_tensors
from pigguf.tokenizer import Vocab, vocab_from_metadata, write_tokenizer


@dataclass(frozen=True)
class ExportResult:
    """What was made: the directory, the model's shape, the bytes of its weights, and how long it took."""

    path: Path
    hparams: HParams
    bytes: int
    seconds: float


def export(
    source: str | os.PathLike[str], output: str | os.PathLike[str], *, progress: Progress = SILENT
) -> ExportResult:
    """Write a GGUF file as a checkpoint directory: config.json, model.safetensors, tokenizer files.

    Args:
        source: a GGUF of a family that convert knows.
        output: the directory to make; it must not exist, or be empty.
        progress: told of the bytes written.

    Raises:
        ReadError: the system refuses to read the source.
        GGUFError: the source is damaged.
        UnsupportedModel, TokenizerError: it holds what has no Hugging Face form here.
        ConversionError: a tensor is missing, unknown or not finite, or the directory cannot be written.
    """
    begun = time.monotonic()
    target = Path(output)
    file = read_header(source)
    family = family_from_metadata(file.metadata)
    hparams = replace(hparams_from_metadata(family, file.metadata, file.tensors), rope=rope_from_gguf(file))
    vocab = vocab_from_metadata(file.metadata)
    with atomic_directory(target) as directory, TensorData(file) as data:
        by_name = {tensor.name: tensor for tensor in float_tensors(file, data)}
        tensors = map_tensors_to_hf(family, hparams, by_name, str(file.path))
        size = write_safetensors(directory / "model.safetensors", tensors, "BF16", progress)
        write_json(directory / "config.json", {**config_from_hparams(family, hparams), **_token_ids(vocab)})
        write_json(directory / "generation_config.json", {**_token_ids(vocab), **_end_ids(vocab)})
        write_tokenizer(vocab, directory)
    return ExportResult(target, hparams, size, time.monotonic() - begun)


def _token_ids(vocab: Vocab) -> dict[str, int]:
    """bos_token_id and the like, as config.json and generation_config.json hold them."""
    return {
        f"{role}_token_id": vocab.special_ids[role]
        for role in ("bos", "eos", "pad")
        if role in vocab.special_ids
    }


def _end_ids(vocab: Vocab) -> dict[str, list[int]]:
    """generation_config.json may name several tokens that end an answer."""
    return {"eos_token_id": list(vocab.eog_ids)} if len(vocab.eog_ids) > 1 else {}
