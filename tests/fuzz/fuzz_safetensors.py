"""Open mutated safetensors files and read those that open: `python fuzz_safetensors.py DIRECTORY SEED COUNT`.

It runs as a child process of the test, because it looks for crashes, hangs and runaway memory. It prints each
case before it tries it, and at the end how many files were refused and read, and by how many bytes its
memory grew.
"""

from __future__ import annotations

import json
import random
import re
import resource
import signal
import struct
import sys
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save

from pigguf.checkpoint.safetensors_file import SafetensorsFile
from pigguf.errors import PigError

SECONDS = 10  # a case that takes longer hangs
MEMORY = 4 << 30  # address space of the whole process
SAMPLE = save(
    {
        "model.embed_tokens.weight": np.arange(77, dtype=np.float32).reshape(11, 7),
        "model.norm.weight": np.arange(6, dtype=np.float16),
        "model.layers.0.mlp.up_proj.weight": np.ones((4, 6), ml_dtypes.bfloat16),
        "experts": np.ones((2, 3, 4), np.float32),
        "position_ids": np.arange(5, dtype=np.int64),
        "nothing": np.empty((0, 4), np.float32),
        "scale": np.array(3.0, np.float32),
    },
    metadata={"format": "pt"},
)
NUMBERS = ["0", "-1", "1", "2", "77", "4294967295", "4294967296", "9223372036854775807", "1e3", "1.5", "true"]
NUMBERS += [
    str(2**64),
    str(10**30),
    "1" * 400,
    "1" * 5000,
    "1e400",
    "NaN",
    "Infinity",
    "null",
    '"4"',
    "[]",
    "{}",
]
VALUES: list[Any] = [
    None,
    True,
    0,
    -1,
    1.5,
    2**64,
    "",
    "F32",
    "x" * 20_000,
    [],
    {},
    [[]],
    [0],
    [0, 0],
    [0, 4],
]
VALUES += [[2**40, 2**40], [0, 2**62], [1] * 40, [-1, -1], ["0", "4"], [[0], [4]], {"dtype": "F32"}]
DTYPES = ["F32", "F16", "BF16", "F64", "I8", "BOOL", "F8_E4M3", "F8_E8M0", "F4", "", "f32", 32, None, [], {}]
NAMES = [
    "",
    "a",
    "__metadata__",
    "x" * 5_000,
    "a\nb",
    "\x1b[31m",
    "\ud800",
    "\0",
    "caf\u00e9",
    "a{b}",
    'a"b',
    "\U0001f600",
]


def change_bytes(chance: random.Random) -> bytes:
    """Change bytes, mostly in the header."""
    data = bytearray(SAMPLE)
    end = len(data) if chance.random() < 0.2 else 8 + _header_length(SAMPLE)
    for _ in range(chance.choice((1, 1, 2, 8, 64))):
        data[chance.randrange(end)] = chance.randrange(256)
    return bytes(data)


def remove_bytes(chance: random.Random) -> bytes:
    """Remove bytes at the end, or anywhere."""
    if chance.random() < 0.5:
        return SAMPLE[: chance.randrange(len(SAMPLE))]
    start = chance.randrange(len(SAMPLE))
    return SAMPLE[:start] + SAMPLE[start + chance.randrange(1, 200) :]


def insert_bytes(chance: random.Random) -> bytes:
    """Insert bytes of the file itself, or one byte many times."""
    start, position = chance.randrange(len(SAMPLE)), chance.randrange(len(SAMPLE) + 1)
    more = SAMPLE[start : start + chance.randrange(1, 200)]
    if chance.random() < 0.3:
        more = bytes([chance.choice(b'\0 {}[]",:\\9')]) * chance.choice((1, 10, 1_000, 200_000))
    return SAMPLE[:position] + more + SAMPLE[position:]


def change_header_length(chance: random.Random) -> bytes:
    """Change the length of the header."""
    numbers = (0, 1, 2**20, 10**8, 10**8 + 1, 2**31, 2**32, 2**50, 2**63 - 1, 2**63, 2**64 - 1)
    near = _header_length(SAMPLE) + chance.randrange(-40, 40)
    return struct.pack("<Q", chance.choice((*numbers, near))) + SAMPLE[8:]


def change_numbers(chance: random.Random) -> bytes:
    """Change numbers in the header."""
    header = _header(SAMPLE).decode()
    for _ in range(chance.choice((1, 1, 2, 5))):
        match = chance.choice(list(re.finditer(r"\d+", header)))
        header = header[: match.start()] + chance.choice(NUMBERS) + header[match.end() :]
    return _file(header.encode(), SAMPLE)


