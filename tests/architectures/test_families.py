"""Families: tensors, configs and GGUF keys in both directions, logits compared with transformers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import pytest
import torch
import transformers
from support.bare_engine import bare_engine, write_model
from support.tiny_families import BASE, MODEL_VARIANTS, TinyModel, lazy_tensor

from pigguf.architectures import (
    FAMILIES,
    Family,
    config_from_hparams,
    config_with_positions,
    family_by_architecture,
    family_from_config,
    hparams_from_config,
    hparams_from_metadata,
    map_tensors_to_gguf,
    map_tensors_to_hf,
    positions_from_config,
)
from pigguf.architectures.hparams import HParams
from pigguf.architectures.llama import LLAMA
from pigguf.architectures.mistral import MISTRAL
from pigguf.architectures.qwen2 import QWEN2
from pigguf.architectures.qwen3 import QWEN3
from pigguf.architectures.tensor_names import tensor_mappings
from pigguf.common.lazy_tensor import LazyTensor
from pigguf.errors import (
    CheckpointError,
    GGUFError,
    InvalidTensor,
    MissingTensor,
    PigError,
    UnmappedTensor,
    UnsupportedModel,
)
from pigguf.gguf_io.metadata import TypedValue, f32, u32
from pigguf.rope import LinearScaling, RopeOverrides, read_rope


@pytest.fixture(scope="module", params=MODEL_VARIANTS)
def model(request: pytest.FixtureRequest) -> TinyModel:
    return TinyModel(request.param)


def tiny_llama(**changes: Any) -> TinyModel:
    return TinyModel("llama", **changes)


LLAMAS = (LLAMA, MISTRAL, QWEN2, QWEN3)


# --- tensor mapping


def test_mapping_to_gguf_and_back_keeps_every_tensor(model: TinyModel) -> None:
    back = {t.name: t for t in map_tensors_to_hf(model.family, model.hparams(), model.converted(), "there")}
    assert back.keys() == model.tensors.keys()
    for name, tensor in model.tensors.items():
        before, after = tensor.load(), back[name].load()
        if name == "model.decoder.embed_positions.weight":  # its padding rows are ignored
            assert not after[:2].any()
            before, after = before[2:], after[2:]
        assert after.tobytes() == before.tobytes(), name
        assert back[name].dtype == tensor.dtype


def test_gguf_names_are_those_of_llama_cpp(model: TinyModel) -> None:
    import gguf

    hparams = model.hparams()
    architecture = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == hparams.architecture)
    stems = [gguf.TENSOR_NAMES[tensor] for tensor in gguf.MODEL_TENSORS[architecture]]
    known = {stem.format(bid=layer) for stem in stems for layer in range(hparams.layers)}
    assert {name.rpartition(".")[0] for name in model.converted()} <= known


def test_tensor_order_is_embedding_layers_output(model: TinyModel) -> None:
    names = list(model.converted())
    assert names[0] == "token_embd.weight"
    layer_indices = [index for index, name in enumerate(names) if name.startswith("blk.")]
    assert layer_indices == list(range(layer_indices[0], layer_indices[-1] + 1))
    layers = [int(names[index].split(".")[1]) for index in layer_indices]
    assert layers == sorted(layers)
    tail = [name for name in names[layer_indices[-1] + 1 :] if not name.startswith("rope_")]
    assert tail[0] == "output_norm.weight"
    assert ("output.weight" in tail) or model.hparams().tied_embeddings


def permute_like_llama_cpp(values: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """Permute rows as llama.cpp's conversion/llama.py does, row by row: half j, pair i -> row 2i + j."""
    half = values.shape[0] // heads // 2
    rows = [head * 2 * half + j * half + i for head in range(heads) for i in range(half) for j in range(2)]
    return values[rows]


