"""What only single families have, and what their graphs do not compute."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file
from support.bare_engine import bare_engine, write_model
from support.compare import agreement
from support.tiny_checkpoints import VOCAB_SIZE, edit_config, make_checkpoint, save_tokenizer
from support.tiny_families import (
    GEMMA3,
    LINEAR,
    MODEL_VARIANTS,
    PHI3,
    UNSCALED,
    WINDOW,
    TinyModel,
    lazy_tensor,
)

import pigguf
from pigguf.architectures import (
    config_from_hparams,
    family_from_config,
    hparams_from_config,
    hparams_from_metadata,
    map_tensors_to_gguf,
    positions_from_config,
)
from pigguf.errors import CheckpointError, GGUFError, MissingTensor, PigError, UnsupportedModel
from pigguf.gguf_io.metadata import u32
from pigguf.rope import RopeOverrides

FACTOR = 4


def random_tokens(count: int, vocab: int = VOCAB_SIZE) -> list[int]:
    return [int(token) for token in np.random.default_rng(5).integers(3, vocab, count)]


def mean_kl(path: Path, model: TinyModel, module: Any) -> float:
    hparams = model.hparams()
    write_model(path, hparams, model.converted())
    tokens = random_tokens(hparams.rope.context_length, hparams.vocab_size)
    with bare_engine(path, context=256) as engine:
        got = engine.log_probabilities(tokens)
    with torch.no_grad():
        expected = module(torch.tensor([tokens])).logits[0].log_softmax(-1)
    return float((expected.exp() * (expected - got)).sum(-1).mean())


# --- Mixtral


def test_experts_are_stacked_in_one_tensor() -> None:
    model = TinyModel("mixtral")
    there = model.converted()
    for hf, gguf in (("w1", "gate"), ("w2", "down"), ("w3", "up")):
        names = [
            f"model.layers.1.block_sparse_moe.experts.{expert}.{hf}.weight"
            for expert in range(model.hparams().experts)
        ]
        expected = np.stack([model.tensors[name].load() for name in names])
        np.testing.assert_array_equal(there[f"blk.1.ffn_{gguf}_exps.weight"].load(), expected)


def test_experts_in_one_tensor_are_rejected_with_a_hint() -> None:
    """As save_pretrained(save_original_format=False) writes them."""
    model = TinyModel("mixtral")
    state = {name: lazy_tensor(name, values.numpy()) for name, values in model.module.state_dict().items()}
    with pytest.raises(MissingTensor, match="block_sparse_moe") as caught:
        map_tensors_to_gguf(model.family, model.hparams(), state, "here")
    assert "save_original_format" in (caught.value.hint or "")


@pytest.mark.parametrize("used", [None, 0, 5])
def test_inconsistent_expert_counts_are_rejected(used: int | None) -> None:
    model = TinyModel("mixtral")
    keys = {key: typed for key, typed in model.hparams().to_metadata().items() if "expert_used" not in key}
    if used is not None:
        keys["llama.expert_used_count"] = u32(used)
    with pytest.raises(GGUFError, match=f"{'none' if used is None else used} of 4 experts") as caught:
        hparams_from_metadata(model.family, keys, model.converted())
    assert caught.value.hint


# --- multimodal Gemma 3


@pytest.fixture(scope="module")
def multimodal_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a tiny Gemma3ForConditionalGeneration, its positions scaled as in the published 4B."""
    path = tmp_path_factory.mktemp("multimodal_checkpoint")
    vision = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    text = {
        **GEMMA3,
        "vocab_size": VOCAB_SIZE,
        "rope_parameters": {"full_attention": LINEAR, "sliding_attention": UNSCALED},
    }
    config = transformers.Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=7
    )
    torch.manual_seed(3)
    transformers.Gemma3ForConditionalGeneration(config).save_pretrained(path)
    save_tokenizer(path)
    return path


