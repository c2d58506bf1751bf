"""Open a checkpoint directory: its config files, and its weights as lazy tensors under transformers' names.

The weights are in files as transformers saves them (weight_files.py) or as Meta publishes them
(meta_llama_checkpoint.py); FP8 weights are dequantized as they are read (fp8.py). Not here: what the config
means (architectures/).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from pigguf.checkpoint.fp8 import dequantize_fp8
from pigguf.checkpoint.json_file import read_json
from pigguf.checkpoint.meta_llama_checkpoint import (
    PARAMS_FILE,
    SHARD_PATTERN,
    convert_meta_checkpoint,
    has_meta_shards,
    open_meta_shards,
)
from pigguf.checkpoint.pooling_config import POOLING_FILE
from pigguf.checkpoint.resolve_source import SourceFiles, resolve_source
from pigguf.checkpoint.weight_files import WEIGHT_FILE_NAMES, WeightFile, has_weights, open_weights
from pigguf.common.lazy_tensor import LazyTensor
from pigguf.errors import CheckpointError
from pigguf.progress import SILENT, Progress
from pigguf.tokenizer.tokenizer_files import TOKENIZER_FILE_NAMES as TOKENIZER_FILES

CHECKPOINT_FILES = SourceFiles(
    "a checkpoint",
    config_files=("config.json", POOLING_FILE, *TOKENIZER_FILES),
    weight_layouts=(
        *((re.escape(name),) for name in WEIGHT_FILE_NAMES),
        (SHARD_PATTERN, re.escape(PARAMS_FILE)),
    ),
)


class Checkpoint:
    """An open checkpoint directory; a context manager that closes its files.

    Attributes:
        path: the directory.
        config: config.json, or Meta's params.json translated to it; without quantization_config where the
            weights are dequantized.
        tokenizer_config, generation_config: these files, or {} where they are absent.
        tensors: name -> LazyTensor, under transformers' names, in the files' order.
        notes: what was done to the weights that a user should know, one sentence each.
    """

    def __init__(
        self,
        path: Path,
        config: Mapping[str, Any],
        tensors: Mapping[str, LazyTensor],
        notes: tuple[str, ...],
        files: Sequence[WeightFile],
    ) -> None:
        self.path = path
        self.config = config
        self.tensors = tensors
        self.notes = notes
        self.tokenizer_config = read_json(path / "tokenizer_config.json", optional=True)
        self.generation_config = read_json(path / "generation_config.json", optional=True)
        self._files = files

    @classmethod
    def open(cls, source: str | os.PathLike[str], progress: Progress = SILENT) -> Checkpoint:
        """Open a checkpoint and check the headers of all its files.

        Args:
            source: a directory, or OWNER/NAME[@REVISION] on the hub.
            progress: reports the download.

        Raises:
            CheckpointError: the directory or a file is missing, cut short, or invalid.
            UnsupportedModel: the weights are quantized in a way that cannot be dequantized here.
            ConversionError: weights and their scales, or shards of one tensor, do not fit each other.
            HubError, MissingPackage, OutputError: it cannot be downloaded, or not be read without torch.
            ReadError: the system refuses to read a file.
        """
        path = resolve_source(source, CHECKPOINT_FILES, progress)
        _check_is_checkpoint(path)
        is_meta = has_meta_shards(path) and not has_weights(path)
        config: Mapping[str, Any] = read_json(path / "config.json", optional=is_meta)
        with ExitStack() as on_error:
            files = open_meta_shards(path) if is_meta else open_weights(path)
            for file in files:
                on_error.callback(file.close)
            stored: Mapping[str, LazyTensor] = {
                name: tensor for file in files for name, tensor in file.tensors.items()
            }
            if is_meta:
                config, stored = convert_meta_checkpoint(path, config, files)
            config, tensors, notes = dequantize_fp8(path, config, stored)
            checkpoint = cls(path, config, tensors, notes, files)
            on_error.pop_all()
        return checkpoint

    def close(self) -> None:
        """Close the files; tensors that were not read cannot be read any more."""
        for file in self._files:
            file.close()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _check_is_checkpoint(path: Path) -> None:
    if not path.exists():
        raise CheckpointError(
            f"{path}: no such directory",
            "give a directory with config.json and weights, or the name of a hub repository, OWNER/NAME",
        )
    if path.is_file():
        hint = "give the directory of the checkpoint"
        if path.suffix == ".gguf":
            hint = "this is a GGUF file: `pigguf quantize` changes its type, `pigguf export` converts it back"
        raise CheckpointError(f"{path} is a file, not a checkpoint directory", hint)
    if (path / "adapter_config.json").exists() and not (has_weights(path) or has_meta_shards(path)):
        raise CheckpointError(
            f"{path} has an adapter (adapter_config.json) but no model",
            f"give its base model, and the adapter with it: pigguf convert BASE --adapter {path}",
        )


def model_name_from_path(path: Path) -> str:
    """Return a directory's name; in a hub cache (models--OWNER--NAME/snapshots/COMMIT), NAME."""
    directory = path.resolve()
    repository = directory.parent.parent.name
    if directory.parent.name == "snapshots" and repository.startswith("models--"):
        return repository.rpartition("--")[2]
    return directory.name