@pytest.mark.parametrize(
    "kind", [kind for kind in MODEL_VARIANTS if kind.startswith(("llama", "mistral", "qwen2"))]
)
def test_rows_are_permuted_as_in_llama_cpps_converter(kind: str) -> None:
    model = TinyModel(kind)
    hparams, result = model.hparams(), model.converted()
    names = {row.hf[0].name: row.gguf[0].name for row in tensor_mappings(model.family, hparams)}
    for name, tensor in model.tensors.items():
        heads = {"q_proj": hparams.heads, "k_proj": hparams.kv_heads}.get(name.split(".")[-2])
        rotated = heads is not None and model.family.architecture == "llama"
        expected = permute_like_llama_cpp(tensor.load(), heads) if rotated and heads else tensor.load()
        np.testing.assert_array_equal(result[names[name]].load(), expected, err_msg=name)


def test_slabs_of_any_size_equal_the_whole_tensor(model: TinyModel) -> None:
    for tensor in model.converted().values():
        whole = tensor.load()
        for size in (1, 100, tensor.row_elements * 5, tensor.row_elements * 24, 10**9):
            slabs = list(tensor.slabs(size))
            assert all(start % tensor.row_group == 0 for start, _ in slabs)
            parts = [tensor.read(start, stop) for start, stop in slabs]
            np.testing.assert_array_equal(np.concatenate(parts).reshape(whole.shape), whole)
        rows = whole if whole.ndim == 1 else whole.reshape(tensor.rows, -1)
        for start in range(0, tensor.rows, 3):  # a slab may also cut a head
            np.testing.assert_array_equal(tensor.read(start, start + 1), rows[start : start + 1])


def test_a_slab_reads_the_rows_of_its_heads_and_no_others() -> None:
    model = tiny_llama()
    read: list[tuple[int, int]] = []
    name = "model.layers.0.self_attn.q_proj.weight"
    values = model.tensors[name].load()

    def spy(start: int, stop: int) -> np.ndarray[Any, Any]:
        read.append((start, stop))
        return values[start:stop]

    tensors = {**model.tensors, name: replace(model.tensors[name], read=spy)}
    query = {t.name: t for t in map_tensors_to_gguf(LLAMA, model.hparams(), tensors, "here")}[
        "blk.0.attn_q.weight"
    ]
    assert not read
    query.read(16, 32)
    query.read(9, 10)  # the second of a head's rows is the first of its second half
    assert read == [(16, 32), (12, 13)]


def test_half_precision_is_preserved() -> None:
    import ml_dtypes

    model = tiny_llama(attention_bias=True)
    for dtype, kind in (("F16", np.float16), ("BF16", ml_dtypes.bfloat16)):
        tensors = {name: lazy_tensor(name, t.load().astype(kind), dtype) for name, t in model.tensors.items()}
        there = {t.name: t for t in map_tensors_to_gguf(LLAMA, model.hparams(), tensors, "here")}
        for tensor in map_tensors_to_hf(LLAMA, model.hparams(), there, "there"):
            assert tensor.dtype == dtype
            assert tensor.load().dtype == kind
            assert tensor.load().tobytes() == tensors[tensor.name].load().tobytes()


# --- tensors that do not fit the rules


def mapping_error(model: TinyModel, tensors: Mapping[str, LazyTensor]) -> PigError:
    with pytest.raises(PigError) as caught:
        map_tensors_to_gguf(model.family, model.hparams(), tensors, "some/where")
    assert "some/where" in caught.value.message
    assert caught.value.hint
    return caught.value


def test_a_missing_tensor_is_named() -> None:
    model = tiny_llama()
    for name in model.tensors:
        error = mapping_error(model, {other: t for other, t in model.tensors.items() if other != name})
        assert isinstance(error, MissingTensor)
        assert name in error.message
        assert ("tie_word_embeddings" in (error.hint or "")) == (name == "lm_head.weight")


