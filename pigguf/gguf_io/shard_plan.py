"""How a model is split into shards: their names, their keys, and which tensor goes where.

As in llama.cpp (tools/gguf-split/gguf-split.cpp; src/llama.cpp, llama_split_path): the names are
NAME-00001-of-00003.gguf and so on; three keys are in every shard, all others only in the first; tensors keep
their order and are never split, and a shard ends where the next tensor would make it too large.

Two differences: a tensor that is too large by itself becomes a shard by itself (gguf-split fails), and a
model that fits into one file keeps its plain name (as with gguf-py's writer).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from pigguf.errors import UsageError
from pigguf.gguf_io.layout import DEFAULT_ALIGNMENT, padded_size
from pigguf.gguf_io.metadata import Metadata, TypedValue, ValueType
from pigguf.gguf_io.writer import PlannedFile, PlannedTensor

SPLIT_NO, SPLIT_COUNT, SPLIT_TENSORS_COUNT = "split.no", "split.count", "split.tensors.count"
SPLIT_KEY_TYPES: dict[str, ValueType] = {
    SPLIT_NO: "u16",
    SPLIT_TENSORS_COUNT: "i32",
    SPLIT_COUNT: "u16",
}  # in gguf-split's order
MAX_SHARDS = 2**16 - 1

_SHARD = re.compile(r"(?s)(?P<name>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


def shard_path(directory: Path, name: str, number: int, count: int) -> Path:
    """Return the path of shard `number`, from 0, of `count`."""
    return directory / f"{name}-{number + 1:05}-of-{count:05}.gguf"


def parse_shard_name(path: Path, number: int, count: int) -> str | None:
    """Return NAME of NAME-00001-of-00003.gguf, or None if the file name is not that of this shard."""
    match = _SHARD.fullmatch(path.name)
    if match is None or (int(match["number"]), int(match["count"])) != (number + 1, count):
        return None
    return match["name"]


def plan_files(
    target: Path, metadata: Metadata, tensors: Sequence[PlannedTensor], shard_size: int | None = None
) -> tuple[PlannedFile, ...]:
    """Plan the file `target`, or the shards that are named after it, in order.

    Args:
        target: the path of the whole file; for NAME.gguf, shards are NAME-00001-of-00003.gguf and so on.
        metadata: every key of the model, without split keys.
        tensors: every tensor, in order.
        shard_size: the maximum bytes of tensors in one file; None for no limit.

    Raises:
        UsageError: there are more shards than can be numbered.
    """
    groups = _group_tensors(tensors, shard_size)
    if len(groups) == 1:
        return (PlannedFile(target, metadata, groups[0]),)
    if len(groups) > MAX_SHARDS:
        raise UsageError(
            f"a shard size of {shard_size} bytes makes {len(groups)} shards, more than {MAX_SHARDS}",
            "use a larger `shard_size`",
        )
    name = target.name.removesuffix(".gguf")
    return tuple(
        PlannedFile(
            shard_path(target.parent, name, number, len(groups)),
            {**(metadata if number == 0 else {}), **_split_keys(number, len(groups), len(tensors))},
            group,
        )
        for number, group in enumerate(groups)
    )


def _split_keys(number: int, count: int, tensors: int) -> dict[str, TypedValue]:
    values = {SPLIT_NO: number, SPLIT_COUNT: count, SPLIT_TENSORS_COUNT: tensors}
    return {key: TypedValue(kind, values[key]) for key, kind in SPLIT_KEY_TYPES.items()}


def _group_tensors(
    tensors: Sequence[PlannedTensor], shard_size: int | None
) -> tuple[tuple[PlannedTensor, ...], ...]:
    """Return the tensors of each file, in order; there is always at least one file."""
    groups: list[list[PlannedTensor]] = [[]]
    used = 0
    for tensor in tensors:
        nbytes = padded_size(tensor.nbytes, DEFAULT_ALIGNMENT)
        if groups[-1] and shard_size is not None and used + nbytes > shard_size:
            groups.append([])
            used = 0
        groups[-1].append(tensor)
        used += nbytes
    return tuple(map(tuple, groups))
