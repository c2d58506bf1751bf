"""A checkpoint directory: which files there are, what they say, and where each tensor lies."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from pigguf.checkpoint.safetensors_file import SafetensorsFile
from pigguf.checkpoint.source import CHECKPOINT, directory_of
from pigguf.errors import CheckpointError
from pigguf.files import download_hint, unreadable
from pigguf.progress import SILENT, Progress
from pigguf.tensors import TensorRef

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"


class Checkpoint:
    """An open checkpoint directory; a context manager that closes its files.

    Attributes:
        path: the directory.
        config: config.json.
        tokenizer_config, generation_config: these files, or {} where they are absent.
        tensors: name -> TensorRef, in the files' order.
    """

    def __init__(self, path: Path, config: dict[str, Any], files: list[SafetensorsFile]) -> None:
        self.path = path
        self.config = config
        self.tokenizer_config = read_json(path / "tokenizer_config.json", optional=True)
        self.generation_config = read_json(path / "generation_config.json", optional=True)
        self.tensors: Mapping[str, TensorRef] = {
            name: tensor for file in files for name, tensor in file.tensors.items()
        }
        self._files = files

    @classmethod
    def open(cls, source: str | os.PathLike[str], progress: Progress = SILENT) -> Checkpoint:
        """Open a checkpoint, a directory or a hub's by name (source.py), and check every header in it.

        Raises:
            CheckpointError: no such directory, a file missing, cut short, or not what it says.
            HubError, MissingPackage, OutputError: it cannot be fetched.
            ReadError: the system refuses to read a file.
        """
        path = directory_of(source, CHECKPOINT, progress)
        _refuse_other_things(path)
        config = read_json(path / "config.json")
        return cls(path, config, _open_weights(path))

    def close(self) -> None:
        for file in self._files:
            file.close()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_json(path: Path, optional: bool = False) -> dict[str, Any]:
    """A JSON object from a file; {} where an optional file is absent.

    Raises:
        CheckpointError: the file is missing, not JSON, or not an object.
        ReadError: the system refuses to read it.
    """
    raw = b""
    try:
        raw = path.read_bytes()
        content = json.loads(raw)
    except FileNotFoundError:
        if optional:
            return {}
        raise CheckpointError(f"{path} is missing", f"is {path.parent} a whole checkpoint?") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}", download_hint(raw)) from error
    except OSError as error:
        raise unreadable(path, error) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not an object")
    return content


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
    if (path / "adapter_config.json").exists() and not _has_weights(path):
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


def _has_weights(path: Path) -> bool:
    return (path / SINGLE_FILE).exists() or (path / INDEX_FILE).exists()


def _open_weights(path: Path) -> list[SafetensorsFile]:
    if (path / SINGLE_FILE).exists():  # transformers prefers it where an index stands beside it
        return [SafetensorsFile.open(path / SINGLE_FILE)]
    if (path / INDEX_FILE).exists():
        return _open_shards(path)
    raise CheckpointError(
        f"{path} holds neither {SINGLE_FILE} nor {INDEX_FILE}", _hint_for_other_weights(path)
    )


def _hint_for_other_weights(path: Path) -> str:
    others = sorted(file.name for file in path.iterdir() if file.suffix in (".bin", ".pt", ".pth", ".gguf"))
    loose = sorted(file.name for file in path.glob("*.safetensors"))
    if loose:
        return (
            f"{loose[0]} has another name: rename a single file to {SINGLE_FILE}, or bring the shards' index"
        )
    if others:
        return f"{others[0]} is not read yet: load it with transformers and save_pretrained as safetensors"
    return "download the weights too"


def _open_shards(path: Path) -> list[SafetensorsFile]:
    weight_map = _weight_map(path / INDEX_FILE)
    for tensor, shard in weight_map.items():
        if not (path / shard).is_file():
            raise CheckpointError(
                f"{path / shard} is missing ({INDEX_FILE} says that it holds {tensor})", "download the shard"
            )
    files: list[SafetensorsFile] = []
    try:
        for shard in sorted(set(weight_map.values())):
            files.append(SafetensorsFile.open(path / shard))
        _check_against_index(path, weight_map, files)
    except BaseException:
        for file in files:
            file.close()
        raise
    return files


def _weight_map(index: Path) -> dict[str, str]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: weight_map is missing or empty", "download the index again")
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise CheckpointError(f"{index}: weight_map gives {shard!r} for {tensor}, not a file name")
    return weight_map


def _check_against_index(path: Path, weight_map: dict[str, str], files: list[SafetensorsFile]) -> None:
    held = {(file.path.name, name) for file in files for name in file.tensors}
    for tensor, shard in weight_map.items():
        if (shard, tensor) not in held:
            raise CheckpointError(
                f"{path / shard} lacks {tensor}, which {INDEX_FILE} places there", "download both again"
            )
    for shard, tensor in sorted(held):
        if weight_map.get(tensor) != shard:
            raise CheckpointError(
                f"{path / shard} holds {tensor}, which {INDEX_FILE} does not place there",
                "download both again",
            )