def test_a_tensor_of_another_shape_is_named_with_both_shapes() -> None:
    model = tiny_llama()
    name = "model.embed_tokens.weight"
    error = mapping_error(model, {**model.tensors, name: lazy_tensor(name, np.zeros((95, 64), np.float32))})
    assert isinstance(error, InvalidTensor)
    for part in (name, "(95, 64)", "(96, 64)"):
        assert part in error.message
    assert "vocab_size" in (error.hint or "")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("model.layers.0.self_attn.q_proj.lora_A.weight", "merge"),
        ("model.layers.0.self_attn.q_proj.qweight", "quantized"),
        ("model.layers.0.mlp.gate_proj.weight_scale", "quantized"),
        ("model.layers.0.block_sparse_moe.experts.0.w1.weight", "experts"),
        ("model.vision_tower.patch.weight", "multimodal"),
        ("model.layers.0.self_attn.q_proj.bias", "attention_bias"),
        ("model.layers.2.input_layernorm.weight", None),
        ("model.layers.0.self_attn.q_norm.weight", None),
    ],
)
def test_an_unexpected_tensor_is_named(name: str, hint: str | None) -> None:
    model = tiny_llama()
    error = mapping_error(model, {**model.tensors, name: lazy_tensor(name, np.zeros(4, np.float32))})
    assert isinstance(error, UnmappedTensor)
    assert name in error.message
    assert (hint or "would change the model") in (error.hint or "")


def test_packed_weights_instead_of_weights_get_the_same_hint() -> None:
    model = tiny_llama()
    tensors = {name.replace("q_proj.weight", "q_proj.qweight"): t for name, t in model.tensors.items()}
    error = mapping_error(model, tensors)
    assert isinstance(error, MissingTensor)
    assert "quantized" in (error.hint or "")


def test_rotary_buffers_are_ignored() -> None:
    model = tiny_llama()
    names = ["model.rotary_emb.inv_freq", "model.layers.1.self_attn.rotary_emb.inv_freq"]
    buffers = {name: lazy_tensor(name, np.zeros(4, np.float32)) for name in names}
    both = map_tensors_to_gguf(model.family, model.hparams(), {**model.tensors, **buffers}, "here")
    assert [t.name for t in both] == list(model.converted())


def test_a_tied_output_matrix_equal_to_the_embedding_is_ignored() -> None:
    model = tiny_llama(tie_word_embeddings=True)
    embedding = model.tensors["model.embed_tokens.weight"].load()
    output = lazy_tensor("lm_head.weight", embedding.copy())
    names = [
        t.name
        for t in map_tensors_to_gguf(LLAMA, model.hparams(), {**model.tensors, output.name: output}, "here")
    ]
    assert names == list(model.converted())
    assert "output.weight" not in names
    for other in (embedding + np.eye(96, 64, dtype=np.float32), embedding[:-1]):
        changed = lazy_tensor("lm_head.weight", other)
        error = mapping_error(model, {**model.tensors, changed.name: changed})
        assert isinstance(error, InvalidTensor)
        assert "tie_word_embeddings = true" in error.message


def test_a_gguf_with_unknown_freq_factors_is_not_exported() -> None:
    model = tiny_llama()
    freq_factors = lazy_tensor("rope_freqs.weight", np.ones(4, np.float32))
    with pytest.raises(UnmappedTensor) as caught:
        map_tensors_to_hf(
            LLAMA, model.hparams(), {**model.converted(), freq_factors.name: freq_factors}, "x.gguf"
        )
    assert "llama3" in (caught.value.hint or "")


# --- finding a family


