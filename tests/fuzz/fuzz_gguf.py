"""Read damaged GGUFs one after another: `python fuzz_gguf.py DIRECTORY SEED COUNT`, a child of the tests.

Valid files of our writer (plain, with every type of array, split) are changed at random: bits flipped, ranges
removed, inserted and moved, ends truncated, and numbers of the header (counts, lengths, types, shapes,
offsets) set to odd values. The reader may raise a PigError, or read the file; then the file must be
consistent: its tensors can be read to the end, `inspect` works, and its header, written again, is the same.

Anything else ends the process, with the seed that reproduces the case: another exception, 64 MB more memory
than at the start (RLIMIT_AS), or five seconds of CPU time. Not here: what llama.cpp does with such files
(fuzz_engine.py).
"""

from __future__ import annotations

import json
import random
import resource
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

import pigguf
from pigguf.errors import PigError
from pigguf.gguf_io import (
    PlannedTensor,
    TensorData,
    TensorType,
    plan_files,
    read_header,
    read_shard,
    row_bytes,
    serialize_header,
    write_gguf,
    write_gguf_files,
)
from pigguf.gguf_io.metadata import TypedValue, array, boolean, f32, string, u32

MEMORY = 64 << 20
SECONDS = 5
ODD = (0, 1, 2, 3, 4, 7, 8, 9, 13, 31, 32, 33, 63, 64, 65, 127, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31)
ODD += (2**32 - 1, 2**32, 2**61, 2**62, 2**63 - 1, 2**63, 2**64 - 2, 2**64 - 1)

METADATA = {
    "general.architecture": string("llama"),
    "general.name": string("piglet 🐷"),
    "llama.context_length": u32(8192),
    "llama.embedding_length": u32(64),
    "llama.block_count": u32(2),
    "llama.offsettention.head_count": u32(4),
    "llama.rope.scaling.type": string("linear"),
    "llama.rope.scaling.factor": f32(4.0),
    "llama.rope.freq_base": f32(1e4),
    "tokenizer.ggml.add_bos_token": boolean(False),
    "tokenizer.ggml.tokens": array("str", ("<s>", "猪", "a b", "")),
    "tokenizer.ggml.token_type": array("i32", (3, 1, 1, 1)),
}
ARRAYS: dict[str, TypedValue] = {
    "general.alignment": u32(64),
    "none": array("str", ()),
    **{
        f"array.{kind}": array(kind, (0, 1, 2, 3, 100))  # type: ignore[arg-type]
        for kind in ("u8", "i8", "u16", "i16", "u32", "i32", "u64", "i64", "f32", "f64")
    },
    "array.bool": array("bool", (True, False)),
    **{
        f"one.{kind}": TypedValue(kind, 7)  # type: ignore[arg-type]
        for kind in ("u8", "i8", "u16", "i16", "i32", "u64", "i64", "f64")
    },
}
SHAPES = {
    "token_embd.weight": ((4, 64), TensorType.F16),
    "output_norm.weight": ((64,), TensorType.F32),
    "blk.0.offsettn_q.weight": ((4, 64), TensorType.Q8_0),
    "blk.0.ffn.weight": ((2, 3, 32), TensorType.Q4_0),
    "blk.1.ffn.weight": ((2, 256), TensorType.Q4_K),
}


class Field(NamedTuple):
    """The offset of a number of a header, and its width in bytes."""

    offset: int
    width: int


class Sample(NamedTuple):
    """Valid files by name, and the fields of each; the first file is the one that is opened."""

    files: dict[str, bytes]
    fields: dict[str, list[Field]]


# ---- valid files ---------------------------------------------------------------------------------


def samples(directory: Path) -> list[Sample]:
    write_gguf(directory / "plain.gguf", METADATA, tensors())
    write_gguf(directory / "arrays.gguf", {**METADATA, **ARRAYS}, tensors())
    files = plan_files(directory / "parts.gguf", METADATA, tensors(), 700)
    write_gguf_files(files)
    written = [[directory / "plain.gguf"], [directory / "arrays.gguf"], [file.path for file in files]]
    assert len(written[2]) > 1
    return [
        Sample({p.name: p.read_bytes() for p in paths}, {p.name: fields(p.read_bytes()) for p in paths})
        for paths in written
    ]


def tensors() -> list[PlannedTensor]:
    chance = np.random.default_rng(0)
    planned = []
    for name, (shape, kind) in SHAPES.items():
        rows = int(np.prod(shape[:-1]))
        data = chance.integers(0, 256, rows * row_bytes(kind, shape[-1]), dtype=np.uint8)
        whole = [(0, rows if len(shape) > 1 else shape[0])]
        planned.append(PlannedTensor(name, shape, kind, whole, lambda a, b, data=data: data))
    return planned


def fields(whole: bytes) -> list[Field]:
    """Return every number of a header that decides how the rest is read (docs/gguf.md)."""
    result: list[Field] = []
    offset = 4

    def number(width: int) -> int:
        nonlocal offset
        result.append(Field(offset, width))
        offset += width
        return int.from_bytes(whole[offset - width : offset], "little")

    def text() -> None:
        nonlocal offset
        length = number(8)
        offset += length

    def value(kind: int) -> None:
        nonlocal offset
        if kind == 8:
            text()
        elif kind == 9:
            element, count = number(4), number(8)
            for _ in range(count):
                value(element)
        else:
            number({0: 1, 1: 1, 7: 1, 2: 2, 3: 2, 10: 8, 11: 8, 12: 8}.get(kind, 4))

    number(4)
    tensor_count, key_count = number(8), number(8)
    for _ in range(key_count):
        text()
        value(number(4))
    for _ in range(tensor_count):
        text()
        for _ in range(number(4)):
            number(8)
        number(4)
        number(8)
    return result


