"""Meta's Llama checkpoints: the GGUF is the same, byte by byte, as from transformers' format."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.numpy import load_file
from support.meta_checkpoints import convert_to_meta
from support.tiny_checkpoints import edit_config, make_checkpoint

import pigguf
from pigguf.checkpoint import Checkpoint
from pigguf.checkpoint.meta_llama_checkpoint import _intermediate_size
from pigguf.cli import cli
from pigguf.common.json_config import JsonConfig
from pigguf.errors import (
    CheckpointError,
    InvalidTensor,
    MissingTensor,
    PigError,
    UnmappedTensor,
    UnsupportedModel,
)
from pigguf.rope import RopeOverrides

# 8/3 x 64 = 170, up to a multiple of 32
SHAPE = {"intermediate_size": 192, "num_attention_heads": 8, "num_key_value_heads": 4}


@pytest.fixture(params=[torch.float32, torch.float16, torch.bfloat16], ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    dtype: torch.dtype = request.param
    return dtype


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "llama", **SHAPE)


def gguf(checkpoint: Path, context: int | None = 64, **options: Any) -> bytes:
    target = checkpoint.parent / "model.gguf"
    pigguf.convert(checkpoint, target, rope=RopeOverrides(context=context), **options)
    written = target.read_bytes()
    target.unlink()
    return written


@pytest.mark.parametrize("embedding_rows", [False, True], ids=["Llama 1 and 2", "Llama 3"])
@pytest.mark.parametrize("n_shards", [1, 2, 4])
def test_shards_give_the_same_gguf_as_transformers_format(
    n_shards: int, embedding_rows: bool, dtype: torch.dtype, tmp_path: Path
) -> None:
    llama = make_checkpoint(tmp_path / "llama", dtype=dtype, **SHAPE)
    expected = gguf(llama, type="Q8_0")
    convert_to_meta(llama, n_shards, embedding_rows)
    assert not (llama / "config.json").exists()
    assert gguf(llama, type="Q8_0") == expected


@pytest.mark.parametrize("n_shards", [1, 2])
def test_every_tensor_equals_transformers_in_slabs_of_any_size(n_shards: int, llama: Path) -> None:
    expected = load_file(llama / "model.safetensors")
    convert_to_meta(llama, n_shards)
    with Checkpoint.open(llama) as checkpoint:
        assert set(checkpoint.tensors) == set(expected)
        for name, values in expected.items():
            tensor = checkpoint.tensors[name]
            for rows in (1, 3, 8, tensor.rows):
                slabs = [tensor.read(start, stop) for start, stop in tensor.slabs(rows * tensor.row_elements)]
                np.testing.assert_array_equal(np.concatenate(slabs), values, err_msg=name)


def test_params_are_translated_to_a_transformers_config(llama: Path) -> None:
    shutil.copy(llama / "config.json", llama.parent / "config.json")
    convert_to_meta(llama, rope_theta=500000.0, max_seq_len=64)
    expected = json.loads((llama.parent / "config.json").read_text())
    with Checkpoint.open(llama) as checkpoint:
        config = dict(checkpoint.config)
    assert config.pop("rope_theta") == 500000.0
    for key, value in config.items():
        assert value == expected[key] or key == "head_dim", key
    assert config["head_dim"] == 8


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"dim": 4096, "multiple_of": 256}, 11008),  # Llama 7B
        ({"dim": 8192, "multiple_of": 4096, "ffn_dim_multiplier": 1.3}, 28672),  # Llama 2 70B
        ({"dim": 4096, "multiple_of": 1024, "ffn_dim_multiplier": 1.3}, 14336),  # Llama 3 8B
        ({"dim": 2048, "multiple_of": 256, "ffn_dim_multiplier": 1.5}, 8192),  # Llama 3.2 1B
    ],
    ids=str,
)
def test_the_intermediate_size_of_published_models(params: dict[str, Any], expected: int) -> None:
    assert _intermediate_size(JsonConfig(params, "params.json"), params["dim"]) == expected


def test_the_context_length_must_be_given_where_no_file_has_it(llama: Path) -> None:
    convert_to_meta(llama)
    done = CliRunner().invoke(cli, ["convert", str(llama), "--dry-run"])
    assert done.exit_code != 0
    with pytest.raises(CheckpointError, match="max_position_embeddings") as raised:
        gguf(llama, context=None)
    assert "`rope.context`" in (raised.value.hint or "")
    done = CliRunner().invoke(
        cli, ["convert", str(llama), "--context", "64", "--dry-run"], catch_exceptions=False
    )
    assert "64 tokens" in done.stdout
    edit_params(llama, max_seq_len=64)
    assert gguf(llama, context=None) == gguf(llama, context=64)


def edit_params(llama: Path, **changes: Any) -> None:
    file = llama / "params.json"
    params = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({key: value for key, value in params.items() if value is not ...}))


def test_a_linear_factor_from_the_user_is_written(llama: Path) -> None:
    convert_to_meta(llama, 2)
    result = pigguf.convert(llama, rope=RopeOverrides(factor=4.0, original_context=64), dry_run=True)
    assert (result.plan.rope.factor, result.plan.rope.context_length) == (4.0, 256)


def test_llama_3_1_scaling_gets_the_published_factor(llama: Path) -> None:
    convert_to_meta(llama, use_scaled_rope=True)
    assert_error(llama, CheckpointError, "params.json: use_scaled_rope = true", "rope_scaling_factor")
    edit_params(llama, rope_scaling_factor=8)
    with Checkpoint.open(llama) as checkpoint:
        assert checkpoint.config["rope_scaling"] == {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }


def test_llama_3_1_scaling_gives_the_same_gguf_as_transformers_format(llama: Path) -> None:
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 8192}  # fmt: skip
    edit_config(llama, rope_parameters=..., rope_theta=500000.0, rope_scaling=scaling)
    expected = gguf(llama, context=131072)
    convert_to_meta(
        llama, 2, embedding_rows=True, rope_theta=500000.0, use_scaled_rope=True, rope_scaling_factor=8
    )
    assert gguf(llama, context=131072) == expected


def test_a_config_json_completes_params_json_and_must_not_contradict_it(llama: Path) -> None:
    shutil.copy(llama / "config.json", llama.parent / "config.json")
    expected = gguf(llama, context=None)
    convert_to_meta(llama, 2)
    shutil.copy(llama.parent / "config.json", llama / "config.json")
    assert gguf(llama, context=None) == expected
    edit_params(llama, norm_eps=1e-6)
    assert_error(llama, CheckpointError, "config.json: rms_norm_eps = 1e-05", "params.json", "1e-06")


def test_transformers_format_is_preferred_where_both_exist(llama: Path) -> None:
    shutil.copytree(llama, llama.parent / "both")
    both = llama.parent / "both"
    expected = gguf(both)
    convert_to_meta(llama)
    for name in ("consolidated.00.pth", "params.json"):
        shutil.copy(llama / name, both / name)
    (both / "consolidated.00.pth").write_bytes(b"never read")
    assert gguf(both) == expected


# ---- bad input -------------------------------------------------------------------------------------


def assert_error(llama: Path, error: type[PigError], *words: str) -> None:
    with pytest.raises(error) as raised:
        gguf(llama)
    assert type(raised.value) is error
    for word in words:
        assert word in raised.value.message
    assert "\n" not in raised.value.message
    assert raised.value.hint
    assert not (llama.parent / "model.gguf").exists()


def test_a_missing_shard_is_named(llama: Path) -> None:
    convert_to_meta(llama, 4)
    (llama / "consolidated.03.pth").unlink()
    assert_error(llama, CheckpointError, "params.json", "4 shards", "3 are here")
    (llama / "consolidated.01.pth").unlink()
    assert_error(llama, CheckpointError, "consolidated.01.pth is missing", "consolidated.02.pth")
    (llama / "consolidated.02.pth").unlink()
    assert_error(llama, CheckpointError, "4 shards", "1 is here")
    (llama / "consolidated.00.pth").unlink()
    assert_error(llama, CheckpointError, "config.json is missing")


def test_a_surplus_shard_is_named(llama: Path) -> None:
    convert_to_meta(llama, 2)
    shutil.copy(llama / "consolidated.01.pth", llama / "consolidated.02.pth")
    assert_error(
        llama, CheckpointError, "params.json: q has 64 rows", "consolidated.00.pth has 32", "3 shards"
    )


def test_params_must_exist_and_be_complete(llama: Path) -> None:
    convert_to_meta(llama)
    for changes, error, words in (
        ({"dim": ...}, CheckpointError, ["lacks dim"]),
        ({"n_heads": "8"}, CheckpointError, ['n_heads = "8"']),
        ({"norm_eps": ...}, CheckpointError, ["lacks norm_eps"]),
        ({"vocab_size": -2}, CheckpointError, ["vocab_size = -2"]),
        ({"sliding_window": 4096}, UnsupportedModel, ["sliding_window = 4096"]),
        ({"vocab_size": 321}, InvalidTensor, ["model.embed_tokens.weight", "321"]),
        ({"n_layers": 3}, MissingTensor, ["layers.2."]),
        ({"n_layers": 1}, UnmappedTensor, ["layers.1."]),
        ({"ffn_dim_multiplier": 1.5}, InvalidTensor, ["gate_proj", "192"]),
    ):
        before = (llama / "params.json").read_bytes()
        edit_params(llama, **changes)
        assert_error(llama, error, *words)
        (llama / "params.json").write_bytes(before)
    (llama / "params.json").unlink()
    assert_error(llama, CheckpointError, "params.json is missing")


def test_shards_that_do_not_fit_each_other_are_named(llama: Path) -> None:
    convert_to_meta(llama, 2)
    second = llama / "consolidated.01.pth"
    original = torch.load(second)
    name = "layers.1.feed_forward.w2.weight"
    for state, error, words in (
        ({n: t for n, t in original.items() if n != name}, MissingTensor, [f"lacks the tensor {name}"]),
        ({**original, "extra": torch.zeros(1)}, MissingTensor, ["consolidated.00.pth", "extra"]),
        ({**original, name: torch.zeros(64, 95)}, InvalidTensor, [name, "[64, 95]", "[64, 96]"]),
        ({**original, name: original[name].half()}, InvalidTensor, [name, "F16", "F32"]),
    ):
        torch.save(state, second)
        assert_error(llama, error, "consolidated.0", *words)


def test_an_unknown_tensor_is_refused(llama: Path) -> None:
    state = convert_to_meta(llama)
    torch.save({**state, "layers.0.attention.wx.weight": torch.zeros(2, 2)}, llama / "consolidated.00.pth")
    assert_error(llama, UnmappedTensor, "layers.0.attention.wx.weight")