@pytest.mark.parametrize(
    ("config", "family"),
    [
        ({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}, LLAMA),
        ({"architectures": ["LLaMAForCausalLM"]}, LLAMA),
        ({"architectures": ["MistralForCausalLM"], "model_type": "mistral"}, MISTRAL),
        ({"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}, QWEN2),
        ({"model_type": "mistral"}, MISTRAL),
        ({"architectures": None, "model_type": "qwen2"}, QWEN2),
    ],
)
def test_families_are_found_by_class_or_model_type(config: dict[str, Any], family: Family) -> None:
    assert family_from_config(config) is family


@pytest.mark.parametrize(
    ("config", "error", "parts"),
    [
        (
            {"architectures": ["JambaForCausalLM"]},
            UnsupportedModel,
            ["JambaForCausalLM", "LlamaForCausalLM"],
        ),
        ({"architectures": ["LlamaForSequenceClassification"]}, UnsupportedModel, ["Classification"]),
        ({"model_type": "jamba"}, UnsupportedModel, ['model_type = "jamba"', "LlamaForCausalLM"]),
        (
            {"architectures": ["LlamaForCausalLM"], "model_type": "mistral"},
            UnsupportedModel,
            ["architectures", '"mistral"'],
        ),
        ({}, CheckpointError, ["architectures"]),
        ({"architectures": "LlamaForCausalLM"}, CheckpointError, ["architectures"]),
        ({"architectures": []}, CheckpointError, ["architectures"]),
        ({"architectures": [1]}, CheckpointError, ["architectures = [1]"]),
    ],
)
def test_unknown_families_are_rejected(
    config: dict[str, Any], error: type[PigError], parts: list[str]
) -> None:
    with pytest.raises(error) as caught:
        family_from_config(config)
    assert caught.value.hint
    for part in parts:
        assert part in f"{caught.value.message} {caught.value.hint}"


def test_families_are_found_by_architecture() -> None:
    assert family_by_architecture("llama") is LLAMA
    assert family_by_architecture("qwen2") is QWEN2
    with pytest.raises(UnsupportedModel, match="jamba") as caught:
        family_by_architecture("jamba")
    assert "supported architectures: llama, qwen2" in (caught.value.hint or "")


def test_every_family_has_unique_names() -> None:
    classes = [name for family in FAMILIES for name in family.hf_classes]
    assert len(set(classes)) == len(classes)
    assert len({family.model_type for family in FAMILIES}) == len(FAMILIES)


# --- configs


def read_hparams(family: Family, **changes: Any) -> HParams:
    config = {key: value for key, value in {**BASE, **changes}.items() if value is not ...}
    return hparams_from_config(family, config, positions_from_config(family, config, {}))


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"hidden_act": "gelu"}, ['hidden_act = "gelu"']),
        ({"is_causal": False}, ["is_causal = false"]),
        ({"quantization_config": {"quant_method": "gptq"}}, ["quantization_config", "gptq"]),
        ({"num_local_experts": 8}, ["num_local_experts = 8"]),
        ({"num_experts": 64}, ["num_experts = 64"]),
        ({"partial_rotary_factor": 0.5}, ["partial_rotary_factor = 0.5"]),
        (
            {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
            ["rope_parameters.partial_rotary_factor = 0.5"],
        ),
        ({"layer_types": ["full_attention", "linear_attention"]}, ["linear_attention"]),
    ],
)
@pytest.mark.parametrize("family", LLAMAS, ids=lambda family: family.model_type)
def test_config_values_that_the_graph_does_not_compute_are_rejected(
    family: Family, changes: dict[str, Any], parts: list[str]
) -> None:
    with pytest.raises(UnsupportedModel) as caught:
        read_hparams(family, **{"sliding_window": None, **changes})
    for part in (*parts, "config.json"):
        assert part in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("family", LLAMAS, ids=lambda family: family.model_type)