def test_the_language_model_of_a_multimodal_model_is_converted(
    multimodal_checkpoint: Path, tmp_path: Path
) -> None:
    result = pigguf.convert(multimodal_checkpoint, tmp_path / "model.gguf", type="F32")
    rope = result.plan.rope
    assert (rope.factor, rope.local_rope_theta, rope.context_length) == (FACTOR, 10000.0, WINDOW * FACTOR)
    assert any("vision_tower" in note for note in result.plan.notes)
    assert not any("vis" in tensor.name for tensor in result.plan.tensors)
    found = agreement(tmp_path / "model.gguf", multimodal_checkpoint, random_tokens(WINDOW * FACTOR))
    assert found.mean_kl <= 1e-6
    pigguf.export(tmp_path / "model.gguf", tmp_path / "exported")
    exported = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "exported")
    assert type(exported).__name__ == "Gemma3ForCausalLM"


def test_published_names_and_omitted_keys_are_read(multimodal_checkpoint: Path) -> None:
    """Use the names of google/gemma-3-4b-it: language_model.model, top-level rope keys, defaults omitted."""
    config = json.loads((multimodal_checkpoint / "config.json").read_text())
    text = config["text_config"]
    for key in ("rope_parameters", "layer_types", "rope_theta", "rope_local_base_freq"):
        text.pop(key, None)
    text["rope_scaling"] = {"factor": 8.0, "rope_type": "linear"}
    text.update(max_position_embeddings=131072)
    family = family_from_config(config)
    rope = positions_from_config(family, config, {}, RopeOverrides(original_context=16384))
    assert (rope.factor, rope.rope_theta, rope.local_rope_theta) == (8.0, 1e6, 1e4)
    tensors = {}
    for name, values in load_file(multimodal_checkpoint / "model.safetensors").items():
        published = name.replace("model.language_model.", "language_model.model.")
        tensors[published.removeprefix("model.") if "vision" in name else published] = values
    hparams = hparams_from_config(family, config, rope)
    there = map_tensors_to_gguf(
        family, hparams, {name: lazy_tensor(name, values) for name, values in tensors.items()}, "here"
    )
    assert {tensor.name for tensor in there if not tensor.name.startswith("blk.")} == {
        "token_embd.weight",
        "output_norm.weight",
    }


# --- Phi-3


def longrope() -> dict[str, Any]:
    pairs = PHI3["hidden_size"] // PHI3["num_attention_heads"] // 2
    return {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0 + 0.05 * pair for pair in range(pairs)],
        "long_factor": [1.5 + 2.0 * pair for pair in range(pairs)],
        "original_max_position_embeddings": 256,
        "factor": float(FACTOR),
    }


@pytest.mark.parametrize("length", [256, 512])
def test_phi3_with_longrope_has_two_lists(length: int, tmp_path: Path) -> None:
    """llama.cpp chooses by the context's length, in multiples of 256, and transformers by the text's."""
    windows = {"original_max_position_embeddings": 256, "max_position_embeddings": 256 * FACTOR}
    config = {**PHI3, **windows, "rope_parameters": longrope()}
    model = TinyModel("phi3", **config)
    hparams = model.hparams()
    assert hparams.rope.rope_type == "longrope"
    write_model(tmp_path / "model.gguf", hparams, model.converted())
    tokens = random_tokens(length, hparams.vocab_size)
    with bare_engine(tmp_path / "model.gguf", context=length) as engine:
        got = engine.log_probabilities(tokens)
    with torch.no_grad():
        expected = model.module(torch.tensor([tokens])).logits[0].log_softmax(-1)
    assert float((expected.exp() * (expected - got)).sum(-1).mean()) <= 1e-6


