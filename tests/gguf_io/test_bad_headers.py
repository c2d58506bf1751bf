"""Invalid headers: each one is refused with its file named, at once, and without using much memory."""

from __future__ import annotations

import random
import struct
import time
import tracemalloc
from pathlib import Path

import pytest
from support import raw_gguf

from pigguf.errors import GGUFError
from pigguf.gguf_io import read_header
from pigguf.gguf_io.header_reader import MAX_HEADER_BYTES

ARCHITECTURE = raw_gguf.scalar("general.architecture", raw_gguf.STR, "llama")
ONE = raw_gguf.tensor("a", [32])  # 128 bytes of data
DATA = bytes(128)
NAME = "blk.0.weight"


def aligned_to(value: int, kind: int = raw_gguf.U32) -> bytes:
    return raw_gguf.scalar("general.alignment", kind, value)


def whole(keys: list[bytes], tensors: list[bytes], data: bytes) -> bytes:
    return raw_gguf.padded(raw_gguf.header(keys, tensors)) + data


BAD: dict[str, tuple[bytes, str]] = {
    # counts and lengths
    "2^32 keys": (
        raw_gguf.header([ARCHITECTURE], key_count=2**32),
        "4294967296 metadata keys, more than fit in a file",
    ),
    "2^64-1 keys": (raw_gguf.header(key_count=2**64 - 1), "18446744073709551615 metadata keys"),
    "2^63 tensors": (raw_gguf.header([ARCHITECTURE], tensor_count=2**63), "9223372036854775808 tensors"),
    "one key too many": (raw_gguf.header([ARCHITECTURE], key_count=2) + bytes(20), "a metadata key is empty"),
    "a key of 2^63 bytes": (
        raw_gguf.header([raw_gguf.text("k", 2**63)]) + bytes(32),
        "a metadata key is 922337203685477",
    ),
    "a value of 2^63 bytes": (
        raw_gguf.header([raw_gguf.text("k") + struct.pack("<I", raw_gguf.STR) + raw_gguf.text("v", 2**63)]),
        "the value of k is 9223372036854775808 bytes long",
    ),
    "a value one byte too long": (
        raw_gguf.header([raw_gguf.text("k") + struct.pack("<I", raw_gguf.STR) + raw_gguf.text("v", 2)]),
        "the value of k is 2 bytes long",
    ),
    "an array of 2^61 numbers": (
        raw_gguf.header([raw_gguf.array("k", raw_gguf.U64, 2**61, DATA)]),
        "2305843009213693952 elements in k",
    ),
    "an array of 2^64-1 bytes": (
        raw_gguf.header([raw_gguf.array("k", raw_gguf.U8, 2**64 - 1, DATA)]),
        "elements in k",
    ),
    "an array of 2^61 strings": (
        raw_gguf.header([raw_gguf.array("k", raw_gguf.STR, 2**61, DATA)]),
        "2305843009213693952 strings in k",
    ),
    "a string of 2^63 bytes in an array": (
        raw_gguf.header(
            [raw_gguf.array("k", raw_gguf.STR, 2, raw_gguf.text("a") + raw_gguf.text("b", 2**63))]
        ),
        "element 1 of k is 9223372036854775808 bytes long",
    ),
    # keys
    "a key twice": (
        raw_gguf.header([ARCHITECTURE, ARCHITECTURE]),
        "metadata key general.architecture is there twice",
    ),
    "an empty key": (raw_gguf.header([raw_gguf.scalar("", raw_gguf.U32, 1)]), "a metadata key is empty"),
    "a key that is not text": (
        raw_gguf.header([raw_gguf.scalar(b"\xff\xfe", raw_gguf.U32, 1)]),
        "a metadata key is not UTF-8",
    ),
    "a value that is not text": (
        raw_gguf.header([raw_gguf.scalar("k", raw_gguf.STR, b"a\xff")]),
        "value of k is not UTF-8.*byte 1",
    ),
    "an element that is not text": (
        raw_gguf.header([raw_gguf.array("k", raw_gguf.STR, 2, raw_gguf.text("a") + raw_gguf.text(b"\xff"))]),
        "element 1 of k is not UTF-8",
    ),
    "an unknown value type": (
        raw_gguf.header([raw_gguf.text("k") + struct.pack("<II", 13, 0)]),
        "key k has the unknown value type 13",
    ),
    "an unknown element type": (
        raw_gguf.header([raw_gguf.array("k", 2**32 - 1, 1, DATA)]),
        "k is an array of the unknown type",
    ),
    "an array of arrays": (
        raw_gguf.header([raw_gguf.array("k", raw_gguf.ARRAY, 1, struct.pack("<IQI", raw_gguf.U32, 1, 7))]),
        "k is an array of nested arrays",
    ),
    # alignment
    "alignment 0": (whole([aligned_to(0)], [ONE], DATA), "general.alignment is 0, not a power of two"),
    "alignment 48": (whole([aligned_to(48)], [ONE], DATA), "general.alignment is 48, not a power of two"),
    "alignment 2^31": (whole([aligned_to(2**31)], [ONE], DATA), "general.alignment is 2147483648, more than"),
    "an alignment of another type": (
        whole([aligned_to(32, raw_gguf.U64)], [ONE], DATA),
        "general.alignment is u64, not u32",
    ),
    # tensors
    "a tensor twice": (
        whole([], [ONE, raw_gguf.tensor("a", [32], 128)], DATA * 2),
        "tensor a is there twice",
    ),
    "tensors that overlap": (
        whole([], [ONE, raw_gguf.tensor(NAME, [32], 64)], DATA * 2),
        f"tensor {NAME} has the offset 64, not 128",
    ),
    "two tensors at one offset": (
        whole([], [ONE, raw_gguf.tensor(NAME, [32], 0)], DATA * 2),
        f"tensor {NAME} has the offset 0, not 128",
    ),
    "a tensor that is not aligned": (
        whole([], [ONE, raw_gguf.tensor(NAME, [32], 130)], DATA * 3),
        f"tensor {NAME} has the offset 130, not 128",
    ),
    "an offset beyond the file": (
        whole([], [raw_gguf.tensor(NAME, [32], 2**40)], DATA),
        f"tensor {NAME} has the offset 1099511627776, not 0",
    ),
    "an offset of 2^64-1": (
        whole([], [raw_gguf.tensor(NAME, [32], 2**64 - 1)], DATA),
        f"tensor {NAME} has the offset",
    ),
    "a tensor larger than the file": (
        whole([], [raw_gguf.tensor(NAME, [2**40])], DATA),
        f"tensor {NAME} ends at byte",
    ),
    "a tensor without a name": (whole([], [raw_gguf.tensor("", [32])], DATA), "a tensor has no name"),
    "a name that is too long": (
        whole([], [raw_gguf.tensor("n" * 64, [32])], DATA),
        "a tensor name is 64 bytes long, more than 63",
    ),
    "no dimensions": (whole([], [raw_gguf.tensor(NAME, [])], DATA), f"tensor {NAME} has 0 dimensions"),
    "five dimensions": (whole([], [raw_gguf.tensor(NAME, [1] * 5)], DATA), f"tensor {NAME} has 5 dimensions"),
    "2^32-1 dimensions": (
        whole([], [raw_gguf.text(NAME) + struct.pack("<I", 2**32 - 1)], DATA),
        f"tensor {NAME} has 4294967295 dimensions",
    ),
    "a dimension of 0": (
        whole([], [raw_gguf.tensor(NAME, [32, 0])], DATA),
        rf"{NAME} has the invalid shape \(0, 32\)",
    ),
    "a dimension of 2^63": (
        whole([], [raw_gguf.tensor(NAME, [2**63])], DATA),
        f"{NAME} has the invalid shape",
    ),
    "more elements than can be counted": (
        whole([], [raw_gguf.tensor(NAME, [2**32, 2**32, 2**32])], DATA),
        f"{NAME} has the invalid shape",
    ),
    "an unknown tensor type": (
        whole([], [raw_gguf.tensor(NAME, [32], kind=200)], DATA),
        f"tensor {NAME} has the unknown type 200",
    ),
    "half a block": (
        whole([], [raw_gguf.tensor(NAME, [33], kind=8)], DATA),
        f"tensor {NAME} has rows of 33 elements, not whole Q8_0 blocks",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_an_invalid_header_is_refused_at_once(case: str, tmp_path: Path) -> None:
    content, words = BAD[case]
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    begun = time.perf_counter()
    with pytest.raises(GGUFError, match=words) as refusal:
        read_header(path)
    assert time.perf_counter() - begun < 1
    assert refusal.value.message.startswith(f"{path}: ")
    assert refusal.value.hint


def test_the_same_bytes_without_an_error_are_read(tmp_path: Path) -> None:
    path = tmp_path / "good.gguf"
    path.write_bytes(
        whole([ARCHITECTURE, aligned_to(64)], [ONE, raw_gguf.tensor(NAME, [32, 2], 128)], DATA * 4)
    )
    file = read_header(path)
    assert file.tensors[NAME].shape == (2, 32)
    assert file.architecture == "llama"


def test_a_message_shows_little_of_a_long_key(tmp_path: Path) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(raw_gguf.header([raw_gguf.text("\x1b[2J" + "k" * 60_000) + struct.pack("<II", 13, 0)]))
    with pytest.raises(GGUFError, match="has the unknown value type 13") as refusal:
        read_header(path)
    assert len(refusal.value.message) < len(str(path)) + 200
    assert "\x1b" not in refusal.value.message


# ---- memory and time -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key",
    [
        raw_gguf.array("k", raw_gguf.I32, 2**31),
        raw_gguf.array("k", raw_gguf.STR, 2**30),
        raw_gguf.text("k") + struct.pack("<IQ", raw_gguf.STR, 2**32),
    ],
)
def test_a_bad_count_in_a_large_file_does_not_read_the_model_as_metadata(key: bytes, tmp_path: Path) -> None:
    """Truncate a file to 16 GB of nothing: the count fits into the file, but not into a header."""
    path = tmp_path / "large.gguf"
    path.write_bytes(raw_gguf.header([key]))
    with path.open("r+b") as file:
        file.truncate(16 << 30)
    tracemalloc.start()
    try:
        with pytest.raises(GGUFError, match=str(MAX_HEADER_BYTES)) as refusal:
            read_header(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert str(path) in refusal.value.message
    assert refusal.value.hint


SIZE = 1 << 18
RANDOM = random.Random(0).randbytes(4 * SIZE)  # each 16-bit number is one object: 9 MB for all
WORDS = [f"{number:04x}" for number in range(SIZE // 18)]
FULL: dict[str, bytes] = {
    **{
        f"numbers of type {kind}": raw_gguf.header(
            [raw_gguf.array("k", kind, len(RANDOM) // struct.calcsize(code), RANDOM)]
        )
        for kind, code in raw_gguf.CODES.items()
    },
    "empty strings": raw_gguf.header([raw_gguf.array("k", raw_gguf.STR, SIZE // 8, bytes(SIZE))]),
    "short strings": raw_gguf.header(
        [raw_gguf.array("k", raw_gguf.STR, SIZE // 11, raw_gguf.text("猪") * (SIZE // 11))]
    ),
    "keys": raw_gguf.header(
        [raw_gguf.scalar(word, raw_gguf.U32, 1000 + number) for number, word in enumerate(WORDS)]
    ),
    "empty arrays": raw_gguf.header([raw_gguf.array(word, raw_gguf.STR, 0) for word in WORDS]),
    "tensors": raw_gguf.header(
        [aligned_to(1)], [raw_gguf.tensor(word, [1], number, 24) for number, word in enumerate(WORDS)]
    )
    + bytes(SIZE),
}


@pytest.mark.parametrize("case", FULL)
def test_a_header_takes_no_more_than_twelve_times_its_size(case: str, tmp_path: Path) -> None:
    path = tmp_path / "full.gguf"
    path.write_bytes(FULL[case])
    tracemalloc.start()
    try:
        read_header(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 12 * path.stat().st_size
