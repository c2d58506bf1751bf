"""Checkpoints of torch.save: the same GGUF as from safetensors, flat memory, and no code that runs."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.tiny_checkpoints import edit_config, make_checkpoint

import pigguf
from pigguf.checkpoint import Checkpoint
from pigguf.checkpoint.torch_file import TorchFile
from pigguf.errors import CheckpointError, InvalidTensor, MissingPackage, MissingTensor, ReadError

State = dict[str, torch.Tensor]
BIN = "pytorch_model.bin"


def as_bin(checkpoint: Path, change: Callable[[State], State] = lambda state: state, **options: Any) -> None:
    """Replace model.safetensors by pytorch_model.bin."""
    state = change(load_file(checkpoint / "model.safetensors"))
    (checkpoint / "model.safetensors").unlink()
    torch.save(state, checkpoint / BIN, **options)


def gguf(checkpoint: Path, **options: Any) -> bytes:
    target = checkpoint.parent / "model.gguf"
    pigguf.convert(checkpoint, target, **options)
    return target.read_bytes()


# ---- valid files -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_one_file_gives_the_same_gguf_as_safetensors(
    zipped: bool, dtype: torch.dtype, tmp_path: Path
) -> None:
    checkpoint = make_checkpoint(tmp_path / "piglet", dtype=dtype)
    expected = gguf(checkpoint, type="Q8_0")
    as_bin(checkpoint, _use_new_zipfile_serialization=zipped)
    assert gguf(checkpoint, type="Q8_0") == expected
    (checkpoint / BIN).rename(checkpoint / "pytorch_model.pt")
    assert gguf(checkpoint, type="Q8_0") == expected


def test_shards_with_an_index_give_the_same_gguf(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "piglet")
    expected = gguf(checkpoint)
    split_into_shards(checkpoint)
    assert gguf(checkpoint) == expected


def split_into_shards(checkpoint: Path) -> Path:
    """Write two shards with an index, as transformers 4 did, and return the index."""
    state = load_file(checkpoint / "model.safetensors")
    (checkpoint / "model.safetensors").unlink()
    weight_map = {}
    for number, names in enumerate([list(state)[:9], list(state)[9:]], 1):
        name = f"pytorch_model-0000{number}-of-00002.bin"
        torch.save({tensor: state[tensor] for tensor in names}, checkpoint / name)
        weight_map |= dict.fromkeys(names, name)
    index = checkpoint / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return index


def test_a_tied_lm_head_saved_beside_the_embedding_is_the_same_tensor(tmp_path: Path) -> None:
    """Save one storage under both names, as transformers 4 did."""
    checkpoint = make_checkpoint(tmp_path / "piglet", tie_word_embeddings=True)
    expected = gguf(checkpoint)
    as_bin(checkpoint, lambda state: {**state, "lm_head.weight": state["model.embed_tokens.weight"]})
    with Checkpoint.open(checkpoint) as opened:
        assert "lm_head.weight" in opened.tensors
    assert gguf(checkpoint) == expected


def as_views(state: State) -> State:
    """Return views: half of a larger storage, or a transpose of a transpose; strided vectors."""
    views = {}
    for number, (name, tensor) in enumerate(state.items()):
        if tensor.ndim == 1:
            views[name] = torch.stack([tensor, tensor + 1], dim=1)[:, 0]
        elif number % 2:
            views[name] = torch.cat([tensor - 1, tensor])[len(tensor) :]
        else:
            views[name] = tensor.T.contiguous().T
    assert any(not view.is_contiguous() for view in views.values())
    assert any(view.storage_offset() for view in views.values())
    return views


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_views_are_read_correctly(zipped: bool, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "piglet", dtype=torch.bfloat16)
    expected = gguf(checkpoint)
    as_bin(checkpoint, as_views, _use_new_zipfile_serialization=zipped)
    assert gguf(checkpoint) == expected


DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2]
DTYPES += [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (5,), (3, 4), (0, 4), (2, 3, 4)], ids=str)
def test_every_dtype_and_shape_reads_as_torch_wrote_it(
    dtype: torch.dtype, shape: tuple[int, ...], tmp_path: Path
) -> None:
    values = (torch.arange(int(np.prod(shape))) % 3).reshape(shape).to(dtype)
    for zipped in (True, False):
        if not zipped and "float8" in str(dtype):
            continue  # torch cannot write such a file
        torch.save({"a": values}, tmp_path / "a.bin", _use_new_zipfile_serialization=zipped)
        file = TorchFile.open(tmp_path / "a.bin")
        tensor = file.tensors["a"]
        actual = tensor.load()
        assert actual.shape == shape
        np.testing.assert_array_equal(actual.astype(np.float64), values.double().numpy())
        rows = [tensor.read(row, row + 1) for row in range(tensor.rows)]
        if rows:
            np.testing.assert_array_equal(np.concatenate(rows).reshape(shape), actual)
        file.close()


def test_safetensors_are_preferred_as_in_transformers(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "piglet")
    torch.save({"other": torch.zeros(1)}, checkpoint / BIN)
    with Checkpoint.open(checkpoint) as opened:
        assert "other" not in opened.tensors
    shards = make_checkpoint(tmp_path / "shards", max_shard_size="50KB")
    assert (shards / "model.safetensors.index.json").exists()
    torch.save({"other": torch.zeros(1)}, shards / BIN)
    with Checkpoint.open(shards) as opened:
        assert "other" not in opened.tensors


def test_memory_stays_flat_whatever_the_files_size(tmp_path: Path) -> None:
    """Read 200 MB of weights in a process that may grow by a tenth of that."""
    weights = {f"layer{n}": torch.zeros(5000, 1000, dtype=torch.float16) for n in range(20)}
    torch.save(weights, tmp_path / BIN)
    del weights
    code = """
