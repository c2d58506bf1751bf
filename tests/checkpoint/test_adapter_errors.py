"""Adapters that cannot be merged: the error names the file and the key or tensor, and has a hint."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from safetensors.numpy import load_file, save_file
from support.adapters import PREFIX, make_adapter, merge_tensors
from support.tiny_checkpoints import make_checkpoint

import pigguf
from pigguf.checkpoint import Adapter
from pigguf.checkpoint.adapter_config import _IGNORED_KEYS, _UNSUPPORTED_KEYS, _USED_KEYS
from pigguf.errors import (
    CheckpointError,
    InvalidTensor,
    MissingPackage,
    MissingTensor,
    PigError,
    UnmappedTensor,
    UnsupportedModel,
)

WEIGHTS = "adapter_model.safetensors"
QUERY = "model.layers.0.self_attn.q_proj"
A, B = f"{PREFIX}{QUERY}.lora_A.weight", f"{PREFIX}{QUERY}.lora_B.weight"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("bad") / "base")


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    return make_adapter(base, tmp_path / "adapter", target_modules=["q_proj"])


def assert_error(error: type[PigError], words: list[str], base: Path, adapter: Path) -> PigError:
    with pytest.raises(error) as raised:
        merge_tensors(base, adapter)
    assert type(raised.value) is error
    for word in words:
        assert word in raised.value.message
    assert "\n" not in raised.value.message
    assert raised.value.hint
    return raised.value


# ---- the config ----------------------------------------------------------------------------------


def edit(adapter: Path, **changes: Any) -> None:
    file = adapter / "adapter_config.json"
    content = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))


def test_every_key_of_pefts_config_is_in_exactly_one_table() -> None:
    keys = {field.name for field in dataclasses.fields(peft.LoraConfig)}
    assert keys == _USED_KEYS | _IGNORED_KEYS | set(_UNSUPPORTED_KEYS)
    assert not _USED_KEYS & _IGNORED_KEYS
    assert not (_USED_KEYS | _IGNORED_KEYS) & set(_UNSUPPORTED_KEYS)


def test_pefts_default_config_is_accepted(tmp_path: Path, base: Path) -> None:
    adapter = make_adapter(base, tmp_path / "adapter", lora_dropout=0.1, exclude_modules=["lm_head"])
    merge_tensors(base, adapter)


BAD_CONFIGS: list[tuple[dict[str, Any], type[PigError], list[str]]] = [
    ({"peft_type": "LOHA"}, UnsupportedModel, ["peft_type", "LOHA"]),
    ({"peft_type": ...}, CheckpointError, ["peft_type"]),
    ({"r": ...}, CheckpointError, ["lacks r"]),
    ({"r": 0}, CheckpointError, ["r = 0"]),
    ({"lora_alpha": "much"}, CheckpointError, ["lora_alpha", "much"]),
    ({"use_rslora": "yes"}, CheckpointError, ["use_rslora", "yes"]),
    ({"rank_pattern": [4]}, CheckpointError, ["rank_pattern"]),
    ({"rank_pattern": {"q_proj": "x"}}, CheckpointError, ["rank_pattern.q_proj"]),
    ({"alpha_pattern": {"(q_proj": 4}}, CheckpointError, ["alpha_pattern.(q_proj"]),
    ({"bias": "some"}, CheckpointError, ["bias", "some"]),
    ({"wobble": 3}, UnsupportedModel, ["wobble = 3"]),
    ({"init_lora_weights": "pissa"}, UnsupportedModel, ["init_lora_weights", "pissa"]),
    ({"init_lora_weights": "pissa_niter_16"}, UnsupportedModel, ["pissa_niter_16"]),
    ({"init_lora_weights": "olora"}, UnsupportedModel, ["olora"]),
    ({"init_lora_weights": "corda"}, UnsupportedModel, ["corda"]),
    ({"init_lora_weights": "loftq"}, UnsupportedModel, ["loftq"]),
    ({"init_lora_weights": "lora_ga"}, UnsupportedModel, ["lora_ga"]),
    ({"fan_in_fan_out": True}, UnsupportedModel, ["fan_in_fan_out"]),
    ({"layer_replication": [[0, 2], [1, 2]]}, UnsupportedModel, ["layer_replication"]),
    ({"alora_invocation_tokens": [1, 2]}, UnsupportedModel, ["alora_invocation_tokens"]),
    ({"trainable_token_indices": [5]}, UnsupportedModel, ["trainable_token_indices", "rows"]),
    ({"megatron_config": {"a": 1}}, UnsupportedModel, ["megatron_config"]),
    ({"kasa_config": {"beta": 1}}, UnsupportedModel, ["kasa_config"]),
    ({"lora_bias": True}, UnsupportedModel, ["lora_bias"]),
]


@pytest.mark.parametrize(("changes", "error", "words"), BAD_CONFIGS, ids=lambda value: str(value)[:40])
def test_a_config_that_cannot_be_merged_is_refused_by_its_key(
    changes: dict[str, Any], error: type[PigError], words: list[str], base: Path, adapter: Path
) -> None:
    edit(adapter, **changes)
    assert_error(error, ["adapter_config.json", *words], base, adapter)


@pytest.mark.parametrize("changes", [{"wobble": None}, {"wobble": False}, {"wobble": []}, {"wobble": {}}])
def test_an_unknown_key_with_an_empty_value_is_ignored(
    changes: dict[str, Any], base: Path, adapter: Path
) -> None:
    before = merge_tensors(base, adapter)
    edit(adapter, **changes)
    after = merge_tensors(base, adapter)
    for name, values in before.items():
        np.testing.assert_array_equal(after[name], values)


def test_a_rank_that_differs_from_the_config_is_refused(base: Path, adapter: Path) -> None:
    edit(adapter, r=8)
    assert_error(InvalidTensor, [WEIGHTS, A, "rank 4", "8"], base, adapter)


def test_a_config_that_is_not_json_is_refused(base: Path, adapter: Path) -> None:
    (adapter / "adapter_config.json").write_text("{")
    assert_error(CheckpointError, ["adapter_config.json is not JSON"], base, adapter)


def test_a_path_that_is_not_an_adapter_is_named(base: Path, tmp_path: Path) -> None:
    assert_error(CheckpointError, ["absent", "is not a directory"], base, tmp_path / "absent")
    assert_error(CheckpointError, ["config.json", "is not a directory"], base, base / "config.json")
    assert_error(CheckpointError, [str(base), "adapter_config.json"], base, base)


# ---- the weights ---------------------------------------------------------------------------------

Tensors = dict[str, np.ndarray]


def drop_b(tensors: Tensors) -> None:
    del tensors[B]


def drop_a(tensors: Tensors) -> None:
    del tensors[A]


def not_a_number(tensors: Tensors) -> None:
    tensors[A][2, 5] = np.nan


def infinite_norm(tensors: Tensors) -> None:
    tensors[f"{PREFIX}model.norm.weight"] = np.full(64, np.inf, np.float32)


def unknown_layer(tensors: Tensors) -> None:
    for name in (A, B):
        tensors[name.replace("layers.0", "layers.9")] = tensors[name].copy()


def unknown_role(tensors: Tensors) -> None:
    tensors[f"{PREFIX}{QUERY}.lora_diag.default"] = np.zeros(4, np.float32)


def no_prefix(tensors: Tensors) -> None:
    tensors["model.norm.weight"] = np.zeros(64, np.float32)


def a_bias(tensors: Tensors) -> None:
    tensors[f"{PREFIX}{QUERY}.lora_B.bias"] = np.zeros(64, np.float32)


def a_magnitude(tensors: Tensors) -> None:
    tensors[f"{PREFIX}{QUERY}.lora_magnitude_vector"] = np.ones(64, np.float32)


def two_adapters(tensors: Tensors) -> None:
    tensors[A.replace("lora_A", "lora_A.second")] = tensors[A].copy()


def replacement_and_update(tensors: Tensors) -> None:
    tensors[f"{PREFIX}{QUERY}.weight"] = np.zeros((64, 64), np.float32)


def wider_base(tensors: Tensors) -> None:
    tensors[A] = np.zeros((4, 128), np.float32)


def taller_base(tensors: Tensors) -> None:
    tensors[B] = np.zeros((96, 4), np.float32)


def not_gathered(tensors: Tensors) -> None:
    tensors[B] = np.zeros(0, np.float32)


def larger_vocabulary(tensors: Tensors) -> None:
    tensors[f"{PREFIX}model.embed_tokens.weight"] = np.zeros((321, 64), np.float32)


def integers(tensors: Tensors) -> None:
    tensors[A] = np.zeros((4, 64), np.int8)


def nothing(tensors: Tensors) -> None:
    tensors.clear()


BAD_TENSORS: list[tuple[Callable[[Tensors], None], type[PigError], list[str]]] = [
    (drop_b, MissingTensor, ["lora_B", QUERY, "lora_A"]),
    (drop_a, MissingTensor, ["lora_A", QUERY, "lora_B"]),
    (not_a_number, InvalidTensor, [A, "[2, 5]", "nan"]),
    (infinite_norm, InvalidTensor, ["model.norm.weight", "[0]", "inf"]),
    (unknown_layer, UnmappedTensor, ["model.layers.9.self_attn.q_proj.weight", "base"]),
    (unknown_role, UnmappedTensor, ["lora_diag"]),
    (no_prefix, UnmappedTensor, ["model.norm.weight"]),
    (a_bias, UnmappedTensor, ["lora_B.bias"]),
    (a_magnitude, UnmappedTensor, ["lora_magnitude_vector", QUERY]),
    (two_adapters, CheckpointError, [A, "lora_A.second"]),
    (replacement_and_update, CheckpointError, [f"{QUERY}.weight", "lora_"]),
    (wider_base, InvalidTensor, ["[64, 128]", "[64, 64]", f"{QUERY}.weight"]),
    (taller_base, InvalidTensor, ["[96, 64]", "[64, 64]", f"{QUERY}.weight"]),
    (not_gathered, InvalidTensor, ["[0]", "[4, 64]"]),
    (larger_vocabulary, InvalidTensor, ["[321, 64]", "[320, 64]", "embed_tokens"]),
    (integers, InvalidTensor, [A, "I8"]),
    (nothing, CheckpointError, ["no tensors"]),
]


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize(
    ("corrupt", "error", "words"), BAD_TENSORS, ids=lambda value: getattr(value, "__name__", "")
)
def test_weights_that_do_not_fit_are_named(
    corrupt: Callable[[Tensors], None],
    error: type[PigError],
    words: list[str],
    kind: str,
    base: Path,
    adapter: Path,
) -> None:
    tensors = load_file(adapter / WEIGHTS)
    corrupt(tensors)
    save_file(tensors, adapter / WEIGHTS)
    if kind == "bin":
        (adapter / WEIGHTS).unlink()
        state = {name: torch.from_numpy(values) for name, values in tensors.items()}
        torch.save(state, adapter / "adapter_model.bin")
    assert_error(error, ["adapter", *words], base, adapter)


def test_an_adapter_of_another_base_names_its_own(adapter: Path, tmp_path: Path) -> None:
    other = make_checkpoint(tmp_path / "other", hidden_size=96)
    error = assert_error(InvalidTensor, [str(other), "[64, 64]", "[96, 96]"], other, adapter)
    trained_on = json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert error.hint is not None
    assert trained_on in error.hint


def test_a_row_with_zero_norm_under_dora_is_an_error(base: Path, tmp_path: Path) -> None:
    """It has no direction to scale; peft's merge gives NaN."""
    adapter = make_adapter(base, tmp_path / "adapter", target_modules=["q_proj"], use_dora=True)
    copy = tmp_path / "base"
    copy.mkdir()
    for file in base.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    weights, pair = load_file(copy / "model.safetensors"), load_file(adapter / WEIGHTS)
    weights[f"{QUERY}.weight"][7] = 0.0
    pair[B][7] = 0.0
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    save_file(pair, adapter / WEIGHTS)
    with pytest.raises(InvalidTensor, match=r"blk.0.attn_q.weight: element .* is nan"):
        pigguf.convert(copy, tmp_path / "model.gguf", adapter=adapter)
    assert not (tmp_path / "model.gguf").exists()