def test_config_values_without_effect_are_accepted(family: Family) -> None:
    harmless = {
        "hidden_act": "silu",
        "pretraining_tp": 2,
        "partial_rotary_factor": 1.0,
        "quantization_config": None,
        "attention_dropout": 0.1,
        "layer_types": ["full_attention", "full_attention"],
        "sliding_window": None,
    }
    assert read_hparams(family, **harmless) == read_hparams(family, sliding_window=None)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"hidden_size": ...}, "hidden_size"),
        ({"num_hidden_layers": ...}, "num_hidden_layers"),
        ({"intermediate_size": ...}, "intermediate_size"),
        ({"num_attention_heads": ...}, "num_attention_heads"),
        ({"vocab_size": ...}, "vocab_size"),
        ({"vocab_size": "96"}, 'vocab_size = "96"'),
        ({"num_hidden_layers": 0}, "num_hidden_layers = 0"),
        ({"num_hidden_layers": 513}, "513 layers"),
        ({"hidden_size": 60}, "hidden_size = 60"),
        ({"num_key_value_heads": 3}, "3 key-value heads"),
        ({"hidden_size": 72}, "9 of a head's 9 dimensions"),
        ({"rms_norm_eps": "1e-5"}, 'rms_norm_eps = "1e-5"'),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings = 1"),
        ({"attention_bias": "no"}, 'attention_bias = "no"'),
    ],
)
def test_an_inconsistent_config_is_rejected(changes: dict[str, Any], part: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        read_hparams(LLAMA, **changes)
    assert part in caught.value.message
    assert "config.json" in caught.value.message
    assert caught.value.hint


def test_defaults_are_those_of_transformers() -> None:
    hparams = read_hparams(LLAMA, num_key_value_heads=..., rms_norm_eps=..., tie_word_embeddings=...)
    assert (hparams.kv_heads, hparams.norm_epsilon, hparams.tied_embeddings) == (8, 1e-6, False)
    reference = transformers.LlamaConfig(num_attention_heads=8)
    assert (reference.num_key_value_heads, reference.rms_norm_eps) == (8, 1e-6)
    assert reference.tie_word_embeddings is False


def test_custom_head_dim_only_where_the_graph_supports_it() -> None:
    assert read_hparams(LLAMA, head_dim=16).head_dim == 16
    with pytest.raises(UnsupportedModel, match="8 heads of width 16 are not the embedding length 64"):
        read_hparams(QWEN2, head_dim=16)


SLIDING = [
    (MISTRAL, {"sliding_window": 32}, 32),
    (MISTRAL, {"max_position_embeddings": 32768}, 4096),  # absent: 4096, as in transformers
    (QWEN2, {"use_sliding_window": True, "sliding_window": 32}, 32),
    (QWEN2, {"use_sliding_window": True, "max_position_embeddings": 32768}, 4096),
]


@pytest.mark.parametrize(("family", "changes", "window"), SLIDING)
def test_a_sliding_window_limits_the_context_length(
    family: Family, changes: dict[str, Any], window: int
) -> None:
    with pytest.raises(UnsupportedModel) as caught:
        read_hparams(family, **changes)
    assert f"sliding_window = {window}" in caught.value.message
    assert f"`rope.context={window}`" in (caught.value.hint or "")
    config = {**BASE, **changes}
    rope = read_rope(config, {}, RopeOverrides(context=window))
    assert hparams_from_config(family, config, rope).rope.context_length == window


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        (LLAMA, {"sliding_window": 32}),
        (MISTRAL, {"sliding_window": 64}),
        (MISTRAL, {}),
        (MISTRAL, {"sliding_window": None, "max_position_embeddings": 32768}),
        (QWEN2, {"use_sliding_window": False, "sliding_window": 32}),
        (QWEN2, {"use_sliding_window": True, "sliding_window": 64, "layer_types": ["sliding_attention"] * 2}),
    ],
)
def test_a_sliding_window_without_effect_is_accepted(family: Family, changes: dict[str, Any]) -> None:
    assert read_hparams(family, **changes).layers == 2


# --- GGUF keys and exports


def to_single_precision(hparams: HParams) -> HParams:
    """Return the hparams after rounding to single precision."""
    return replace(hparams, norm_epsilon=f32(hparams.norm_epsilon).value)


