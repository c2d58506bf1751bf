"""Mutated safetensors files are read or refused, without a crash, a hang or runaway memory."""

from __future__ import annotations

import re
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pigguf.checkpoint.safetensors_file import MAX_HEADER_BYTES, SafetensorsFile
from pigguf.errors import CheckpointError

FUZZ = Path(__file__).parent / "fuzz_safetensors.py"
GROWTH = 30_000_000  # bytes; the largest case has 2 MB


def fuzz(directory: Path, seed: int, count: int, timeout: float) -> None:
    command = [sys.executable, str(FUZZ), str(directory), str(seed), str(count)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    lines = done.stdout.splitlines() or ["before the first case"]
    assert done.returncode == 0, f"{lines[-1]}: code {done.returncode}\n{done.stderr[-3000:]}"
    refused, read, grown = map(int, re.findall(r"\d+", lines[-1]))
    assert refused + read == count
    assert refused > count * 0.8
    assert read > count * 0.01  # some mutations change nothing that matters
    assert grown < GROWTH


def test_two_thousand_mutated_files_are_read_or_refused(tmp_path: Path) -> None:
    fuzz(tmp_path, seed=0, count=2_000, timeout=60)


@pytest.mark.slow
def test_a_hundred_thousand_mutated_files_are_read_or_refused(tmp_path: Path) -> None:
    fuzz(tmp_path, seed=1_000_000, count=100_000, timeout=1200)


# Headers of the largest size, in the forms that could take most time or memory
LARGEST = {
    "space": b" " * MAX_HEADER_BYTES,
    "brackets": b'{"a":' + b"[]," * (MAX_HEADER_BYTES // 3 - 2),
    "an entry of brackets": b'{"a":{"shape":' + b"[]," * (MAX_HEADER_BYTES // 3 - 6),
    "a name": b'{"' + b"a" * (MAX_HEADER_BYTES - 9),
    "escapes": b'{"' + b"\\u00e9" * (MAX_HEADER_BYTES // 6 - 1),
    "metadata": b'{"__metadata__":{' + b'"":"",' * (MAX_HEADER_BYTES // 6 - 4),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", LARGEST)
def test_a_header_of_the_largest_size_takes_a_few_times_its_own_memory(kind: str, tmp_path: Path) -> None:
    header = LARGEST[kind]
    (tmp_path / "large").write_bytes(struct.pack("<Q", len(header)) + header)
    code = """
import re, sys
from pathlib import Path
from pigguf.checkpoint.safetensors_file import SafetensorsFile
from pigguf.errors import CheckpointError
try:
    SafetensorsFile.open(Path(sys.argv[1]))
except CheckpointError as error:
    assert len(error.message) < 1000
    print(int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024)
"""
    command = [sys.executable, "-c", code, str(tmp_path / "large")]
    peak = int(subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout)
    assert peak < 6 * MAX_HEADER_BYTES


def assert_error(path: Path, header: bytes, words: str) -> None:
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    begun = time.monotonic()
    with pytest.raises(CheckpointError, match=words) as raised:
        SafetensorsFile.open(path)
    assert raised.value.hint
    assert time.monotonic() - begun < 2


ENTRY = b'{"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}'


def test_headers_that_fuzzing_found_are_refused_with_a_reason(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    assert_error(file, b'{"a": %s, "a": %s}' % (ENTRY, ENTRY), "it has two entries for a")
    assert_error(file, b'{"a": {"dtype": "F16", %s}' % ENTRY[1:], "the entry of a has a duplicate key")
    assert_error(file, b'{"a": %s}' % ENTRY.replace(b'"F32"', b'["F32"]'), "the entry of a is")
    assert_error(file, b'{"a": %s}' % ENTRY.replace(b"[2]", b"[%s]" % (b"9" * 400)), "the entry of a is")
    assert_error(file, b'{"a": %s}' % ENTRY.replace(b"[2]", b"[0, 4611686018427387904]"), "the entry of a is")
    assert_error(file, b'{"a\\u001b[31m": %s}' % ENTRY, "not a valid tensor name")
    assert_error(file, b'{"\\ud800": %s}' % ENTRY, "not a valid tensor name")
    assert_error(file, b'{"a": %s} x' % ENTRY, "there is text after")
    assert_error(file, b'{"a": %s,}' % ENTRY, "it is not JSON")
    assert_error(file, b'{"__metadata__": [], "a": %s}' % ENTRY, "__metadata__ is not an object")
    assert_error(file, b'{"__metadata__": {"a": 1}, "a": %s}' % ENTRY, "it is not JSON")


def test_space_and_metadata_are_as_the_format_allows(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    header = b' { "__metadata__" : { "a}" : "{\\"b\\":[" , "c" : "" } , "a" : %s }   ' % ENTRY
    file.write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    assert list(SafetensorsFile.open(file).tensors) == ["a"]
    file.write_bytes(struct.pack("<Q", 8) + b"{}      ")
    assert SafetensorsFile.open(file).tensors == {}


def test_an_empty_tensor_may_begin_where_another_ends(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    header = b'{"a": %s, "b": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}' % ENTRY
    file.write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    assert list(SafetensorsFile.open(file).tensors) == ["b", "a"]
