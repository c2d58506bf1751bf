"""Merged adapters compared with peft: the weights of its own merge, and the logits of the model it runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from support.adapters import (
    ALL_LINEAR,
    PREFIX,
    logits,
    make_adapter,
    merge_tensors,
    model_with_tensors,
    peft_merge_tensors,
    peft_model,
)
from support.tiny_checkpoints import VOCAB_SIZE, make_checkpoint

from pigguf.checkpoint import Adapter, Checkpoint, merge_adapter

TOKENS = [int(token) for token in np.random.default_rng(3).integers(3, VOCAB_SIZE, 48)]
NORMS = ["input_layernorm", "post_attention_layernorm", "norm"]
WEIGHTS = "adapter_model.safetensors"

CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "every linear layer": {"target_modules": ALL_LINEAR},
    "all-linear": {"target_modules": "all-linear"},
    "one layer": {"layers_to_transform": [1], "layers_pattern": "layers"},
    "rank-stabilized": {"use_rslora": True, "r": 8},
    "patterns": {
        "target_modules": ALL_LINEAR,
        "rank_pattern": {"layers.0.self_attn.q_proj": 2, "v_proj": 8, r"layers\.\d\.mlp\.up_proj": 3},
        "alpha_pattern": {"q_proj": 5, "^model.layers.1.mlp.down_proj": 32, "proj": 1},
    },
    "patterns, rank-stabilized": {"use_rslora": True, "rank_pattern": {"[kv]_proj": 9}},
    "dora": {"use_dora": True, "target_modules": ALL_LINEAR},
    "norms": {"modules_to_save": NORMS},
    "norms and embeddings": {"modules_to_save": [*NORMS, "embed_tokens", "lm_head"]},
    "embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "embedding, rank-stabilized": {"target_modules": ["embed_tokens"], "use_rslora": True},
    "output": {"target_modules": ["q_proj", "lm_head"]},
}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "base")


def assert_equal_tensors(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> None:
    assert set(ours) == set(theirs)
    for name, values in theirs.items():
        np.testing.assert_allclose(ours[name], values, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("safetensors", [True, False], ids=["safetensors", "bin"])
@pytest.mark.parametrize("case", CASES)
def test_every_tensor_is_the_one_of_pefts_merge(
    case: str, safetensors: bool, base: Path, tmp_path: Path
) -> None:
    adapter = make_adapter(base, tmp_path / "adapter", safetensors=safetensors, **CASES[case])
    assert (adapter / WEIGHTS).exists() == safetensors
    ours = merge_tensors(base, adapter)
    assert_equal_tensors(ours, peft_merge_tensors(base, adapter))
    before = load_file(base / "model.safetensors")
    with Adapter.open(adapter) as opened:
        assert opened.changes
        for target in opened.changes:
            assert np.abs(ours[target] - before[target]).max() > 1e-3, target


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_trained_biases_are_merged(bias: str, tmp_path: Path) -> None:
    base = make_checkpoint(tmp_path / "base", "qwen2")
    adapter = make_adapter(base, tmp_path / "adapter", bias=bias, target_modules=["q_proj", "v_proj"])
    ours = merge_tensors(base, adapter)
    assert_equal_tensors(ours, peft_merge_tensors(base, adapter))
    name = "model.layers.0.self_attn.q_proj.bias"
    assert np.abs(ours[name] - load_file(base / "model.safetensors")[name]).max() > 1e-3


TIED_CASES: dict[str, dict[str, Any]] = {
    "attention only": {},
    "embedding saved": {"modules_to_save": ["embed_tokens"]},
    "output saved": {"modules_to_save": ["lm_head"]},
    "both saved": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "tied and saved": {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    "embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "output": {"target_modules": ["q_proj", "lm_head"]},
    "both": {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
    "tied": {"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True},
}
STAY_TIED = ("attention only", "tied and saved", "tied")
PEFT_MERGES_DIFFERENTLY = ("embedding", "output", "both", "tied")  # it adds the update of one to both


@pytest.mark.parametrize("case", TIED_CASES)
def test_tied_embeddings_give_the_logits_of_the_peft_model(case: str, tmp_path: Path) -> None:
    base = make_checkpoint(tmp_path / "base", tie_word_embeddings=True)
    adapter = make_adapter(base, tmp_path / "adapter", **TIED_CASES[case])
    ours = merge_tensors(base, adapter)
    assert ("lm_head.weight" in ours) == (case not in STAY_TIED)
    expected = logits(peft_model(base, adapter), TOKENS)
    np.testing.assert_allclose(logits(model_with_tensors(base, ours), TOKENS), expected, rtol=1e-4, atol=1e-4)
    if case not in PEFT_MERGES_DIFFERENTLY:
        assert_equal_tensors(ours, peft_merge_tensors(base, adapter))


def test_a_tied_lm_head_stored_beside_the_embedding_is_the_same_tensor(tmp_path: Path) -> None:
    base = make_checkpoint(tmp_path / "base", tie_word_embeddings=True)
    tensors = load_file(base / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    plain = make_adapter(base, tmp_path / "plain")
    assert "lm_head.weight" not in merge_tensors(base, plain)
    saved = make_adapter(base, tmp_path / "saved", modules_to_save=["embed_tokens"])
    ours = merge_tensors(base, saved)
    np.testing.assert_array_equal(ours["lm_head.weight"], tensors["lm_head.weight"])
    assert np.abs(ours["model.embed_tokens.weight"] - tensors["lm_head.weight"]).max() > 1e-3


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("prefix", ["", PREFIX])
def test_longloras_trainable_parameters_are_loaded_into_the_base_first(
    prefix: str, tied: bool, tmp_path: Path
) -> None:
    base = make_checkpoint(tmp_path / "base", tie_word_embeddings=tied)
    adapter = make_adapter(base, tmp_path / "adapter", safetensors=False, target_modules=["q_proj"])
    generator = torch.Generator().manual_seed(4)
    trained = {
        name: torch.from_numpy(values) + 0.1 * torch.randn(values.shape, generator=generator)
        for name, values in load_file(base / "model.safetensors").items()
        if "norm" in name or "embed" in name
    }
    assert len(trained) == 6
    torch.save(trained, tmp_path / "plain.bin")
    torch.save({prefix + n: t for n, t in trained.items()}, adapter / "trainable_params.bin")
    ours = merge_tensors(base, adapter)
    assert_equal_tensors(ours, peft_merge_tensors(base, adapter, before=tmp_path / "plain.bin"))
    assert ("lm_head.weight" in ours) != tied


def test_tensor_names_that_contain_the_adapters_name_are_accepted(base: Path, tmp_path: Path) -> None:
    """Some trainers save a state dict with the adapter's name in it."""
    options = {"use_dora": True, "modules_to_save": NORMS, "target_modules": ["q_proj"]}
    adapter = make_adapter(base, tmp_path / "adapter", **options)
    plain = merge_tensors(base, adapter)
    tensors = load_file(adapter / WEIGHTS)
    renamed = {}
    for name, values in tensors.items():
        name = name.replace("lora_A.", "lora_A.default.").replace("lora_B.", "lora_B.default.")
        name = name.replace("magnitude_vector", "magnitude_vector.default.weight")
        name = name.replace("norm.weight", "norm.modules_to_save.default.weight")
        renamed[name] = values
    assert not set(renamed) & set(tensors)
    save_file(renamed, adapter / WEIGHTS)
    assert_equal_tensors(merge_tensors(base, adapter), plain)