import re, sys, torch
from pathlib import Path
from pigguf.checkpoint.torch_file import TorchFile
from pigguf.common.lazy_tensor import SLAB_ELEMENTS
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
torch.save({"a": torch.zeros(3)}, sys.argv[2])
TorchFile.open(Path(sys.argv[2])).close()
before = peak()
file = TorchFile.open(Path(sys.argv[1]))
for tensor in file.tensors.values():
    for start, stop in tensor.slabs(SLAB_ELEMENTS):
        assert not tensor.read(start, stop).any()
print(peak() - before)
"""
    command = [sys.executable, "-c", code, str(tmp_path / BIN), str(tmp_path / "small.bin")]
    grown = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert (tmp_path / BIN).stat().st_size > 200e6
    assert grown < 20e6


# ---- damaged files ----------------------------------------------------------------------------------


def assert_error(path: Path, *words: str, error: type[Exception] = CheckpointError) -> None:
    with pytest.raises(error) as raised:
        Checkpoint.open(path)
    message = raised.value.message  # type: ignore[attr-defined]
    for word in words:
        assert word in message
    assert "\n" not in message
    assert raised.value.hint  # type: ignore[attr-defined]


@pytest.fixture
def piglet(tmp_path: Path) -> Path:
    checkpoint = make_checkpoint(tmp_path / "piglet")
    as_bin(checkpoint)
    return checkpoint


class DirectoryMaker:
    """An object whose pickle creates a directory when it is loaded without weights_only."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.target),))


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_a_pickle_with_code_is_refused_and_not_run(zipped: bool, piglet: Path, tmp_path: Path) -> None:
    marker = tmp_path / "the code ran"
    torch.save({"a": DirectoryMaker(marker)}, piglet / BIN, _use_new_zipfile_serialization=zipped)
    torch.load(piglet / BIN, weights_only=False)  # the code does run without weights_only
    assert marker.exists()
    marker.rmdir()
    assert_error(piglet, BIN, "posix.mkdir", "code")
    assert not marker.exists()


def test_a_bare_pickle_is_refused_and_not_run(piglet: Path, tmp_path: Path) -> None:
    marker = tmp_path / "the code ran"
    (piglet / BIN).write_bytes(pickle.dumps(DirectoryMaker(marker), protocol=2))
    assert_error(piglet, BIN)
    assert not marker.exists()


def test_a_pickled_model_instead_of_its_weights_is_refused(piglet: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), piglet / BIN)
    assert_error(piglet, BIN, "torch.nn.modules.linear.Linear", "code")
    torch.save({"model": {"a": torch.zeros(2)}}, piglet / BIN)
    assert_error(piglet, BIN, "model is dict, not a dense tensor")
    torch.save({"a": torch.eye(3).to_sparse()}, piglet / BIN)
    assert_error(piglet, BIN, "a is a tensor of layout torch.sparse_coo")
    torch.save({"a": torch.zeros(2, dtype=torch.complex64)}, piglet / BIN)
    assert_error(piglet, BIN, "a is torch.complex64")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, but such files exist
        torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(2)), piglet / BIN)
    assert_error(piglet, BIN, "TorchScript")


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_a_file_truncated_anywhere_is_refused(zipped: bool, piglet: Path) -> None:
    torch.save({"a": torch.arange(40), "b": torch.zeros(3, 4)}, piglet / BIN,
               _use_new_zipfile_serialization=zipped)  # fmt: skip
    whole = (piglet / BIN).read_bytes()
    for length in range(0, len(whole), 1 if len(whole) < 900 else 7):
        (piglet / BIN).write_bytes(whole[:length])
        assert_error(piglet, BIN)


def test_a_file_that_shrinks_while_it_is_read_is_an_error(piglet: Path) -> None:
    with Checkpoint.open(piglet) as opened:
        os.truncate(piglet / BIN, 4000)
        with pytest.raises(ReadError, match="became shorter"):
            for tensor in opened.tensors.values():
                tensor.load()


def rewrite_zip(file: Path, change: Callable[[str, bytes], tuple[bytes, int]]) -> None:
    """Rewrite the entries of a zip file with other contents and compression."""
    with zipfile.ZipFile(file) as archive:
        entries = [(name, archive.read(name)) for name in archive.namelist()]
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in entries:
            content, compression = change(name, content)
            archive.writestr(name, content, compression)