def family_from_hparams(hparams: HParams) -> Family:
    """Return the family that is found for the GGUF."""
    runs_as_other = any(
        family.runs_as_other_architecture and hparams.hf_class in family.hf_classes for family in FAMILIES
    )
    return family_by_architecture(
        hparams.architecture, hparams.hf_class if runs_as_other else None, hparams.experts
    )


def test_gguf_keys_read_back_as_the_same_hparams(model: TinyModel) -> None:
    hparams = model.hparams()
    family = family_from_hparams(hparams)
    read = hparams_from_metadata(family, hparams.to_metadata(), model.converted())
    if model.variant == "gptneox, tied":  # the graph has an output matrix of its own all the same
        hparams = replace(hparams, features=hparams.features | {"untied"})
    assert read == replace(to_single_precision(hparams), hf_class=family.hf_classes[0])
    assert read.to_metadata() == hparams.to_metadata()


def test_transformers_computes_the_same_from_an_export(model: TinyModel) -> None:
    """Load the exported config and tensors with transformers and compare logits."""
    hparams, tensors = model.hparams(), model.converted()
    family = family_from_hparams(hparams)
    hparams = hparams_from_metadata(family, hparams.to_metadata(), tensors)
    config = config_from_hparams(family, hparams)
    assert config[
        family.config_key_aliases.get("max_position_embeddings", ["max_position_embeddings"])[0]
    ] == (hparams.rope.context_length)
    cls = getattr(transformers, config["architectures"][0])
    state = {
        t.name: torch.from_numpy(t.load().copy())
        for t in map_tensors_to_hf(family, hparams, tensors, "x.gguf")
    }
    exported, loading_info = cls.from_pretrained(
        None,
        config=cls.config_class.from_dict(config),
        state_dict=state,
        output_loading_info=True,
        dtype=torch.float32,
    )
    assert not loading_info["missing_keys"]
    assert not loading_info["unexpected_keys"]
    exported.eval()
    tokens = torch.arange(60).unsqueeze(0)
    with torch.no_grad():
        assert torch.equal(exported(tokens).logits, model.module(tokens).logits)
    assert hparams_from_exported(config).to_metadata() == hparams.to_metadata()


def hparams_from_exported(config: dict[str, Any]) -> HParams:
    family = family_from_config(config)
    return hparams_from_config(family, config, positions_from_config(family, config, {}))


def test_every_family_reads_the_config_that_it_writes(model: TinyModel) -> None:
    config = config_from_hparams(model.family, model.hparams())
    assert family_from_config(config) is model.family
    assert hparams_from_exported(config) == model.hparams()


@pytest.mark.parametrize(
    ("changes", "error", "part"),
    [
        ({"llama.block_count": None}, GGUFError, "llama.block_count"),
        ({"llama.block_count": u32(0)}, GGUFError, "block_count is 0"),
        ({"llama.attention.head_count": u32(0)}, GGUFError, "head_count is 0"),
        ({"llama.attention.head_count_kv": u32(3)}, GGUFError, "3 key-value heads"),
        ({"llama.attention.head_count": TypedValue("u32", (8, 8), is_array=True)}, GGUFError, "head_count"),
        ({"llama.attention.layer_norm_rms_epsilon": None}, GGUFError, "layer_norm_rms_epsilon"),
        ({"llama.vocab_size": None}, GGUFError, "vocab_size"),
        ({"llama.attention.value_length": u32(16)}, UnsupportedModel, "value_length is 16"),
        ({"llama.rope.dimension_count": u32(4)}, UnsupportedModel, "dimension_count is 4"),
        ({"llama.expert_count": u32(8)}, UnsupportedModel, "expert_count"),
        ({"llama.attention.causal": TypedValue("bool", False)}, UnsupportedModel, "causal"),
    ],
)
def test_inconsistent_gguf_keys_are_rejected(
    changes: dict[str, TypedValue | None], error: type[PigError], part: str
) -> None:
    keys = {**tiny_llama().hparams().to_metadata(), **changes}
    with pytest.raises(error) as caught:
        hparams_from_metadata(LLAMA, {k: v for k, v in keys.items() if v is not None})
    assert part in caught.value.message
    assert caught.value.hint