def change_entries(chance: random.Random) -> bytes:
    """Remove or replace keys of entries."""
    entries = json.loads(_header(SAMPLE))
    for _ in range(chance.choice((1, 1, 2, 4))):
        name = chance.choice(sorted(entries))
        key = chance.choice(("dtype", "shape", "data_offsets", "more", None))
        if key is None or not isinstance(entries[name], dict):
            entries[name] = deepcopy(chance.choice(VALUES))
        elif chance.random() < 0.2:
            entries[name].pop(key, None)
        else:
            entries[name][key] = deepcopy(chance.choice(DTYPES if key == "dtype" else VALUES))
    return _file(json.dumps(entries).encode(), SAMPLE)


def swap_entries(chance: random.Random) -> bytes:
    """Give an entry another dtype with a matching shape, or another tensor's offsets."""
    entries = json.loads(_header(SAMPLE))
    first, second = chance.sample(sorted(entries.keys() - {"__metadata__"}), 2)
    kind = chance.choice(("swapped", "overlapping", "moved", "retyped"))
    if kind == "swapped":
        entries[first], entries[second] = entries[second], entries[first]
    elif kind == "overlapping":
        entries[first]["data_offsets"] = entries[second]["data_offsets"]
    elif kind == "moved":
        shift = chance.choice((-8, -1, 1, 4, 2**31))
        entries[first]["data_offsets"] = [offset + shift for offset in entries[first]["data_offsets"]]
    else:
        begin, end = entries[first]["data_offsets"]
        entries[first] = {"dtype": chance.choice(("U8", "F8_E4M3", "BOOL")), "shape": [end - begin],
                          "data_offsets": [begin, end]}  # fmt: skip
    return _file(json.dumps(entries).encode(), SAMPLE)


def change_names(chance: random.Random) -> bytes:
    """Use invalid or duplicate names."""
    entries = list(json.loads(_header(SAMPLE)).items())
    index = chance.randrange(len(entries))
    entries[index] = (chance.choice((*NAMES, chance.choice(entries)[0])), entries[index][1])
    members = [f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in entries]
    if chance.random() < 0.3:
        members.insert(index, chance.choice(members))
    return _file(f"{{{','.join(members)}}}".encode(), SAMPLE)


def nest_brackets(chance: random.Random) -> bytes:
    """Use very many brackets, as an entry, in one, or as the whole header."""
    count = chance.choice((10, 3_000, 100_000, 300_000))
    deep = (
        "[" * count + "]" * count,
        '{"a":' * count + "0" + "}" * count,
        "[" + "[]," * count + "0]",
        "{" * count,
        '{"":"' + "\\u0041" * count + '"}',
    )
    around = (
        "%s",
        '{"a": %s}',
        '{"a": {"dtype": "F32", "shape": %s, "data_offsets": [0, 4]}}',
        '{"__metadata__": %s}',
    )
    return _file((chance.choice(around) % chance.choice(deep)).encode(), SAMPLE)


def random_bytes(chance: random.Random) -> bytes:
    """Use random bytes as the header, with its length."""
    return _file(chance.randbytes(chance.choice((0, 1, 7, 100, 3_000))), SAMPLE)


MUTATIONS: tuple[Callable[[random.Random], bytes], ...] = (
    *(change_bytes, remove_bytes, insert_bytes, change_header_length, change_numbers, change_entries),
    *(swap_entries, change_names, nest_brackets, random_bytes),
)


def _header_length(data: bytes) -> int:
    return int.from_bytes(data[:8], "little")


def _header(data: bytes) -> bytes:
    return data[8 : 8 + _header_length(data)]


def _file(header: bytes, data: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + data[8 + _header_length(data) :]


def read_all(path: Path) -> None:
    """Do everything that a conversion does with a file."""
    file = SafetensorsFile.open(path)
    try:
        for name, tensor in file.tensors.items():
            name.encode()
            assert tensor.load().shape == tensor.shape
            assert sum(tensor.read(*rows).size for rows in tensor.slabs(5)) == tensor.elements
            assert tensor.equals(tensor) or tensor.dtype.startswith("F") or tensor.dtype == "BF16"
    finally:
        file.close()


def peak_bytes() -> int:
    """Return the peak memory of this process; ru_maxrss would include its parent's."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024


def main() -> None:
    directory, seed, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    path = directory / "case.safetensors"
    path.write_bytes(SAMPLE)
    read_all(path)
    before = peak_bytes()
    refused = read = 0
    for number in range(seed, seed + count):
        chance = random.Random(number)
        mutate = chance.choice(MUTATIONS)
        sys.stdout.write(f"{number} {mutate.__name__}\n")
        sys.stdout.flush()
        path.write_bytes(mutate(chance))
        signal.alarm(SECONDS)
        try:
            read_all(path)
            read += 1
        except PigError as error:
            refused += 1
            if not error.message.isprintable() or len(error.message) > 4_000:
                raise AssertionError(f"a message that cannot be shown: {error.message[:4_000]!a}") from error
        signal.alarm(0)
    grown = peak_bytes() - before
    sys.stdout.write(f"{refused} refused, {read} read, {grown} bytes\n")


if __name__ == "__main__":
    main()
