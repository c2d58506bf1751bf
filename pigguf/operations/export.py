"""Export: a GGUF file to a Hugging Face checkpoint, by the inverse of convert's tensor names.

Quantized tensors are dequantized, and weights are written as bfloat16. The result loads with transformers and
converts again with `convert`. Not here: families that only `inspect` can read.
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
    """What an export wrote.

    Attributes:
        path: The directory.
        hparams: The model's hyperparameters.
        bytes: The size of its weights.
        seconds: How long it took.
    """

    path: Path
    hparams: HParams
    bytes: int
    seconds: float


def export(
    source: str | os.PathLike[str], output: str | os.PathLike[str], *, progress: Progress = SILENT
) -> ExportResult:
    """Write a GGUF file as a checkpoint directory: config.json, model.safetensors, tokenizer files.

    Args:
        source: A GGUF of a family that `convert` supports.
        output: The directory to create; it must not exist, or be empty.
        progress: Reports the bytes written.

    Raises:
        ReadError: The system refuses to read the source.
        GGUFError: The source is damaged.
        UnsupportedModel, TokenizerError: It has something that cannot be expressed as a checkpoint.
        ConversionError: A tensor is missing, unknown or not finite, or the directory cannot be written.
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
        write_json(directory / "generation_config.json", {**_token_ids(vocab), **_eos_token_ids(vocab)})
        write_tokenizer(vocab, directory)
    return ExportResult(target, hparams, size, time.monotonic() - begun)


def _token_ids(vocab: Vocab) -> dict[str, int]:
    """Return bos_token_id, eos_token_id and pad_token_id, as both JSON files have them."""
    return {
        f"{role}_token_id": vocab.special_ids[role]
        for role in ("bos", "eos", "pad")
        if role in vocab.special_ids
    }


def _eos_token_ids(vocab: Vocab) -> dict[str, list[int]]:
    """Return eos_token_id as a list if several tokens end an answer, for generation_config.json."""
    return {"eos_token_id": list(vocab.eog_ids)} if len(vocab.eog_ids) > 1 else {}
