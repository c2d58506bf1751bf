"""GGUF reading and writing compared with gguf-py's reader and writer, and of damaged files."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest

from pigguf.errors import GGUFError, OutputError, PigError, UnsupportedModel
from pigguf.gguf_io import (
    PlannedTensor,
    TensorData,
    TensorType,
    file_size,
    read_header,
    serialize_header,
    write_gguf,
)
from pigguf.gguf_io.metadata import TypedValue, array, boolean, f32, string, u32

METADATA = {
    "general.architecture": string("llama"),
    "general.name": string("piglet 🐷"),
    "llama.context_length": u32(8192),
    "llama.rope.scaling.factor": f32(4.0),
    "tokenizer.ggml.add_bos_token": boolean(False),
    "tokenizer.ggml.tokens": array("str", ("<s>", "猪", "a b")),
    "tokenizer.ggml.scores": array("f32", (0.0, -1.0, -2.5)),
    "tokenizer.ggml.token_type": array("i32", (3, 1, 1)),
}


def planned(name: str, values: np.ndarray, kind: TensorType = TensorType.F32, step: int = 3) -> PlannedTensor:
    slabs = [(start, min(start + step, len(values))) for start in range(0, len(values), step)]
    return PlannedTensor(name, values.shape, kind, slabs, lambda start, stop: values[start:stop])


def small_tensors() -> list[PlannedTensor]:
    rng = np.random.default_rng(7)
    return [
        planned("token_embd.weight", rng.normal(size=(10, 7)).astype(np.float32)),
        planned("output_norm.weight", rng.normal(size=7).astype(np.float32)),
        planned("half.weight", rng.normal(size=(5, 33)).astype(np.float16), TensorType.F16),
    ]


@pytest.fixture
def small_file(tmp_path: Path) -> Path:
    path = tmp_path / "small.gguf"
    write_gguf(path, METADATA, small_tensors())
    return path


def test_gguf_py_reads_what_we_write(small_file: Path) -> None:
    reader = gguf.GGUFReader(small_file)
    for key, typed in METADATA.items():
        contents = reader.fields[key].contents()
        expected = list(typed.value) if typed.is_array else typed.value
        assert contents == expected, key
    by_name = {tensor.name: tensor for tensor in reader.tensors}
    for tensor in small_tensors():
        written = by_name[tensor.name]
        assert tuple(int(n) for n in written.shape) == tensor.shape[::-1]
        np.testing.assert_array_equal(written.data.reshape(tensor.shape), tensor.encode(0, tensor.shape[0]))


def test_we_read_what_gguf_py_writes(tmp_path: Path) -> None:
    path = tmp_path / "peer.gguf"
    values = np.random.default_rng(3).normal(size=(4, 64)).astype(np.float32)
    packed = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("llama.block_count", 2)
    writer.add_array("numbers", [1.5, 2.5])
    writer.add_tensor("a.weight", packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("b.weight", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    file = read_header(path)
    assert file.architecture == "llama"
    assert file.metadata["llama.block_count"] == u32(2)
    assert file.metadata["numbers"] == TypedValue("f32", (1.5, 2.5), is_array=True)
    assert file.tensors["a.weight"].shape == (4, 64)
    with TensorData(file) as data:
        np.testing.assert_array_equal(data.rows(file.tensors["a.weight"], 1, 3), packed[1:3])
        np.testing.assert_array_equal(data.rows(file.tensors["b.weight"], 0, 4).view(np.float32), values)


@pytest.mark.parametrize("alignment", [32, 128])
def test_a_header_is_what_gguf_py_writes_byte_for_byte(alignment: int, tmp_path: Path) -> None:
    path = tmp_path / "peer.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_custom_alignment(alignment)
    writer.add_string("general.name", "piglet 🐷")
    writer.add_array("tokens", ["<s>", "猪"])
    writer.add_array("numbers", [1, -2])
    writer.add_bool("truth", True)
    writer.add_float64("precise", 0.1)
    packed = gguf.quants.quantize(np.ones((3, 64), np.float32), gguf.GGMLQuantizationType.Q4_0)
    writer.add_tensor("a.weight", packed, raw_dtype=gguf.GGMLQuantizationType.Q4_0)
    writer.add_tensor("b.weight", np.ones((2, 3, 5), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    file = read_header(path)
    assert file.alignment == alignment
    header = serialize_header(file.metadata, list(file.tensors.values()))
    assert header == path.read_bytes()[: file.data_offset]


def test_tensors_are_aligned_to_general_alignment(tmp_path: Path) -> None:
    path = tmp_path / "wide.gguf"
    write_gguf(path, {**METADATA, "general.alignment": u32(256)}, small_tensors())
    file = read_header(path)
    assert all(tensor.offset % 256 == 0 for tensor in file.tensors.values())
    with TensorData(file) as data:
        for tensor in small_tensors():
            stored = data.rows(file.tensors[tensor.name], 0, file.tensors[tensor.name].rows)
            assert stored.tobytes() == tensor.encode(0, tensor.shape[0]).tobytes()


@pytest.mark.parametrize(
    ("typed", "words"),
    [(u32(2**32), "odd.*u32"), (TypedValue("f32", 1e300), "odd.*f32"), (string("\ud800"), "odd")],
)
def test_a_value_that_does_not_fit_its_type_is_named(typed: TypedValue, words: str) -> None:
    with pytest.raises(GGUFError, match=words) as raised:
        serialize_header({"odd": typed}, [])
    assert raised.value.hint


def test_an_empty_array_is_kept(tmp_path: Path) -> None:
    write_gguf(tmp_path / "empty.gguf", {**METADATA, "none": array("str", ())}, [])
    assert read_header(tmp_path / "empty.gguf").metadata["none"] == array("str", ())


def test_round_trip_keeps_every_key_and_the_size(small_file: Path) -> None:
    file = read_header(small_file)
    assert file.metadata == METADATA
    assert file.size == file_size(METADATA, small_tensors()) == small_file.stat().st_size


def test_a_file_cut_at_any_byte_is_refused(small_file: Path, tmp_path: Path) -> None:
    whole = small_file.read_bytes()
    last = max(read_header(small_file).tensors.values(), key=lambda tensor: tensor.offset)
    cut = tmp_path / "cut.gguf"
    for length in range(last.offset + last.nbytes):
        cut.write_bytes(whole[:length])
        with pytest.raises(GGUFError, match=r"ends|truncated|not a GGUF|bytes long|more than fit in a file"):
            read_header(cut)


def test_any_flipped_byte_of_the_header_is_read_or_refused_but_never_anything_else(
    small_file: Path, tmp_path: Path
) -> None:
    whole = small_file.read_bytes()
    end = read_header(small_file).data_offset
    bad = tmp_path / "bad.gguf"
    refused = 0
    for at in range(end):
        for flip in (0x01, 0x80, 0xFF):
            bad.write_bytes(whole[:at] + bytes([whole[at] ^ flip]) + whole[at + 1 :])
            try:
                read_header(bad)
            except PigError:
                refused += 1
    assert refused > end  # more than a third of all flips touch a length, a count, a type or an offset


@pytest.mark.parametrize(
    ("content", "error", "words"),
    [
        (b"", GGUFError, "ends at byte 0"),
        (b"PK\x03\x04 not a model", GGUFError, "not a GGUF file"),
        (b"hi\n", GGUFError, "not a GGUF file"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), UnsupportedModel, "version 1"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), UnsupportedModel, "big-endian"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0), GGUFError, "tensors, more than fit in a file"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 60), GGUFError, "metadata keys, more than"),
    ],
)
def test_other_files_are_refused_by_name(tmp_path: Path, content: bytes, error: type, words: str) -> None:
    path = tmp_path / "wrong.gguf"
    path.write_bytes(content)
    with pytest.raises(error, match=words) as raised:
        read_header(path)
    assert str(path) in raised.value.message
    assert raised.value.hint


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(GGUFError, match="No such file"):
        read_header(tmp_path / "absent.gguf")


def test_a_failing_encoder_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "model.gguf"
    target.write_bytes(b"precious")

    def broken(start: int, stop: int) -> np.ndarray:
        raise ValueError("no rows today")

    tensors = [*small_tensors(), PlannedTensor("x.weight", (4, 4), TensorType.F32, [(0, 4)], broken)]
    with pytest.raises(ValueError, match="no rows today"):
        write_gguf(target, METADATA, tensors)
    assert target.read_bytes() == b"precious"
    assert os.listdir(tmp_path) == ["model.gguf"]


KILLED = """
import os, signal, sys
sys.path[:0] = [{tests!r}]
from gguf_io.test_gguf_io import METADATA, small_tensors
from pigguf.gguf_io import PlannedTensor, TensorType, write_gguf
def die(start, stop):
    os.kill(os.getpid(), signal.SIGKILL)
