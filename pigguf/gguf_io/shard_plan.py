"""How a model is cut into several files: their names, their keys, and which tensor goes where.

All as llama.cpp does it (tools/gguf-split/gguf-split.cpp; src/llama.cpp, llama_split_path): the names are
NAME-00001-of-00003.gguf and so on; three keys stand in every part, all others in the first alone; tensors
keep their order and are never cut, and a part ends where the next one would make its tensors too large.

Where gguf-split stops or makes one part, we differ: a tensor that is too large by itself is a part by
itself, and what fits into one file is a plain one under its plain name (as gguf-py's writer has it).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from pigguf.errors import UsageError
from pigguf.gguf_io.layout import DEFAULT_ALIGNMENT, padded
from pigguf.gguf_io.metadata import Kind, Metadata, Typed
from pigguf.gguf_io.writer import PlannedFile, PlannedTensor

NUMBER, COUNT, TENSORS = "split.no", "split.count", "split.tensors.count"
SPLIT_KINDS: dict[str, Kind] = {NUMBER: "u16", TENSORS: "i32", COUNT: "u16"}  # in gguf-split's order
MOST_PARTS = 2**16 - 1

_PART = re.compile(r"(?s)(?P<name>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


def part_path(directory: Path, name: str, number: int, count: int) -> Path:
    """Where part `number`, from 0, of `count` lies."""
    return directory / f"{name}-{number + 1:05}-of-{count:05}.gguf"


def model_name_of(part: Path, number: int, count: int) -> str | None:
    """NAME of NAME-00001-of-00003.gguf; None where a part of that number is not called so."""
    found = _PART.fullmatch(part.name)
    if found is None or (int(found["number"]), int(found["count"])) != (number + 1, count):
        return None
    return found["name"]


def planned_files(
    target: Path, metadata: Metadata, tensors: Sequence[PlannedTensor], shard_size: int | None = None
) -> tuple[PlannedFile, ...]:
    """The file that is to be `target`, or the parts called after it, in order.

    Args:
        target: the whole file's path; NAME.gguf becomes NAME-00001-of-00003.gguf beside it.
        metadata: every key of the model; none of them says how files are cut.
        tensors: every tensor, in order.
        shard_size: most bytes of tensors in one file; None is no limit.

    Raises:
        UsageError: more parts than can be numbered.
    """
    groups = _grouped(tensors, shard_size)
    if len(groups) == 1:
        return (PlannedFile(target, metadata, groups[0]),)
    if len(groups) > MOST_PARTS:
        raise UsageError(
            f"a shard size of {shard_size} bytes makes {len(groups)} parts, more than {MOST_PARTS}",
            "take a larger --shard-size",
        )
    name = target.name.removesuffix(".gguf")
    return tuple(
        PlannedFile(
            part_path(target.parent, name, number, len(groups)),
            {**(metadata if number == 0 else {}), **_split_keys(number, len(groups), len(tensors))},
            group,
        )
        for number, group in enumerate(groups)
    )


def _split_keys(number: int, count: int, tensors: int) -> dict[str, Typed]:
    values = {NUMBER: number, COUNT: count, TENSORS: tensors}
    return {key: Typed(kind, values[key]) for key, kind in SPLIT_KINDS.items()}


def _grouped(
    tensors: Sequence[PlannedTensor], shard_size: int | None
) -> tuple[tuple[PlannedTensor, ...], ...]:
    """Tensors in order, file by file; there is always one."""
    groups: list[list[PlannedTensor]] = [[]]
    used = 0
    for tensor in tensors:
        nbytes = padded(tensor.nbytes, DEFAULT_ALIGNMENT)
        if groups[-1] and shard_size is not None and used + nbytes > shard_size:
            groups.append([])
            used = 0
        groups[-1].append(tensor)
        used += nbytes
    return tuple(map(tuple, groups))
