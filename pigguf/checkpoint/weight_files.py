"""Find and open the weight files of a checkpoint directory as transformers saves them.

If a directory has several layouts, the first of WEIGHT_FILE_NAMES is used, as in transformers
(modeling_utils.py, _get_resolved_checkpoint_files): safetensors before pytorch_model.bin, one file before
shards. An index and its shards must agree.

Not here: Meta's consolidated.*.pth (meta_llama_checkpoint.py).
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from pigguf.checkpoint.json_file import read_json
from pigguf.checkpoint.safetensors_file import SafetensorsFile
from pigguf.checkpoint.torch_file import TorchFile
from pigguf.errors import CheckpointError

WeightFile = SafetensorsFile | TorchFile

WEIGHT_FILE_NAMES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "pytorch_model.pt",
)


def has_weights(path: Path) -> bool:
    """Return whether a directory has weights under one of WEIGHT_FILE_NAMES."""
    return any((path / name).exists() for name in WEIGHT_FILE_NAMES)


def open_weights(path: Path) -> list[WeightFile]:
    """Open the weight files of a directory: one file, or all shards of an index.

    Raises:
        CheckpointError: there are none, or one is missing, damaged, or does not agree with its index.
        MissingPackage: a file of torch.save is to be read, and torch is not installed.
        ReadError: the system refuses to read one.
    """
    for name in WEIGHT_FILE_NAMES:
        if (path / name).exists():
            return _open_shards(path / name) if name.endswith(".json") else open_files([path / name])
    raise CheckpointError(
        f"{path} has neither {' nor '.join(WEIGHT_FILE_NAMES[:2])}", _unknown_names_hint(path)
    )


def open_files(paths: list[Path]) -> list[WeightFile]:
    """Open files; if one cannot be opened, the others are closed."""
    with ExitStack() as on_error:
        files: list[WeightFile] = []
        for path in paths:
            files.append((SafetensorsFile if path.suffix == ".safetensors" else TorchFile).open(path))
            on_error.callback(files[-1].close)
        on_error.pop_all()
    return files


def _unknown_names_hint(path: Path) -> str:
    safetensors = sorted(file.name for file in path.glob("*.safetensors"))
    if safetensors:
        return (
            f"{safetensors[0]} has an unknown name: rename a single file to {WEIGHT_FILE_NAMES[0]}, or add "
            "the shards' index"
        )
    others = sorted(file.name for file in path.iterdir() if file.suffix in (".bin", ".pt", ".pth", ".gguf"))
    if others:
        return f"{others[0]} has an unknown name: if it is the weights, rename it to pytorch_model.bin"
    return "download the weights too"


def _open_shards(index: Path) -> list[WeightFile]:
    weight_map = _weight_map(index)
    for tensor, shard in weight_map.items():
        if not (index.parent / shard).is_file():
            raise CheckpointError(
                f"{index.parent / shard} is missing ({index.name} lists {tensor} in it)",
                "download the shard",
            )
    with ExitStack() as on_error:
        files = open_files([index.parent / shard for shard in sorted(set(weight_map.values()))])
        for file in files:
            on_error.callback(file.close)
        _check_against_index(index, weight_map, files)
        on_error.pop_all()
    return files


def _weight_map(index: Path) -> dict[str, str]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: weight_map is missing or empty", "download the index again")
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise CheckpointError(f"{index}: weight_map has {shard!r} for {tensor}, not a file name")
    return weight_map


def _check_against_index(index: Path, weight_map: dict[str, str], files: list[WeightFile]) -> None:
    stored = {(file.path.name, name) for file in files for name in file.tensors}
    for tensor, shard in weight_map.items():
        if (shard, tensor) not in stored:
            raise CheckpointError(
                f"{index.parent / shard} has no {tensor}, which {index.name} lists there",
                "download both again",
            )
    for shard, tensor in sorted(stored):
        if weight_map.get(tensor) != shard:
            raise CheckpointError(
                f"{index.parent / shard} has {tensor}, which {index.name} does not list there",
                "download both again",
            )
