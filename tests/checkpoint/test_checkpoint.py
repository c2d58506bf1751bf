"""Checkpoint directories compared with the safetensors library, and damaged ones."""

from __future__ import annotations

import json
import os
import shutil
import struct
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from pigguf.checkpoint import Checkpoint
from pigguf.errors import CheckpointError, ReadError

TENSORS = {
    "model.embed_tokens.weight": np.random.default_rng(1).normal(size=(11, 6)).astype(np.float32),
    "model.norm.weight": np.arange(6, dtype=np.float16),
    "model.layers.0.mlp.up_proj.weight": np.arange(24, dtype=np.float32)
    .reshape(4, 6)
    .astype(ml_dtypes.bfloat16),
    "position_ids": np.arange(5, dtype=np.int64),
}


@pytest.fixture
def single(tmp_path: Path) -> Path:
    path = tmp_path / "single"
    path.mkdir()
    (path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    save_file(TENSORS, path / "model.safetensors", metadata={"format": "pt"})
    return path


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    path = tmp_path / "sharded"
    path.mkdir()
    (path / "config.json").write_text("{}")
    weight_map = {}
    for number, names in enumerate([list(TENSORS)[:2], list(TENSORS)[2:]], 1):
        shard = f"model-0000{number}-of-00002.safetensors"
        save_file({name: TENSORS[name] for name in names}, path / shard)
        weight_map |= dict.fromkeys(names, shard)
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return path


@pytest.mark.parametrize("kind", ["single", "sharded"])
def test_every_tensor_reads_as_safetensors_wrote_it(kind: str, request: pytest.FixtureRequest) -> None:
    with Checkpoint.open(request.getfixturevalue(kind)) as checkpoint:
        assert set(checkpoint.tensors) == set(TENSORS)
        for name, values in TENSORS.items():
            tensor = checkpoint.tensors[name]
            assert tensor.shape == values.shape
            loaded = tensor.load()
            assert loaded.dtype == values.dtype
            np.testing.assert_array_equal(loaded, values)
            np.testing.assert_array_equal(tensor.read(1, 3), values[1:3])


def test_optional_json_files_are_read(single: Path) -> None:
    (single / "generation_config.json").write_text('{"eos_token_id": [2, 7]}')
    with Checkpoint.open(single) as checkpoint:
        assert checkpoint.config == {"architectures": ["LlamaForCausalLM"]}
        assert checkpoint.generation_config == {"eos_token_id": [2, 7]}
        assert checkpoint.tokenizer_config == {}


def assert_error(path: Path, *words: str) -> CheckpointError:
    with pytest.raises(CheckpointError) as raised:
        Checkpoint.open(path)
    for word in words:
        assert word in raised.value.message + " " + (raised.value.hint or "")
    return raised.value


def test_a_directory_without_config_is_refused(single: Path) -> None:
    (single / "config.json").unlink()
    assert_error(single, "config.json is missing", "is a complete checkpoint")


def test_a_config_that_is_not_json_is_refused(single: Path) -> None:
    (single / "config.json").write_text('{"a": ')
    assert_error(single, "config.json is not JSON")
    (single / "config.json").write_text("[1]")
    assert_error(single, "is a JSON list, not an object")


def test_a_path_that_is_not_a_checkpoint_is_named(tmp_path: Path, single: Path) -> None:
    assert_error(tmp_path / "absent", "no such directory")
    assert_error(Path("org/model-that-is-not-here"), "no such directory")  # a Path is never a hub's name
    assert_error(single / "config.json", "is a file")
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    assert_error(tmp_path / "x.gguf", "pigguf quantize")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    assert_error(adapter, "adapter", f"pigguf convert BASE --adapter {adapter}")
    (adapter / "config.json").write_text("{}")  # an extended model's, as fine-tuning saves it
    assert_error(adapter, "adapter", f"pigguf convert BASE --adapter {adapter}")


def test_missing_weights_are_named_with_the_files_there_are(single: Path) -> None:
    (single / "model.safetensors").rename(single / "weights.safetensors")
    assert_error(single, "neither model.safetensors nor", "rename")
    (single / "weights.safetensors").unlink()
    (single / "pytorch_model.bin").write_bytes(b"x")
    assert_error(single, "pytorch_model.bin")


def test_a_missing_shard_is_named_with_one_of_its_tensors(sharded: Path) -> None:
    (sharded / "model-00002-of-00002.safetensors").unlink()
    assert_error(sharded, "model-00002-of-00002.safetensors is missing", "up_proj")


def test_shards_and_index_must_agree(sharded: Path) -> None:
    index = sharded / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["lm_head.weight"] = "model-00001-of-00002.safetensors"
    index.write_text(json.dumps(content))
    assert_error(sharded, "has no lm_head.weight, which")
    del content["weight_map"]["lm_head.weight"], content["weight_map"]["model.norm.weight"]
    index.write_text(json.dumps(content))
    assert_error(sharded, "model.norm.weight, which", "does not list there")
    content["weight_map"]["model.norm.weight"] = "../elsewhere.safetensors"
    index.write_text(json.dumps(content))
    assert_error(sharded, "not a file name")


def test_a_shard_cut_at_any_byte_is_refused(single: Path) -> None:
    whole = (single / "model.safetensors").read_bytes()
    for length in range(len(whole)):
        (single / "model.safetensors").write_bytes(whole[:length])
        assert_error(single, "model.safetensors")


def write_with_header(path: Path, header: object, data: bytes) -> None:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (b"{not json", "it is not JSON"),
        ([1, 2], "it is not an object"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, "takes 8 bytes, not 4"),
        (
            {"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}},
            "begins at byte 8 of the data instead of 0",
        ),
        ({"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}, "the entry of a is"),
        ({"a": {"dtype": "F32", "shape": [2]}}, "the entry of a is"),
        ({"a": {"dtype": "F9", "shape": [2], "data_offsets": [0, 8]}}, "unknown dtype 'F9'"),
        ({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}, "its header describes"),
        (
            {
                "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
                "b": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
            },
            "b begins at byte 0 of the data instead of 4",
        ),
    ],
)
def test_an_invalid_header_is_refused(single: Path, header: object, words: str) -> None:
    write_with_header(single / "model.safetensors", header, bytes(8))
    assert_error(single, "model.safetensors", words)


def test_a_header_longer_than_the_file_is_refused(single: Path) -> None:
    (single / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 50) + b"{}")
    assert_error(single, "too few for a header")


def test_a_file_that_shrinks_while_it_is_read_is_an_error(single: Path) -> None:
    with Checkpoint.open(single) as checkpoint:
        os.truncate(single / "model.safetensors", 600)
        with pytest.raises(ReadError, match="became shorter"):
            for tensor in checkpoint.tensors.values():
                tensor.load()


def test_a_single_file_is_preferred_to_an_index_as_in_transformers(single: Path, sharded: Path) -> None:
    shutil.copy(sharded / "model.safetensors.index.json", single)
    with Checkpoint.open(single) as checkpoint:
        assert set(checkpoint.tensors) == set(TENSORS)