def test_phi3_with_a_factor_is_a_llama_with_that_factor(tmp_path: Path) -> None:
    """Compare with a Llama with the same weights: transformers has only longrope for Phi-3."""
    model = TinyModel("phi3")
    llama = TinyModel("llama", rope_parameters=LINEAR)
    heads, groups = PHI3["num_attention_heads"], PHI3["num_key_value_heads"]
    width = PHI3["hidden_size"] // heads
    state = {}
    for name, tensor in model.tensors.items():
        values = torch.from_numpy(tensor.load().copy())
        if "qkv_proj" in name:
            parts = values.split([heads * width, groups * width, groups * width])
            state |= {
                name.replace("qkv_proj", f"{each}_proj"): part
                for each, part in zip("qkv", parts, strict=True)
            }
        elif "gate_up_proj" in name:
            state |= dict(
                zip(
                    (name.replace("gate_up_proj", f"{each}_proj") for each in ("gate", "up")),
                    values.chunk(2),
                    strict=True,
                )
            )
        else:
            state[name] = values
    llama.module.load_state_dict(state)
    model.config.update(rope_parameters=LINEAR, max_position_embeddings=WINDOW * FACTOR)
    assert mean_kl(tmp_path / "model.gguf", model, llama.module) <= 1e-6


# --- Command-R+


def test_command_r_plus_has_norms_of_heads(tmp_path: Path) -> None:
    """The graph has them from 64 layers on."""
    model = TinyModel("command-r", num_hidden_layers=64, use_qk_norm=True)
    assert model.converted()["blk.63.attn_q_norm.weight"].shape == (4, 16)
    assert mean_kl(tmp_path / "model.gguf", model, model.module) <= 1e-6


def test_command_rs_context_length_is_the_one_it_was_trained_at() -> None:
    model = TinyModel("command-r")
    model.config.update(max_position_embeddings=8192, model_max_length=131072)
    assert model.hparams().rope.context_length == 131072


# --- what graphs do not compute