# ---- damage --------------------------------------------------------------------------------------

Damage = Callable[[random.Random, bytearray, list[Field]], None]


def flip_bits(chance: random.Random, data: bytearray, fields: list[Field]) -> None:
    for _ in range(chance.choice((1, 1, 2, 8, 64))):
        if data:
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def set_fields(chance: random.Random, data: bytearray, fields: list[Field]) -> None:
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        offset, width = chance.choice(fields)
        old = int.from_bytes(data[offset : offset + width], "little")
        new = chance.choice((*ODD, old + 1, old - 1, old * 2, chance.getrandbits(8 * width)))
        data[offset : offset + width] = (new % 256**width).to_bytes(width, "little")


def swap_fields(chance: random.Random, data: bytearray, fields: list[Field]) -> None:
    one, two = chance.sample(fields, 2)
    width = min(one.width, two.width)
    first, second = data[one.offset : one.offset + width], data[two.offset : two.offset + width]
    data[one.offset : one.offset + width], data[two.offset : two.offset + width] = second, first


def cut_end(chance: random.Random, data: bytearray, fields: list[Field]) -> None:
    del data[chance.choice((chance.randrange(len(data) + 1), chance.choice(fields).offset)) :]


def splice(chance: random.Random, data: bytearray, fields: list[Field]) -> None:
    """Copy a range, from field to field or anywhere, to another offset: overwriting, or inserted."""
    offsets = sorted(field.offset for field in fields) if chance.random() < 0.6 else range(len(data) + 1)
    begin, end = sorted((chance.choice(offsets), chance.choice(offsets)))
    moved = data[begin : min(end, begin + 400)]
    to = chance.choice(offsets)
    data[to : to + chance.choice((0, len(moved)))] = moved


def drop(chance: random.Random, data: bytearray, fields: list[Field]) -> None:
    begin, end = sorted((chance.choice(fields).offset, chance.choice(fields).offset))
    del data[begin : begin + min(end - begin, chance.choice((1, 4, 8, 100)))]


DAMAGES: tuple[Damage, ...] = (flip_bits, set_fields, swap_fields, cut_end, splice, drop)


def cases(directory: Path, seed: int, count: int) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yield `count` cases: the damages that were done, and every file of the case."""
    whole = samples(directory)
    for number in range(count):
        chance = random.Random(f"{seed}:{number}")
        sample = chance.choice(whole)
        name = chance.choice(list(sample.files))
        data = bytearray(sample.files[name])
        done = chance.choices(DAMAGES, k=chance.choice((1, 1, 1, 2, 3)))
        for damage in done:
            left = [field for field in sample.fields[name] if field.offset + field.width <= len(data)]
            damage(chance, data, left if len(left) > 1 else [Field(0, 0)] * 2)
        kinds = "+".join(sorted({damage.__name__ for damage in done}))
        yield kinds, {**sample.files, name: bytes(data)}


# ---- checks --------------------------------------------------------------------------------------


def try_one(path: Path) -> None:
    """Read a model completely.

    Raises:
        PigError: the file is refused.
    """
    file = read_header(path)
    with TensorData(file) as data:
        for tensor in file.tensors.values():
            data.rows(tensor, 0, tensor.rows)
    copy = path.with_name("copy.gguf")
    for shard in map(read_shard, file.shards):
        header = serialize_header(shard.metadata, list(shard.tensors.values()))
        copy.write_bytes(header + shard.path.read_bytes()[shard.data_offset :])
        read = read_shard(copy)
        assert list(read.tensors) == list(shard.tensors)
        assert serialize_header(read.metadata, list(read.tensors.values())) == header
    pigguf.inspect(path)


class OutOfTime(BaseException):
    """The time is up; not an OSError like TimeoutError, which the reader could take for a bad file."""


def out_of_time(*_: object) -> None:
    raise OutOfTime(f"{SECONDS} seconds of computing")


def limit() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    maximum = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (maximum, maximum))
    signal.signal(signal.SIGVTALRM, out_of_time)


def main() -> None:
    directory, seed, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    refused: Counter[str] = Counter()
    accepted: Counter[str] = Counter()
    raised_at: set[str] = set()
    every = cases(directory, seed, count)
    case = directory / "case"
    case.mkdir()
    for number, (kinds, files) in enumerate(every):
        if not number:
            limit()
        for name, data in files.items():
            (case / name).write_bytes(data)
        signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
        try:
            try_one(case / next(iter(files)))
            accepted[kinds] += 1
        except PigError as error:
            refused[kinds] += 1
            if not error.hint or not error.message.startswith(str(case)):
                sys.exit(f"no hint or no file: {error.message} ({error.hint})")
            *_, frame = traceback.extract_tb(error.__traceback__)
            raised_at.add(f"{Path(frame.filename).name}:{frame.lineno}")
        except BaseException as error:
            sys.exit(
                f"case {number} of seed {seed} ({kinds}), kept in {case}: {error!r}\n{traceback.format_exc()}"
            )
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    sys.stdout.write(json.dumps({"refused": refused, "accepted": accepted, "raised_at": sorted(raised_at)}))


if __name__ == "__main__":
    main()