def test_vocab_size_is_the_number_of_tokens() -> None:
    keys = tiny_llama().hparams().to_metadata()
    tokens = TypedValue("str", tuple(map(str, range(90))), is_array=True)
    assert hparams_from_metadata(LLAMA, {**keys, "tokenizer.ggml.tokens": tokens}).vocab_size == 90


# --- llama.cpp itself


def test_llama_cpp_reads_the_same_hparams_and_computes_the_same(model: TinyModel, tmp_path: Path) -> None:
    hparams = model.hparams()
    write_model(tmp_path / "model.gguf", hparams, model.converted())
    with bare_engine(tmp_path / "model.gguf", context=256) as engine:
        assert llama_cpp.llama_model_n_ctx_train(engine.model) == hparams.rope.context_length
        assert llama_cpp.llama_model_n_embd(engine.model) == hparams.embedding_length
        assert llama_cpp.llama_model_n_layer(engine.model) == hparams.layers
        assert llama_cpp.llama_model_n_head(engine.model) == hparams.heads
        assert llama_cpp.llama_model_n_head_kv(engine.model) == hparams.kv_heads
        assert llama_cpp.llama_model_rope_freq_scale_train(engine.model) == 1 / hparams.rope.factor
        texts = torch.randint(0, hparams.vocab_size, (4, hparams.rope.context_length))
        got = torch.stack([engine.log_probabilities(text.tolist()) for text in texts])
    with torch.no_grad():
        expected = model.module(texts).logits.log_softmax(-1)
    divergence = (expected.exp() * (expected - got)).sum(-1)
    assert divergence.mean() <= 1e-6
    assert (expected.argmax(-1) == got.argmax(-1)).float().mean() >= 0.99


def test_qwen3_biases_that_the_graph_does_not_load_are_rejected() -> None:
    with pytest.raises(UnsupportedModel, match="attention_bias = true") as caught:
        read_hparams(QWEN3, attention_bias=True)
    assert caught.value.hint


def test_gguf_only_tensors_are_checked_on_export() -> None:
    """Biases of zeros (GPT-J) and a second copy of the embedding (GPT-NeoX) must be what they should be."""
    gptj = TinyModel("gptj")
    name = "blk.1.attn_k.bias"
    tensors = gptj.converted()
    for index in (0, -1):
        values = tensors[name].load().copy()
        values[index] = 1e-30
        with pytest.raises(InvalidTensor, match=name) as caught:
            map_tensors_to_hf(
                gptj.family, gptj.hparams(), {**tensors, name: lazy_tensor(name, values)}, "x.gguf"
            )
        assert caught.value.hint
    tied = TinyModel("gptneox, tied")
    tensors = tied.converted()
    values = tensors["output.weight"].load().copy()
    values[-1, -1] += 1
    other = lazy_tensor("output.weight", values)
    with pytest.raises(InvalidTensor, match="differs from the embedding"):
        map_tensors_to_hf(tied.family, tied.hparams(), {**tensors, other.name: other}, "x.gguf")


def test_positions_are_written_into_the_language_models_section() -> None:
    language = {**TinyModel("gemma3").config, "rope_scaling": {"rope_type": "linear", "factor": 2.0}}
    config = {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "text_config": language,
    }
    family = family_from_config(config)
    rope = LinearScaling(
        rope_theta=1e4, original_context=64, context_length=256, factor=4.0, local_rope_theta=1e4
    )
    hparams = replace(TinyModel("gemma3").hparams(), rope=rope)
    extended = config_with_positions(family, config, hparams)
    assert extended.keys() == config.keys()
    assert positions_from_config(family, extended, {}).factor == 4.0