def test_lora_embedding_names_that_contain_the_adapters_name_are_accepted(base: Path, tmp_path: Path) -> None:
    adapter = make_adapter(base, tmp_path / "adapter", target_modules=["embed_tokens"])
    plain = merge_tensors(base, adapter)
    tensors = load_file(adapter / WEIGHTS)
    renamed = {
        name + ".default" if name[-2:] in ("_A", "_B") else name: values for name, values in tensors.items()
    }
    assert len(set(renamed) - set(tensors)) == 2
    save_file(renamed, adapter / WEIGHTS)
    assert_equal_tensors(merge_tensors(base, adapter), plain)


def test_the_sum_is_not_rounded_to_the_bases_dtype(tmp_path: Path) -> None:
    """Compare with W + 2 * B @ A in float64; bfloat16 could not represent the sum."""
    base = make_checkpoint(tmp_path / "base", dtype=torch.bfloat16)
    adapter = make_adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    name = "model.layers.1.self_attn.q_proj"
    pair = load_file(adapter / WEIGHTS)
    a, b = (pair[f"{PREFIX}{name}.lora_{side}.weight"].astype(np.float64) for side in "AB")
    weight = load_file(base / "model.safetensors")[f"{name}.weight"]
    assert weight.dtype == ml_dtypes.bfloat16
    expected = weight.astype(np.float64) + 2.0 * (b @ a)  # alpha 8 / rank 4
    actual = merge_tensors(base, adapter)[f"{name}.weight"]
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-6)
    assert np.abs(actual.astype(ml_dtypes.bfloat16).astype(np.float64) - expected).max() > 1e-4


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_an_adapter_in_half_precision_is_read_as_it_is(dtype: Any, base: Path, tmp_path: Path) -> None:
    adapter = make_adapter(base, tmp_path / "adapter", modules_to_save=["norm"])
    halves = {name: values.astype(dtype) for name, values in load_file(adapter / WEIGHTS).items()}
    widened = {name: values.astype(np.float32) for name, values in halves.items()}
    save_file(widened, adapter / WEIGHTS)
    expected = merge_tensors(base, adapter)
    save_file(halves, adapter / WEIGHTS)
    actual = merge_tensors(base, adapter)
    assert actual["model.norm.weight"].dtype == dtype
    assert_equal_tensors({name: values.astype(np.float32) for name, values in actual.items()}, expected)
    (adapter / WEIGHTS).unlink()
    torch_dtypes = {np.float16: torch.float16}
    torch.save(
        {n: torch.from_numpy(v).to(torch_dtypes.get(dtype, torch.bfloat16)) for n, v in widened.items()},
        adapter / "adapter_model.bin",
    )
    assert_equal_tensors(
        {name: values.astype(np.float32) for name, values in merge_tensors(base, adapter).items()}, expected
    )