def test_a_dora_adapter_without_its_magnitudes_is_refused(base: Path, adapter: Path) -> None:
    edit(adapter, use_dora=True)
    assert_error(MissingTensor, ["lora_magnitude_vector", QUERY], base, adapter)


def test_dora_of_an_embedding_is_refused(base: Path, tmp_path: Path) -> None:
    adapter = make_adapter(base, tmp_path / "adapter", target_modules=["embed_tokens"], use_dora=True)
    assert_error(UnsupportedModel, ["DoRA", "embed_tokens"], base, adapter)


def test_missing_weights_are_named(base: Path, adapter: Path) -> None:
    (adapter / WEIGHTS).unlink()
    assert_error(CheckpointError, [WEIGHTS, "adapter_model.bin"], base, adapter)


@pytest.mark.parametrize("kind", ["safetensors", "bin", "old bin"])
def test_a_truncated_file_is_refused(kind: str, base: Path, adapter: Path) -> None:
    file = adapter / WEIGHTS
    if kind != "safetensors":
        state = {name: torch.from_numpy(values) for name, values in load_file(file).items()}
        file.unlink()
        file = adapter / "adapter_model.bin"
        torch.save(state, file, _use_new_zipfile_serialization=kind == "bin")
    whole = file.read_bytes()
    for length in (0, 1, 5, 100, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        assert_error(CheckpointError, [str(file)], base, adapter)


class CodeInPickle:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("code of the file ran",))


