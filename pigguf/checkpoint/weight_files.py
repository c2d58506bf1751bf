"""The weights of a checkpoint directory as transformers saves them: which files hold them, opened.

Where several forms lie beside each other, the first of FORMS is taken, as transformers does
(modeling_utils.py, _get_resolved_checkpoint_files): safetensors before torch's, one file before shards.
An index and its shards must say the same.

Left out: Meta's own pieces (meta.py).
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from pigguf.checkpoint.json_file import read_json
from pigguf.checkpoint.safetensors_file import SafetensorsFile
from pigguf.checkpoint.torch_file import TorchFile
from pigguf.errors import CheckpointError

WeightFile = SafetensorsFile | TorchFile

FORMS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "pytorch_model.pt",
)


def has_weights(path: Path) -> bool:
    """Whether a directory has weights under one of the names."""
    return any((path / name).exists() for name in FORMS)


def open_weights(path: Path) -> list[WeightFile]:
    """Open the files that hold a directory's weights.

    Raises:
        CheckpointError: there are none, one is missing or damaged, or does not fit its index.
        MissingPackage: torch is needed, and not installed.
        ReadError: the system refuses to read one.
    """
    for name in FORMS:
        if (path / name).exists():
            return _open_shards(path / name) if name.endswith(".json") else open_files([path / name])
    raise CheckpointError(f"{path} holds neither {' nor '.join(FORMS[:2])}", _hint_for_others(path))


def open_files(paths: list[Path]) -> list[WeightFile]:
    """Open several files, or none of them."""
    with ExitStack() as closing:
        files: list[WeightFile] = []
        for path in paths:
            files.append((SafetensorsFile if path.suffix == ".safetensors" else TorchFile).open(path))
            closing.callback(files[-1].close)
        closing.pop_all()
    return files


def _hint_for_others(path: Path) -> str:
    others = sorted(file.name for file in path.iterdir() if file.suffix in (".bin", ".pt", ".pth", ".gguf"))
    loose = sorted(file.name for file in path.glob("*.safetensors"))
    if loose:
        return f"{loose[0]} has another name: rename a single file to {FORMS[0]}, or bring the shards' index"
    if others:
        return f"{others[0]} has a name that says nothing: if it holds the weights, call it pytorch_model.bin"
    return "download the weights too"


def _open_shards(index: Path) -> list[WeightFile]:
    weight_map = _weight_map(index)
    for tensor, shard in weight_map.items():
        if not (index.parent / shard).is_file():
            raise CheckpointError(
                f"{index.parent / shard} is missing ({index.name} says that it holds {tensor})",
                "download the shard",
            )
    with ExitStack() as closing:
        files = open_files([index.parent / shard for shard in sorted(set(weight_map.values()))])
        for file in files:
            closing.callback(file.close)
        _check_against_index(index, weight_map, files)
        closing.pop_all()
    return files


def _weight_map(index: Path) -> dict[str, str]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: weight_map is missing or empty", "download the index again")
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise CheckpointError(f"{index}: weight_map gives {shard!r} for {tensor}, not a file name")
    return weight_map


def _check_against_index(index: Path, weight_map: dict[str, str], files: list[WeightFile]) -> None:
    held = {(file.path.name, name) for file in files for name in file.tensors}
    for tensor, shard in weight_map.items():
        if (shard, tensor) not in held:
            raise CheckpointError(
                f"{index.parent / shard} lacks {tensor}, which {index.name} places there",
                "download both again",
            )
    for shard, tensor in sorted(held):
        if weight_map.get(tensor) != shard:
            raise CheckpointError(
                f"{index.parent / shard} holds {tensor}, which {index.name} does not place there",
                "download both again",
            )
