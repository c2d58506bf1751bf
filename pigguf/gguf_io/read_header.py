"""read_header: the header of a model, from one file or from all the shards of a split model.

Any shard may be given: the others are in the same directory, under the names that llama.cpp's gguf-split
gives them. Everything that llama.cpp checks of shards (src/llama-model-loader.cpp) is checked, and whether
they belong together, as far as their keys and tensors show it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pigguf.errors import GGUFError
from pigguf.gguf_io.header_reader import read_shard
from pigguf.gguf_io.layout import GGUFFile, GGUFTensor
from pigguf.gguf_io.metadata import TypedValue
from pigguf.gguf_io.shard_plan import (
    SPLIT_COUNT,
    SPLIT_KEY_TYPES,
    SPLIT_NO,
    SPLIT_TENSORS_COUNT,
    parse_shard_name,
    shard_path,
)

_NOT_ONE_MODEL = "these shards are not of one model: download or convert all of them again"


def read_header(path: str | os.PathLike[str]) -> GGUFFile:
    """Read and check the header of a GGUF; if `path` is a shard of a split model, that of all shards.

    The metadata is the model's: it lacks split.no, split.count and split.tensors.count.

    Raises:
        GGUFError: a file is missing, not GGUF, damaged, or shorter than its header states; or the shards do
            not belong together.
        UnsupportedModel: a valid GGUF of an unsupported kind (version 1, big-endian).
        ReadError: a file cannot be read.
    """
    file = read_shard(path)
    count = _split_number(file, SPLIT_COUNT) or 0  # llama-gguf-split --merge writes 0
    if count <= 1:
        return replace(file, metadata=_without_split_keys(file))
    shards = [file if path == file.path else _read_sibling(path) for path in _shard_paths(file, count)]
    for number, shard in enumerate(shards):
        _check_shard(shard, number, shards[0])
    tensors = _join_tensors(shards)
    expected = _split_number(shards[0], SPLIT_TENSORS_COUNT)
    if expected is not None and len(tensors) != expected:
        raise GGUFError(
            f"{shards[0].path}: its {count} shards have {len(tensors)} tensors, and {SPLIT_TENSORS_COUNT} is "
            f"{expected}",
            _NOT_ONE_MODEL,
        )
    return replace(
        shards[0],
        metadata=_without_split_keys(shards[0]),
        tensors=tensors,
        size=sum(shard.size for shard in shards),
        alignment=min(shard.alignment for shard in shards),
        shards=tuple(shard.path for shard in shards),
    )


def _shard_paths(file: GGUFFile, count: int) -> list[Path]:
    """Return the paths of all shards, including the one that was read."""
    number = _split_number(file, SPLIT_NO)
    if number is None or number >= count:
        raise GGUFError(f"{file.path}: {SPLIT_NO} is {number}, and {SPLIT_COUNT} is {count}")
    name = parse_shard_name(file.path, number, count)
    if name is None:
        raise GGUFError(
            f"{file.path}: this is shard {number + 1} of {count} by its keys ({SPLIT_NO}, {SPLIT_COUNT}), "
            "but not by its name",
            f"rename it: llama.cpp finds shards by names such as {shard_path(Path(), 'NAME', number, count)}",
        )
    return [shard_path(file.path.parent, name, other, count) for other in range(count)]


def _read_sibling(path: Path) -> GGUFFile:
    if not path.exists():
        raise GGUFError(
            f"{path}: this shard of the model is missing", "put all the shards into one directory"
        )
    return read_shard(path)


def _check_shard(shard: GGUFFile, number: int, first: GGUFFile) -> None:
    """Check that a shard's keys match its name and those of the first shard."""
    actual = _split_number(shard, SPLIT_NO)
    if actual != number:
        raise GGUFError(f"{shard.path}: {SPLIT_NO} is {actual}, not {number}", _NOT_ONE_MODEL)
    for key in (SPLIT_COUNT, SPLIT_TENSORS_COUNT):
        actual, expected = _split_number(shard, key), _split_number(first, key)
        if actual != expected and actual is not None:
            raise GGUFError(
                f"{shard.path}: {key} is {actual}, and {expected} in {first.path}", _NOT_ONE_MODEL
            )
    for key, typed in shard.metadata.items():
        # llama.cpp reads only the first shard's keys; the alignment may differ between files
        if key not in SPLIT_KEY_TYPES and key != "general.alignment" and typed != first.metadata.get(key):
            raise GGUFError(f"{shard.path}: metadata key {key} differs from {first.path}", _NOT_ONE_MODEL)


def _join_tensors(shards: Sequence[GGUFFile]) -> dict[str, GGUFTensor]:
    tensors: dict[str, GGUFTensor] = {}
    for number, shard in enumerate(shards):
        for name, tensor in shard.tensors.items():
            if name in tensors:
                other = shards[tensors[name].shard].path
                raise GGUFError(f"{shard.path}: tensor {name} is in {other} too", _NOT_ONE_MODEL)
            tensors[name] = replace(tensor, shard=number)
    return tensors


def _split_number(file: GGUFFile, key: str) -> int | None:
    """Return the value of a split key; llama.cpp aborts if it has another type than its own."""
    typed = file.metadata.get(key)
    if typed is None:
        return None
    if typed.type != SPLIT_KEY_TYPES[key] or typed.is_array:
        kind = f"{typed.type}{'[]' if typed.is_array else ''}"
        raise GGUFError(f"{file.path}: {key} is {kind}, not {SPLIT_KEY_TYPES[key]}")
    return int(typed.value)


def _without_split_keys(file: GGUFFile) -> dict[str, TypedValue]:
    return {key: typed for key, typed in file.metadata.items() if key not in SPLIT_KEY_TYPES}
