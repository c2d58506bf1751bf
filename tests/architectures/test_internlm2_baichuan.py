"""InternLM2 and Baichuan, which transformers has no class for: a Llama's weights in their layout.

They come with custom code, which is not run here. Both compute what a Llama computes, except that Baichuan
13B has ALiBi (a Llama whose positions are all 0, with the distances in its mask), and that Baichuan 2
normalizes the rows of its output matrix.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.bare_engine import bare_engine, write_model
from support.tiny_families import BASE, SCALED, TinyModel, lazy_tensor

from pigguf.architectures import (
    family_by_architecture,
    family_from_config,
    hparams_from_config,
    hparams_from_metadata,
    map_tensors_to_gguf,
    map_tensors_to_hf,
    positions_from_config,
)
from pigguf.architectures.hparams import HParams
from pigguf.common.lazy_tensor import LazyTensor
from pigguf.errors import UnsupportedModel
from pigguf.rope import RopeOverrides

Tensors = dict[str, np.ndarray[Any, Any]]

INTERNLM2_NAMES = {
    "model.embed_tokens": "model.tok_embeddings",
    "lm_head": "output",
    "self_attn.o_proj": "attention.wo",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.up_proj": "feed_forward.w3",
    "mlp.down_proj": "feed_forward.w2",
}


def projections(tensors: Tensors, layer: int) -> list[np.ndarray[Any, Any]]:
    return [tensors.pop(f"model.layers.{layer}.self_attn.{each}_proj.weight") for each in "qkv"]


def as_internlm2(model: TinyModel) -> tuple[dict[str, Any], Tensors]:
    """Group queries with their key and value (modeling_internlm2.py: "b q (h gs d)")."""
    tensors = {name: tensor.load() for name, tensor in model.tensors.items()}
    config = {
        **model.config,
        "architectures": ["InternLM2ForCausalLM"],
        "model_type": "internlm2",
        "bias": False,
    }
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    width = config["hidden_size"] // heads
    for layer in range(config["num_hidden_layers"]):
        query, key, value = projections(tensors, layer)
        shared = heads // groups * width
        rows = [
            np.vstack(
                [
                    query[group * shared : (group + 1) * shared],
                    key[group * width : (group + 1) * width],
                    value[group * width : (group + 1) * width],
                ]
            )
            for group in range(groups)
        ]
        tensors[f"model.layers.{layer}.attention.wqkv.weight"] = np.vstack(rows)
    return config, {internlm2_name(name): values for name, values in tensors.items()}


def internlm2_name(name: str) -> str:
    for llama, internlm in INTERNLM2_NAMES.items():
        name = name.replace(llama, internlm)
    return name


def as_baichuan(model: TinyModel) -> tuple[dict[str, Any], Tensors]:
    tensors = {name: tensor.load() for name, tensor in model.tensors.items()}
    config = {**model.config, "architectures": ["BaichuanForCausalLM"], "model_type": "baichuan"}
    for layer in range(config["num_hidden_layers"]):
        tensors[f"model.layers.{layer}.self_attn.W_pack.weight"] = np.vstack(projections(tensors, layer))
    return config, tensors


def with_small_residuals(model: TinyModel) -> TinyModel:
    """Scale down the layers' outputs, so that rounding errors of dozens of layers stay small."""
    for name, tensor in model.tensors.items():
        if "o_proj" in name or "down_proj" in name:
            model.tensors[name] = lazy_tensor(name, tensor.load() / 8)
    state = {name: torch.from_numpy(tensor.load()) for name, tensor in model.tensors.items()}
    model.module.load_state_dict(state)
    return model


def convert_and_back(
    config: Mapping[str, Any], tensors: Tensors, overrides: RopeOverrides | None = None
) -> tuple[HParams, dict[str, LazyTensor]]:
    family = family_from_config(config)
    hparams = hparams_from_config(family, config, positions_from_config(family, config, {}, overrides))
    promises = {name: lazy_tensor(name, values) for name, values in tensors.items()}
    there = {t.name: t for t in map_tensors_to_gguf(family, hparams, promises, "here")}
    back = map_tensors_to_hf(family_by_architecture(hparams.architecture), hparams, there, "there")
    assert {t.name for t in back} == tensors.keys()
    for tensor in back:
        if tensor.name != "lm_head.weight" or hparams.vocab_size < 1000:
            np.testing.assert_array_equal(tensor.load(), tensors[tensor.name], err_msg=tensor.name)
    return hparams, there


def mean_kl(
    path: Path, hparams: HParams, there: Mapping[str, LazyTensor], module: Any, **inputs: Any
) -> float:
    write_model(path, hparams, there)
    tokens = torch.randint(0, hparams.vocab_size, (hparams.rope.context_length,))
    with bare_engine(path, context=256) as engine:
        got = engine.log_probabilities(tokens.tolist())
    with torch.no_grad():
        expected = module(tokens.unsqueeze(0), **inputs).logits[0].log_softmax(-1)
    return float((expected.exp() * (expected - got)).sum(-1).mean())


