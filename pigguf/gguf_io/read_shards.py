"""read_header: the header of a model, from one file or from all the parts of a split one.

Any part will do: the others lie beside it, under the names that llama.cpp's gguf-split gives them. What
llama.cpp checks of parts (src/llama-model-loader.cpp) is checked, and that they belong together, as far
as their keys and tensors tell.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pigguf.errors import GGUFError
from pigguf.gguf_io.layout import GGUFFile, GGUFTensor
from pigguf.gguf_io.metadata import Typed
from pigguf.gguf_io.reader import read_part
from pigguf.gguf_io.shard_plan import (
    COUNT,
    NUMBER,
    SPLIT_KINDS,
    TENSORS,
    model_name_of,
    part_path,
)

_STRANGERS = "these parts are not of one model: download or convert them again, all together"


def read_header(path: str | os.PathLike[str]) -> GGUFFile:
    """Read and check the header of a GGUF, joined where `path` is one of the parts of a split one.

    The metadata is the model's: split.no, split.count and split.tensors.count, which tell how the files
    are cut, are not in it.

    Raises:
        GGUFError: a file is missing, not GGUF, damaged, or shorter than its header says; or the parts do
            not belong together.
        UnsupportedModel: a whole GGUF of a sort that is not read (version 1, big-endian).
        ReadError: the system refuses to read it.
    """
    file = read_part(path)
    count = _split_number(file, COUNT) or 0  # llama-gguf-split --merge leaves a 0
    if count <= 1:
        return replace(file, metadata=_without_split_keys(file))
    parts = [file if path == file.path else _read_beside(path) for path in _paths(file, count)]
    for number, part in enumerate(parts):
        _check_part(part, number, parts[0])
    tensors = _joined(parts)
    expected = _split_number(parts[0], TENSORS)
    if expected is not None and len(tensors) != expected:
        raise GGUFError(
            f"{parts[0].path}: its {count} parts hold {len(tensors)} tensors, and {TENSORS} is {expected}",
            _STRANGERS,
        )
    return replace(
        parts[0],
        metadata=_without_split_keys(parts[0]),
        tensors=tensors,
        size=sum(part.size for part in parts),
        alignment=min(part.alignment for part in parts),
        parts=tuple(part.path for part in parts),
    )


def _paths(file: GGUFFile, count: int) -> list[Path]:
    """Where all the parts lie, the one that was read among them."""
    number = _split_number(file, NUMBER)
    if number is None or number >= count:
        raise GGUFError(f"{file.path}: {NUMBER} is {number}, and {COUNT} is {count}")
    name = model_name_of(file.path, number, count)
    if name is None:
        raise GGUFError(
            f"{file.path}: this is part {number + 1} of {count} by its keys ({NUMBER}, {COUNT}), and not "
            "by its name",
            f"rename it: llama.cpp finds parts by names such as {part_path(Path(), 'NAME', number, count)}",
        )
    return [part_path(file.path.parent, name, other, count) for other in range(count)]


def _read_beside(path: Path) -> GGUFFile:
    if not path.exists():
        raise GGUFError(f"{path}: this part of the model is missing", "put all the parts into one directory")
    return read_part(path)


def _check_part(part: GGUFFile, number: int, first: GGUFFile) -> None:
    """A part says of itself what its name says, and nothing that the first part does not."""
    found = _split_number(part, NUMBER)
    if found != number:
        raise GGUFError(f"{part.path}: {NUMBER} is {found}, not {number}", _STRANGERS)
    for key in (COUNT, TENSORS):
        found, expected = _split_number(part, key), _split_number(first, key)
        if found != expected and found is not None:
            raise GGUFError(f"{part.path}: {key} is {found}, and {expected} in {first.path}", _STRANGERS)
    for key, typed in part.metadata.items():
        # llama.cpp reads the first part's keys alone; alignment is each file's own
        if key not in SPLIT_KINDS and key != "general.alignment" and typed != first.metadata.get(key):
            raise GGUFError(f"{part.path}: metadata key {key} is not as in {first.path}", _STRANGERS)


def _joined(parts: Sequence[GGUFFile]) -> dict[str, GGUFTensor]:
    tensors: dict[str, GGUFTensor] = {}
    for number, part in enumerate(parts):
        for name, tensor in part.tensors.items():
            if name in tensors:
                other = parts[tensors[name].part].path
                raise GGUFError(f"{part.path}: tensor {name} stands in {other} too", _STRANGERS)
            tensors[name] = replace(tensor, part=number)
    return tensors


def _split_number(file: GGUFFile, key: str) -> int | None:
    """A number of the split; another type than llama.cpp's own would make it abort."""
    typed = file.metadata.get(key)
    if typed is None:
        return None
    if typed.kind != SPLIT_KINDS[key] or typed.is_array:
        kind = f"{typed.kind}{'[]' if typed.is_array else ''}"
        raise GGUFError(f"{file.path}: {key} is {kind}, not {SPLIT_KINDS[key]}")
    return int(typed.value)


def _without_split_keys(file: GGUFFile) -> dict[str, Typed]:
    return {key: typed for key, typed in file.metadata.items() if key not in SPLIT_KINDS}