def test_a_zip_bomb_is_refused_before_it_is_unpacked(piglet: Path) -> None:
    bomb = b"\0" * 300_000_000  # 300 KB in the file
    rewrite_zip(
        piglet / BIN, lambda name, content: (bomb if name.endswith(".pkl") else content, zipfile.ZIP_DEFLATED)
    )
    assert (piglet / BIN).stat().st_size < 2_000_000
    assert_error(piglet, BIN, "data.pkl is compressed")


def test_compressed_weights_are_refused_not_misread(piglet: Path) -> None:
    def deflate_one(name: str, content: bytes) -> tuple[bytes, int]:
        return content, zipfile.ZIP_DEFLATED if name.endswith("data/0") else zipfile.ZIP_STORED

    rewrite_zip(piglet / BIN, deflate_one)
    assert_error(piglet, BIN, "data/0 is compressed")


def test_a_storage_shorter_than_its_tensor_is_refused(piglet: Path) -> None:
    rewrite_zip(
        piglet / BIN,
        lambda n, content: (content[:-4] if n.endswith("data/0") else content, zipfile.ZIP_STORED),
    )
    assert_error(piglet, BIN, "the storage of", "bytes")


def rewrite_pickle(file: Path, change: Callable[[bytes], bytes]) -> None:
    rewrite_zip(
        file,
        lambda name, content: (change(content) if name.endswith(".pkl") else content, zipfile.ZIP_STORED),
    )


def test_absurd_sizes_are_refused_quickly(piglet: Path) -> None:
    """Replace numbers in the pickle by huge ones."""
    torch.save({"a": torch.zeros(70_000)}, piglet / BIN)
    expected, absurd = struct.pack("<i", 70_000), struct.pack("<i", 2**31 - 1)
    with zipfile.ZipFile(piglet / BIN) as archive:
        count = archive.read(next(name for name in archive.namelist() if name.endswith(".pkl"))).count(
            expected
        )
    assert count == 2  # elements of the storage, and of the tensor
    rewrite_pickle(piglet / BIN, lambda content: content.replace(expected, absurd))
    assert_error(piglet, BIN)
    torch.save({"a": torch.zeros(70_000)}, piglet / BIN)
    rewrite_pickle(piglet / BIN, lambda content: absurd.join(content.rsplit(expected, 1)))
    assert_error(piglet, BIN)
    torch.save({"a": torch.zeros(1).expand(10_000_000, 1_000)}, piglet / BIN)
    assert_error(piglet, BIN, "a [10000000, 1000] takes")


def test_a_file_of_a_big_endian_machine_is_refused(piglet: Path) -> None:
    rewrite_zip(
        piglet / BIN,
        lambda name, content: (b"big" if name.endswith("byteorder") else content, zipfile.ZIP_STORED),
    )
    assert_error(piglet, BIN, "big-endian")


def test_shards_and_index_must_agree(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "piglet")
    index = split_into_shards(checkpoint)
    content = json.loads(index.read_text())
    content["weight_map"]["lm_head.bias"] = "pytorch_model-00001-of-00002.bin"
    index.write_text(json.dumps(content))
    assert_error(checkpoint, "pytorch_model-00001-of-00002.bin", "has no lm_head.bias", index.name)
    (checkpoint / "pytorch_model-00002-of-00002.bin").unlink()
    assert_error(checkpoint, "pytorch_model-00002-of-00002.bin is missing", index.name)


def test_files_are_closed_when_a_checkpoint_is_refused(piglet: Path) -> None:
    edit_config(piglet, quantization_config={"quant_method": "awq"})
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(pigguf.PigError):
        Checkpoint.open(piglet)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_directory_with_a_weight_files_name_is_an_error(piglet: Path) -> None:
    (piglet / BIN).unlink()
    (piglet / BIN).mkdir()
    assert_error(piglet, BIN, "directory", error=ReadError)
    (piglet / "model.safetensors").mkdir()
    assert_error(piglet, "model.safetensors", "directory", error=ReadError)


def test_without_torch_the_hint_says_what_to_install(piglet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert_error(piglet, BIN, "torch", error=MissingPackage)


def test_an_integer_or_missing_tensor_is_named(piglet: Path) -> None:
    state = torch.load(piglet / BIN)
    state["model.norm.weight"] = state["model.norm.weight"].to(torch.int8)
    torch.save(state, piglet / BIN)
    with pytest.raises(InvalidTensor, match=r"output_norm.weight is stored as I8"):
        gguf(piglet)
    del state["model.norm.weight"]
    torch.save(state, piglet / BIN)
    with pytest.raises(MissingTensor, match=r"lacks the tensor model.norm.weight"):
        gguf(piglet)
    buffer = io.BytesIO()
    torch.save({}, buffer)
    (piglet / BIN).write_bytes(buffer.getvalue())
    with pytest.raises(MissingTensor, match="lacks the tensor"):
        gguf(piglet)