deadly = PlannedTensor("x", (4, 4), TensorType.F32, [(0, 4)], die)
write_gguf({target!r}, METADATA, [*small_tensors(), deadly])
"""


@pytest.mark.skipif(not hasattr(os, "O_TMPFILE"), reason="needs files without a name (Linux)")
def test_kill_minus_nine_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "model.gguf"
    target.write_bytes(b"precious")
    script = KILLED.format(tests=str(Path(__file__).parents[1]), target=str(target))
    finished = subprocess.run([sys.executable, "-c", script], check=False)
    assert finished.returncode == -signal.SIGKILL
    assert target.read_bytes() == b"precious"
    assert os.listdir(tmp_path) == ["model.gguf"]


LIMITED = """
import resource, signal, sys
sys.path[:0] = [{tests!r}]
from gguf_io.test_gguf_io import METADATA, planned
from pigguf.errors import OutputError
from pigguf.gguf_io import write_gguf
import numpy as np
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    write_gguf({target!r}, METADATA, [planned("x.weight", np.zeros((1000, 1000), np.float32), step=10)])
except OutputError as error:
    print(error.message, "|", error.hint)
"""


def test_a_write_that_fails_midway_is_an_error_that_leaves_nothing(tmp_path: Path) -> None:
    target = tmp_path / "model.gguf"
    script = LIMITED.format(tests=str(Path(__file__).parents[1]), target=str(target))
    finished = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert "File too large | the file is larger than" in finished.stdout
    assert os.listdir(tmp_path) == []


def test_too_little_disk_space_is_refused_before_a_byte_is_written(tmp_path: Path) -> None:
    huge = PlannedTensor(
        "x.weight", (1 << 40, 256), TensorType.F32, [(0, 1)], lambda start, stop: np.zeros(0)
    )
    with pytest.raises(OutputError, match="GB and the disk has"):
        write_gguf(tmp_path / "model.gguf", METADATA, [huge])
    assert os.listdir(tmp_path) == []


def test_directories_are_not_created(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="is not a directory"):
        write_gguf(tmp_path / "absent" / "model.gguf", METADATA, small_tensors())
    with pytest.raises(OutputError, match="is a directory"):
        write_gguf(tmp_path, METADATA, small_tensors())


def test_a_new_file_has_the_permissions_the_umask_leaves(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_gguf(tmp_path / "model.gguf", METADATA, small_tensors())
    finally:
        os.umask(before)
    assert (tmp_path / "model.gguf").stat().st_mode & 0o777 == 0o640