@pytest.mark.parametrize("scaling", [{}, SCALED], ids=["factor 1", "factor 4"])
def test_internlm2_is_a_permuted_llama(scaling: dict[str, Any], tmp_path: Path) -> None:
    model = TinyModel("llama", **scaling)
    hparams, there = convert_and_back(*as_internlm2(model))
    for name, tensor in model.converted().items():
        np.testing.assert_array_equal(there[name].load(), tensor.load(), err_msg=name)
    assert mean_kl(tmp_path / "model.gguf", hparams, there, model.module) <= 1e-6


@pytest.mark.parametrize("scaling", [{}, SCALED], ids=["factor 1", "factor 4"])
def test_baichuan_7b_is_a_permuted_llama(scaling: dict[str, Any], tmp_path: Path) -> None:
    model = with_small_residuals(TinyModel("llama", num_hidden_layers=32, num_key_value_heads=8, **scaling))
    hparams, there = convert_and_back(*as_baichuan(model))
    for name, tensor in model.converted().items():
        np.testing.assert_array_equal(there[name].load(), tensor.load(), err_msg=name)
    assert mean_kl(tmp_path / "model.gguf", hparams, there, model.module) <= 1e-6


def alibi(heads: int, length: int) -> torch.Tensor:
    """Return a causal mask with ALiBi (arXiv 2108.12409), (1, heads, length, length)."""
    slopes = 2.0 ** (-8.0 * torch.arange(1, heads + 1) / heads)
    distance = torch.arange(length)[:, None] - torch.arange(length)[None, :]
    biases = -slopes[:, None, None] * distance
    return biases.masked_fill(distance < 0, float("-inf")).unsqueeze(0)


def test_baichuan_13b_has_alibi(tmp_path: Path) -> None:
    model = with_small_residuals(TinyModel("llama", num_hidden_layers=40, num_key_value_heads=8))
    config, tensors = as_baichuan(model)
    config["model_max_length"] = config.pop("max_position_embeddings")
    hparams, there = convert_and_back(config, tensors)
    assert hparams.rope.rope_type == "alibi"
    assert "baichuan.rope.dimension_count" not in hparams.to_metadata()
    length = hparams.rope.context_length
    inputs = {
        "attention_mask": alibi(hparams.heads, length),
        "position_ids": torch.zeros(1, length, dtype=torch.long),
    }
    assert mean_kl(tmp_path / "model.gguf", hparams, there, model.module, **inputs) <= 1e-6
    for other in ({"position_ids": inputs["position_ids"]}, {"attention_mask": inputs["attention_mask"]}):
        assert mean_kl(tmp_path / "model.gguf", hparams, there, model.module, **other) > 1e-5
    read = hparams_from_metadata(family_from_config(config), hparams.to_metadata(), there)
    assert (read.rope.rope_type, read.rotary_dim) == ("alibi", 0)


def test_baichuan_2_has_normalized_output_rows(tmp_path: Path) -> None:
    model = with_small_residuals(
        TinyModel("llama", num_hidden_layers=32, num_key_value_heads=8, vocab_size=125696)
    )
    config, tensors = as_baichuan(model)
    hparams, there = convert_and_back(config, tensors)
    rows = there["output.weight"].load()
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-6)
    head = model.module.lm_head.weight
    head.data = torch.nn.functional.normalize(head.data)
    assert mean_kl(tmp_path / "model.gguf", hparams, there, model.module) <= 1e-6


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"num_hidden_layers": 28}, "num_hidden_layers = 28"),
        ({"num_hidden_layers": 32, "tie_word_embeddings": True}, "tie_word_embeddings = true"),
    ],
)
def test_baichuan_configs_that_the_graph_does_not_compute_are_rejected(
    changes: dict[str, Any], part: str
) -> None:
    assert_unsupported(
        {**BASE, "architectures": ["BaichuanForCausalLM"], "num_key_value_heads": 8, **changes}, part
    )


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"bias": True}, "bias"),
        ({}, "bias"),  # the code's default is true
        ({"bias": False, "tie_word_embeddings": True}, "tie_word_embeddings = true"),
    ],
)
def test_internlm2_configs_that_the_graph_does_not_compute_are_rejected(
    changes: dict[str, Any], part: str
) -> None:
    assert_unsupported({**BASE, "architectures": ["InternLM2ForCausalLM"], **changes}, part)


def assert_unsupported(config: dict[str, Any], part: str) -> None:
    family = family_from_config(config)
    with pytest.raises(UnsupportedModel) as caught:
        hparams_from_config(family, config, positions_from_config(family, config, {}))
    assert "config.json" in caught.value.message
    assert part in caught.value.message
    assert caught.value.hint