@pytest.mark.parametrize("content", [CodeInPickle(), [1, 2], {3: torch.zeros(2)}, {"a": "text"}], ids=str)
def test_a_bin_with_other_objects_than_tensors_is_refused_and_runs_no_code(
    content: Any, base: Path, adapter: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (adapter / WEIGHTS).unlink()
    torch.save(content, adapter / "adapter_model.bin")
    capsys.readouterr()
    assert_error(CheckpointError, ["adapter_model.bin"], base, adapter)
    assert "ran" not in capsys.readouterr().out


def test_a_git_lfs_pointer_instead_of_a_bin_is_recognised(base: Path, adapter: Path) -> None:
    (adapter / WEIGHTS).unlink()
    (adapter / "adapter_model.bin").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7\n")
    error = assert_error(CheckpointError, ["adapter_model.bin"], base, adapter)
    assert "git lfs pull" in (error.hint or "")


def test_without_torch_the_hint_says_what_to_install(
    base: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (adapter / WEIGHTS).rename(adapter / "adapter_model.bin")
    monkeypatch.setitem(sys.modules, "torch", None)
    error = assert_error(MissingPackage, ["adapter_model.bin", "torch"], base, adapter)
    assert 'pip install -e ".[torch]" in the clone' in (error.hint or "")


def test_trainable_parameters_of_another_base_are_refused(base: Path, adapter: Path) -> None:
    torch.save({"model.norm.weight": torch.zeros(96)}, adapter / "trainable_params.bin")
    assert_error(InvalidTensor, ["model.norm.weight", "[96]", "[64]"], base, adapter)
    torch.save({"model.layers.7.input_layernorm.weight": torch.zeros(64)}, adapter / "trainable_params.bin")
    assert_error(UnmappedTensor, ["model.layers.7.input_layernorm.weight"], base, adapter)


def test_two_embeddings_for_a_base_that_ties_them_are_refused(tmp_path: Path) -> None:
    base = make_checkpoint(tmp_path / "base", tie_word_embeddings=True)
    adapter = make_adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    state = {"model.embed_tokens.weight": torch.zeros(320, 64), "lm_head.weight": torch.ones(320, 64)}
    torch.save(state, adapter / "trainable_params.bin")
    assert_error(InvalidTensor, ["model.embed_tokens.weight", "lm_head.weight", "ties"], base, adapter)


def test_the_config_of_another_model_is_refused(base: Path, adapter: Path) -> None:
    for key, value in {"num_hidden_layers": 3, "vocab_size": 321, "tie_word_embeddings": True}.items():
        (adapter / "config.json").write_text(json.dumps({"model_type": "llama", key: value}))
        assert_error(CheckpointError, ["adapter/config.json", key, str(base / "config.json")], base, adapter)


def test_files_are_closed_when_an_adapter_is_refused(base: Path, adapter: Path) -> None:
    edit(adapter, r=8)
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(InvalidTensor):
        Adapter.open(adapter)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
