"""A checkpoint directory: which files there are, what they say, and where each tensor lies.

The weights lie in files as transformers saves them (weights.py), or in Meta's own (meta.py); those of
eight bits come back as numbers (float8.py). Left out: what the config means.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from pigguf.checkpoint.fp8 import dequantized
from pigguf.checkpoint.json_file import read_json
from pigguf.checkpoint.meta_format import PARAMS, PIECE, holds_pieces, joined, open_pieces
from pigguf.checkpoint.pooling_config import POOLING_FILE
from pigguf.checkpoint.source import Kind, directory_of
from pigguf.checkpoint.weight_files import FORMS, WeightFile, has_weights, open_weights
from pigguf.common.lazy_tensor import LazyTensor
from pigguf.errors import CheckpointError
from pigguf.progress import SILENT, Progress
from pigguf.tokenizer.tokenizer_files import NAMES as TOKENIZER_FILES

CHECKPOINT = Kind(
    "checkpoint",
    settings=("config.json", POOLING_FILE, *TOKENIZER_FILES),
    weights=(*((re.escape(name),) for name in FORMS), (PIECE, re.escape(PARAMS))),
)


class Checkpoint:
    """An open checkpoint directory; a context manager that closes its files.

    Attributes:
        path: the directory.
        config: config.json, or what Meta's params.json says in its terms; without quantization_config
            where the weights have been made numbers again.
        tokenizer_config, generation_config: these files, or {} where they are absent.
        tensors: name -> LazyTensor, under transformers' names, in the files' order.
        notes: what was done to the weights that a person should know.
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
        """Open a checkpoint, a directory or a hub's by name (source.py), and check every header in it.

        Raises:
            CheckpointError: no such directory, a file missing, cut short, or not what it says.
            UnsupportedModel: its weights are quantized in a way that is not taken apart here.
            ConversionError: weights and their scales, or pieces of one tensor, do not fit each other.
            HubError, MissingPackage, OutputError: it cannot be fetched, or read without torch.
            ReadError: the system refuses to read a file.
        """
        path = directory_of(source, CHECKPOINT, progress)
        _refuse_other_things(path)
        meta = holds_pieces(path) and not has_weights(path)
        config: Mapping[str, Any] = read_json(path / "config.json", optional=meta)
        with ExitStack() as closing:
            files = open_pieces(path) if meta else open_weights(path)
            for file in files:
                closing.callback(file.close)
            stored: Mapping[str, LazyTensor] = {
                name: tensor for file in files for name, tensor in file.tensors.items()
            }
            if meta:
                config, stored = joined(path, config, files)
            config, tensors, notes = dequantized(path, config, stored)
            checkpoint = cls(path, config, tensors, notes, files)
            closing.pop_all()
        return checkpoint

    def close(self) -> None:
        for file in self._files:
            file.close()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _refuse_other_things(path: Path) -> None:
    if not path.exists():
        raise CheckpointError(
            f"{path}: no such directory",
            "give a directory with config.json and weights, or a hub's name, OWNER/NAME",
        )
    if path.is_file():
        hint = "give the directory that holds the checkpoint"
        if path.suffix == ".gguf":
            hint = "this is a GGUF already: `pigguf quantize` changes its type, `pigguf export` takes it back"
        raise CheckpointError(f"{path} is a file, not a checkpoint directory", hint)
    if (path / "adapter_config.json").exists() and not (has_weights(path) or holds_pieces(path)):
        raise CheckpointError(
            f"{path} holds an adapter (adapter_config.json) and no model",
            f"give its base, and the adapter with it: pigguf convert BASE --adapter {path}",
        )


def model_name(path: Path) -> str:
    """The directory's name; in a hub's cache (models--OWNER--NAME/snapshots/COMMIT) the repository's."""
    directory = path.resolve()
    repository = directory.parent.parent.name
    if directory.parent.name == "snapshots" and repository.startswith("models--"):
        return repository.rpartition("--")[2]
    return directory.name