def test_a_file_of_torchs_legacy_format_is_read(base: Path, tmp_path: Path) -> None:
    adapter = make_adapter(base, tmp_path / "adapter", safetensors=False)
    expected = merge_tensors(base, adapter)
    file = adapter / "adapter_model.bin"
    torch.save(torch.load(file), file, _use_new_zipfile_serialization=False)
    assert_equal_tensors(merge_tensors(base, adapter), expected)


def test_unchanged_tensors_are_the_same_objects(base: Path, tmp_path: Path) -> None:
    adapter = make_adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    with Checkpoint.open(base) as checkpoint, Adapter.open(adapter) as opened:
        tensors = merge_adapter(checkpoint, opened)
        assert set(tensors) == set(checkpoint.tensors)
        changed = [name for name, tensor in tensors.items() if tensor is not checkpoint.tensors[name]]
    assert changed == [f"model.layers.{layer}.self_attn.q_proj.weight" for layer in range(2)]


def test_the_summary_describes_the_adapter(base: Path, tmp_path: Path) -> None:
    adapter = make_adapter(
        base, tmp_path / "pig-32k", rank_pattern={"k_proj": 8}, modules_to_save=["model.norm", "embed_tokens"]
    )
    with Adapter.open(adapter) as opened:
        summary = opened.summary
    assert summary.name == "pig-32k"
    assert summary.base_model == str(base)
    assert (summary.ranks, summary.lora_matrices) == ((4, 8), 8)
    assert set(summary.replaced_tensors) == {"model.norm.weight", "model.embed_tokens.weight"}
    assert summary.describe() == "rank 4 and 8 in 8 matrices, 2 tensors replaced"
    assert json.loads((adapter / "adapter_config.json").read_text())["rank_pattern"] == {"k_proj": 8}