REFUSED = [
    ("gemma", {"hidden_act": "silu"}, 'hidden_act = "silu"'),
    ("gemma", {"hidden_activation": "gelu"}, 'hidden_activation = "gelu"'),
    ("gemma", {"attention_bias": True}, "attention_bias = true"),
    ("gemma", {"use_bidirectional_attention": True}, "use_bidirectional_attention = true"),
    ("gemma", {"tie_word_embeddings": False}, "tie_word_embeddings = false"),
    ("gemma2", {"query_pre_attn_scalar": 224}, "query_pre_attn_scalar = 224"),
    ("gemma2", {"attn_logit_softcapping": None}, "attn_logit_softcapping = null"),
    ("gemma2", {"final_logit_softcapping": None}, "final_logit_softcapping = null"),
    ("gemma2", {"layer_types": ["full_attention", "chunked_attention"] * 2}, "chunked_attention"),
    ("gemma3", {"query_pre_attn_scalar": 168}, "query_pre_attn_scalar = 168"),
    ("gemma3", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping = 50.0"),
    ("phi3", {"sliding_window": 47}, "sliding_window = 47"),
    ("starcoder2", {"use_bias": False}, "use_bias = false"),
    ("starcoder2", {"sliding_window": 32}, "sliding_window = 32"),
    ("starcoder2", {"hidden_act": "gelu"}, 'hidden_act = "gelu"'),
    ("olmo2", {"attention_bias": True}, "attention_bias = true"),
    ("olmo2", {"tie_word_embeddings": True}, "tie_word_embeddings = true"),
    ("granite", {"num_local_experts": 4}, "num_local_experts = 4"),
    ("command-r", {"use_qk_norm": True}, "use_qk_norm is true in a model of 2 layers"),
    ("command-r", {"attention_bias": True}, "attention_bias = true"),
    ("command-r", {"tie_word_embeddings": False}, "tie_word_embeddings = false"),
    ("smollm3", {"no_rope_layers": [1, 1, 1, 1, 1]}, "no_rope_layers = [1, 1, 1, 1, 1]"),
    ("smollm3", {"no_rope_layers": None, "no_rope_layer_interval": 3}, "no_rope_layer_interval = 3"),
    ("smollm3", {"use_sliding_window": True, "sliding_window": 32}, "sliding_window = 32"),
    ("smollm3", {"attention_bias": True}, "attention_bias = true"),
    ("stablelm", {"qk_layernorm": True}, "qk_layernorm = true"),
    ("stablelm", {"tie_word_embeddings": True}, "tie_word_embeddings = true"),
    ("mixtral", {"sliding_window": 32}, "sliding_window = 32"),
]


@pytest.fixture(scope="module")
def models() -> dict[str, TinyModel]:
    return {kind: TinyModel(kind) for kind in {kind for kind, _, _ in REFUSED}}


@pytest.mark.parametrize(("kind", "changes", "part"), REFUSED, ids=[f"{k}: {p}" for k, _, p in REFUSED])
def test_config_values_that_a_graph_does_not_compute_are_rejected(
    models: dict[str, TinyModel], kind: str, changes: dict[str, Any], part: str
) -> None:
    error = config_error(models[kind], changes)
    assert isinstance(error, UnsupportedModel)
    assert part in error.message


@pytest.mark.parametrize(
    ("kind", "changes", "part"),
    [
        ("gemma2", {"layer_types": ["full_attention"] * 3}, "layer_types"),
        ("mixtral", {"num_experts_per_tok": 5}, "5 of 4 experts"),
    ],
)
def test_inconsistent_config_keys_are_rejected(
    models: dict[str, TinyModel], kind: str, changes: dict[str, Any], part: str
) -> None:
    error = config_error(models[kind], changes)
    assert isinstance(error, CheckpointError)
    assert part in error.message


def config_error(model: TinyModel, changes: dict[str, Any]) -> PigError:
    config = {**model.config, **changes}
    with pytest.raises(PigError) as caught:
        hparams_from_config(model.family, config, positions_from_config(model.family, config, {}))
    assert "config.json" in caught.value.message
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize(
    ("kind", "layers", "scale"),
    [("gemma2", 46, 64 // 8), ("gemma2", 26, 16), ("gemma3", 62, 64 // 8), ("gemma3", 34, 16)],
)
def test_gemmas_attention_scale_is_the_graphs(kind: str, layers: int, scale: int) -> None:
    """By the width of a head (16 here), but in the 27B by the embedding's share of one."""
    cls = getattr(transformers, MODEL_VARIANTS[kind].hf_class)
    config = {**MODEL_VARIANTS[kind].config, "num_hidden_layers": layers, "query_pre_attn_scalar": scale}
    config = cls.config_class(**config).to_dict() | {"architectures": [MODEL_VARIANTS[kind].hf_class]}
    family = family_from_config(config)
    hparams = hparams_from_config(family, config, positions_from_config(family, config, {}))
    assert config_from_hparams(family, hparams)["query_pre_attn_scalar"] == scale
    other = {**config, "query_pre_attn_scalar": scale + 1}
    with pytest.raises(UnsupportedModel, match=f"has {scale} for {layers} layers"):
        hparams_from_config(family, other, positions_from_config(family, config, {}))


def test_a_gguf_without_a_key_that_an_export_needs_is_rejected() -> None:
    """Without attention.scale Granite's graph has the usual one, and transformers 1."""
    model = TinyModel("granite")
    keys = {
        key: typed for key, typed in model.hparams().to_metadata().items() if "attention.scale" not in key
    }
    hparams = hparams_from_metadata(model.family, keys, model.converted())
    with pytest.raises(GGUFError, match=r"granite\.attention\.scale is missing") as caught:
        config_from_hparams(model.family, hparams)
    assert caught.value.hint


def test_phi3s_sliding_window_limits_the_context_length(tmp_path: Path) -> None:
    """Phi-3-mini-4k: sliding_window 2047 of 4096."""
    checkpoint = make_checkpoint(tmp_path / "checkpoint", "phi3")
    edit_config(checkpoint, sliding_window=47)
    with pytest.raises(UnsupportedModel) as caught:
        pigguf.convert(checkpoint, tmp_path / "model.gguf", type="F32")
    assert "`rope.context=47`" in (caught.value.hint or "")
    pigguf.convert(checkpoint, tmp_path / "model.gguf", type="F32", rope=RopeOverrides(1, None, 47))
    assert agreement(tmp_path / "model.gguf", checkpoint, random_tokens(47)).mean_kl <= 1e-6
