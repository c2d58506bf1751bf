"""Rope types other than linear: frequencies as in transformers, GGUF keys and tensors, and back."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from support.rope_configs import (
    LLAMA3,
    LONG_FACTOR,
    LONGROPE,
    OTHER_ROPE_TYPES,
    SHORT_FACTOR,
    mpe,
    scaling,
)

from pigguf.errors import CheckpointError, RopeConflict, UnsupportedModel
from pigguf.gguf_io.metadata import TypedValue, f32, string, u32
from pigguf.rope import (
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    RopeOverrides,
    RopeScaling,
    UnscaledRope,
    YarnScaling,
    read_rope,
    rope_from_metadata,
)

ROTARY_DIMS = {"longrope": 96}  # of the published lists; elsewhere 128
HEADS = {"hidden_size": 4096, "num_attention_heads": 32}
GRAPHS = {"longrope": "phi3", "gemma": "gemma3"}

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}


def yarn(**keys: Any) -> dict[str, Any]:
    return mpe(16384, rope_scaling={**YARN, **keys})


# Settings that no published config has.
SETTINGS: dict[str, dict[str, Any]] = {
    "yarn, attention_factor": yarn(attention_factor=1.3),
    "yarn, mscale": yarn(mscale=0.707, mscale_all_dim=1.0),
    "yarn, equal mscales": yarn(mscale=1.0, mscale_all_dim=1.0),
    "yarn, defaults stated": yarn(beta_fast=32, beta_slow=1.0, truncate=True, extrapolation_factor=1),
    "yarn, factor missing": yarn(factor=None),
    "llama3, another factor and context": mpe(
        4096, rope_scaling={**LLAMA3, "factor": 16.0, "original_max_position_embeddings": 1024}
    ),
    "longrope, attention_factor": mpe(
        131072,
        original_max_position_embeddings=4096,
        rope_scaling={"rope_type": "longrope", **LONGROPE, "attention_factor": 1.5},
    ),
    "longrope, factor, original context inside": mpe(
        131072,
        rope_scaling={
            "rope_type": "longrope",
            **LONGROPE,
            "factor": 16.0,
            "original_max_position_embeddings": 4096,
        },
    ),
}
CONFIGS = {**{name: row[0] for name, row in OTHER_ROPE_TYPES.items()}, **SETTINGS}


def architecture_of(name: str) -> str:
    return "phi3" if "Phi" in name or "longrope" in name else "gemma3" if "gemma" in name else "llama"


def rotary_dim_of(rope: RopeScaling) -> int:
    return ROTARY_DIMS.get(rope.rope_type, 128)


def frequencies(rope: RopeScaling, length: int) -> tuple[np.ndarray, float]:
    """Return llama.cpp's frequencies and attention factor for a context of `length` tokens, from a GGUF.

    ggml-cpu/ops.cpp (ggml_rope_cache_init, rope_yarn), ggml.c (ggml_rope_yarn_corr_dims) and
    src/llama-context.cpp, for a file's keys and tensors.
    """
    size = rotary_dim_of(rope)
    keys = rope.to_gguf("phi3" if rope.rope_type == "longrope" else "llama")
    gguf_keys = {key.partition(".")[2]: typed.value for key, typed in keys.items()}
    tensors = rope.tensors(size)
    base, scale = gguf_keys["rope.freq_base"], 1 / gguf_keys.get("rope.scaling.factor", 1.0)
    original = gguf_keys.get("rope.scaling.original_context_length", gguf_keys["context_length"])
    which = "rope_factors_long.weight" if length > original else "rope_factors_short.weight"
    freq_factors = tensors.get("rope_freqs.weight", tensors.get(which, 1.0))
    pairs = np.arange(size // 2)
    own = base ** (-2 * pairs / size) / freq_factors
    attention = gguf_keys.get("rope.scaling.attn_factor", 1.0)
    if gguf_keys.get("rope.scaling.type") != "yarn":
        return own * scale, attention

    def bound(turns: float) -> float:
        return float(size * np.log(original / (turns * 2 * np.pi)) / (2 * np.log(base)))

    low, high = max(0, np.floor(bound(32))), min(size - 1, np.ceil(bound(1)))
    ramp = 1 - np.clip((pairs - low) / max(0.001, high - low), 0, 1)
    return own * scale * (1 - ramp) + own * ramp, attention * (1 + 0.1 * np.log(1 / scale))


def transformers_frequencies(config: dict[str, Any], size: int, length: int) -> tuple[np.ndarray, float]:
    import torch
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    sizes = {"hidden_size": size * 4, "num_attention_heads": 4}
    copy = deepcopy(config)  # transformers writes into what it is given
    embedding = LlamaRotaryEmbedding(LlamaConfig.from_dict({**copy, **sizes}))
    embedding(torch.zeros(1), torch.tensor([[length - 1]]))  # some rope types depend on the length of a text
    return embedding.inv_freq.numpy(), embedding.attention_scaling


LLAMA_CONFIGS = [name for name in CONFIGS if "gemma" not in name]


@pytest.mark.parametrize("past", [False, True], ids=["within", "beyond"])
@pytest.mark.parametrize("name", LLAMA_CONFIGS)
def test_frequencies_are_those_of_transformers(name: str, past: bool) -> None:
    config = CONFIGS[name]
    if "su" in config["rope_scaling"].values():  # Phi3Config's old name, which LlamaConfig never knew
        config = {**config, "rope_scaling": {**config["rope_scaling"], "type": "longrope"}}
    rope = read_rope(config, {})
    length = rope.original_context + 1 if past else rope.original_context
    ours, attention = frequencies(rope, length)
    for source in (config, rope.to_config()):
        if source is config and name == "yarn, factor missing":
            continue  # transformers compares it with a number, and fails
        theirs, scaling = transformers_frequencies(source, rotary_dim_of(rope), length)
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)
        assert attention == pytest.approx(scaling, rel=1e-6)


@pytest.mark.parametrize("name", CONFIGS)
def test_keys_and_tensors_read_back_as_the_same_scaling(name: str) -> None:
    rope = read_rope(CONFIGS[name], {})
    keys, tensors = rope.to_gguf(architecture_of(name)), rope.tensors(rotary_dim_of(rope))
    read = rope_from_metadata(keys, architecture_of(name), tensors)
    assert read == rope
    assert read.to_gguf(architecture_of(name)) == keys
    assert all(
        np.array_equal(read.tensors(rotary_dim_of(rope))[key], values) for key, values in tensors.items()
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_an_export_reads_back_as_the_same_scaling(name: str) -> None:
    rope = read_rope(CONFIGS[name], {})
    read = rope_from_metadata(
        rope.to_gguf(architecture_of(name)), architecture_of(name), rope.tensors(rotary_dim_of(rope))
    )
    config = read.to_config()
    assert read_rope(config, {}) == rope
    for schema in ("rope_scaling", "rope_parameters"):
        remaining = {key: value for key, value in config.items() if key != schema}
        if rope.rope_type == "none" or (schema == "rope_parameters" and "gemma" in name):
            continue
        assert read_rope(remaining, {}) == rope


@pytest.mark.parametrize("name", CONFIGS)
def test_each_rope_type_is_explained_in_a_sentence(name: str) -> None:
    rope = read_rope(CONFIGS[name], {})
    sentence = rope.explain()
    assert sentence.startswith("position")
    assert str(rope.context_length) in sentence or str(rope.context_length - 1) in sentence
    words = {"yarn": "YaRN", "llama3": "Llama 3", "longrope": "LongRoPE"}
    assert words.get(rope.rope_type, "") in sentence
    assert ("10000" in sentence) == ("gemma" in name)


def test_yarn_as_gguf_keys() -> None:
    assert read_rope(yarn(attention_factor=1.3), {}).to_gguf("llama") == {
        "llama.context_length": u32(16384),
        "llama.rope.freq_base": f32(10000.0),
        "llama.rope.scaling.type": string("yarn"),
        "llama.rope.scaling.factor": f32(4.0),
        "llama.rope.scaling.original_context_length": u32(4096),
        "llama.rope.scaling.attn_factor": f32(1.3 / (1 + 0.1 * np.log(4))),
    }


def test_llama3_as_gguf_keys_and_the_tensor_of_llama_cpp() -> None:
    rope = read_rope(CONFIGS["Llama-3.2-1B"], {})
    assert rope.to_gguf("llama") == {
        "llama.context_length": u32(131072),
        "llama.rope.freq_base": f32(500000.0),
        "llama.rope.scaling.original_context_length": u32(8192),
    }
    (freq_factors,) = rope.tensors(64).values()
    assert freq_factors.dtype == np.float32
    np.testing.assert_array_equal(freq_factors, llama_cpp_freq_factors(5e5, 64, 32.0, 8192))


def llama_cpp_freq_factors(base: float, size: int, factor: float, original: int) -> np.ndarray:
    """As conversion/llama.py computes it, in torch."""
    import torch

    rates = 1.0 / (base ** (torch.arange(0, size, 2, dtype=torch.float32) / size))
    freq_factors = []
    for rate in rates:
        length = 2 * np.pi / rate
        smooth = (original / length - 1.0) / 3.0
        between = 1 / ((1 - smooth) / factor + smooth)
        freq_factors.append(1 if length < original / 4 else factor if length > original else between)
    return torch.tensor(freq_factors, dtype=torch.float32).numpy()  # type: ignore[no-any-return]


def test_longrope_as_gguf_keys_and_tensors() -> None:
    rope = read_rope(CONFIGS["Phi-3-mini-128k"], {})
    assert rope.to_gguf("phi3") == {
        "phi3.context_length": u32(131072),
        "phi3.rope.freq_base": f32(10000.0),
        "phi3.rope.scaling.type": string("longrope"),
        "phi3.rope.scaling.original_context_length": u32(4096),
        "phi3.rope.scaling.attn_factor": f32(np.sqrt(1 + np.log(32) / np.log(4096))),
    }
    tensors = rope.tensors(96)
    np.testing.assert_array_equal(tensors["rope_factors_short.weight"], np.float32(SHORT_FACTOR))
    np.testing.assert_array_equal(tensors["rope_factors_long.weight"], np.float32(LONG_FACTOR))
    with pytest.raises(CheckpointError, match=r"48 numbers.*64 dimensions.*32 pairs") as caught:
        rope.tensors(64)
    assert caught.value.hint


def test_gemma_3_scales_global_layers_alone() -> None:
    rope = read_rope(CONFIGS["gemma-3-4b"], {})
    assert rope.to_gguf("gemma3") == {
        "gemma3.context_length": u32(131072),
        "gemma3.rope.freq_base": f32(1e6),
        "gemma3.rope.scaling.type": string("linear"),
        "gemma3.rope.scaling.factor": f32(8.0),
        "gemma3.rope.scaling.original_context_length": u32(16384),
        "gemma3.rope.freq_base_swa": f32(1e4),
    }
    assert not rope.tensors(256)
    nested = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    assert read_rope(mpe(131072, rope_parameters=nested), {}) == rope
    assert read_rope({"text_config": mpe(131072, rope_parameters=nested)}, {}) == rope


def gemma_frequencies(config: dict[str, Any], layers: str) -> np.ndarray:
    from transformers import Gemma3TextConfig
    from transformers.models.gemma3.modeling_gemma3 import Gemma3RotaryEmbedding

    embedding = Gemma3RotaryEmbedding(Gemma3TextConfig(**config, head_dim=64, num_hidden_layers=6))
    return getattr(embedding, f"{layers}_inv_freq").numpy()  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", ["gemma-3-4b", "gemma-3-1b"])
def test_transformers_understands_an_exported_gemma_3(name: str) -> None:
    rope = read_rope(CONFIGS[name], {})
    powers = -np.arange(0, 64, 2) / 64
    config = rope.to_config()
    np.testing.assert_allclose(
        gemma_frequencies(config, "full_attention"), 1e6**powers / rope.factor, rtol=1e-5
    )
    np.testing.assert_allclose(gemma_frequencies(config, "sliding_attention"), 1e4**powers, rtol=1e-5)


def test_a_gemma_3_gguf_without_freq_base_swa_has_llama_cpps_default() -> None:
    keys = {"gemma3.context_length": u32(32768), "gemma3.rope.freq_base": f32(1e6)}
    assert rope_from_metadata(keys, "gemma3").local_rope_theta is None
    keys["gemma3.attention.sliding_window"] = u32(512)
    assert rope_from_metadata(keys, "gemma3").local_rope_theta == 1e4


# --- dynamic scaling


DYNAMIC = mpe(8192, rope_theta=5e5, **HEADS, **scaling("dynamic", 4.0))


@pytest.mark.parametrize(
    ("overrides", "context", "factor"),
    [
        (RopeOverrides(context=32768), 32768, 4.0),
        (RopeOverrides(context=10000), 10000, 4.0),
        (RopeOverrides(factor=2.0), 16384, 2.0),
        (RopeOverrides(factor=2.0, context=32768), 32768, 2.0),
    ],
)
def test_dynamic_scaling_is_fixed_to_the_rope_theta_of_the_chosen_context(
    overrides: RopeOverrides, context: int, factor: float
) -> None:
    rope = read_rope(DYNAMIC, {}, overrides)
    assert (rope.rope_type, rope.factor, rope.context_length) == ("none", 1.0, context)
    config = {**DYNAMIC, "rope_scaling": {"rope_type": "dynamic", "factor": factor}}
    theirs, attention = transformers_frequencies(config, 128, context)
    np.testing.assert_allclose(rope.rope_theta ** (-np.arange(0, 128, 2) / 128), theirs, rtol=1e-5)
    assert attention == 1.0
    assert f"fixed to its rope_theta at {context}" in rope.decisions[0]
    assert f"{rope.rope_theta:g} instead of 500000" in rope.decisions[0]
    assert read_rope(rope.to_config(), {}) == replace(rope, rope_theta=pytest.approx(rope.rope_theta))


def test_dynamic_scaling_respects_partial_rotary() -> None:
    half = {**DYNAMIC, "partial_rotary_factor": 0.5}
    rope = read_rope(half, {}, RopeOverrides(context=32768))
    assert rope.rope_theta == pytest.approx(5e5 * 13 ** (64 / 62))


def test_dynamic_scaling_changes_nothing_within_the_original_context() -> None:
    rope = read_rope(DYNAMIC, {}, RopeOverrides(context=8192))
    assert rope == UnscaledRope(rope_theta=5e5, original_context=8192, context_length=8192)
    assert "changes nothing up to 8192" in rope.decisions[0]


def test_dynamic_scaling_without_head_dim_is_rejected() -> None:
    config = mpe(8192, **scaling("dynamic", 4.0))
    with pytest.raises(CheckpointError, match="num_attention_heads") as caught:
        read_rope(config, {}, RopeOverrides(context=16384))
    assert caught.value.hint


# --- overrides


@pytest.mark.parametrize(
    ("name", "overrides", "expected"),
    [
        ("Yarn-Llama-2-7b-64k", RopeOverrides(factor=1.0, context=4096), ("none", 1.0, 4096, 4096)),
        ("Yarn-Llama-2-7b-64k", RopeOverrides(factor=8.0, context=32768), ("yarn", 8.0, 4096, 32768)),
        ("Qwen2.5-7B-Instruct with yarn", RopeOverrides(factor=2.0), ("yarn", 2.0, 32768, 65536)),
        ("Llama-3.1-8B", RopeOverrides(factor=1.0, context=131072), ("none", 1.0, 131072, 131072)),
        ("Llama-3.1-8B", RopeOverrides(factor=32.0), ("llama3", 32.0, 8192, 131072)),
        ("Llama-3.1-8B", RopeOverrides(context=32768), ("llama3", 8.0, 8192, 32768)),
        ("Phi-3-mini-128k", RopeOverrides(context=65536), ("longrope", 1.0, 4096, 65536)),
    ],
)
def test_an_overriding_factor_keeps_the_configs_rope_type(
    name: str, overrides: RopeOverrides, expected: tuple[str, float, int, int]
) -> None:
    rope = read_rope(CONFIGS[name], {}, overrides)
    assert (rope.rope_type, rope.factor, rope.original_context, rope.context_length) == expected


def test_a_shorter_context_keeps_longropes_attention_factor() -> None:
    whole = read_rope(CONFIGS["Phi-3-mini-128k"], {})
    shorter = read_rope(CONFIGS["Phi-3-mini-128k"], {}, RopeOverrides(context=65536))
    assert shorter.parameters == whole.parameters


def test_a_factor_for_longrope_is_a_conflict() -> None:
    with pytest.raises(RopeConflict, match=r"`rope\.factor=4\.0`.*lists") as caught:
        read_rope(CONFIGS["Phi-3-mini-128k"], {}, RopeOverrides(factor=4.0))
    assert "`rope.factor=1`" in (caught.value.hint or "")


# --- parameters that a graph does not read


@pytest.mark.parametrize(
    ("rope", "architecture", "parts"),
    [
        (read_rope(yarn(beta_fast=64), {}), "llama", ["beta_fast = 64", "32", "llama"]),
        (read_rope(yarn(beta_slow=2), {}), "qwen2", ["beta_slow = 2", "qwen2"]),
        (read_rope(CONFIGS["Llama-3.1-8B"], {}), "qwen2", ["llama3", "qwen2"]),
        (read_rope(CONFIGS["Phi-3.5-mini"], {}), "qwen3", ["longrope", "qwen3"]),
        (read_rope(CONFIGS["gemma-3-4b"], {}), "gemma2", ["sliding layers", "gemma2"]),
        (
            LinearScaling(rope_theta=1e4, original_context=4096, context_length=16384, factor=4.0),
            "gemma3",
            ["sliding layers", "gemma3"],
        ),
        (
            YarnScaling(
                rope_theta=1e6,
                original_context=4096,
                context_length=16384,
                factor=4.0,
                attn_factor=1.5,
                local_rope_theta=1e4,
            ),
            "gemma3",
            ["1.5"],
        ),
        (
            LinearScaling(
                rope_theta=1e4, original_context=4096, context_length=16384, factor=4.0, attn_factor=1.2
            ),
            "llama",
            ["attn_factor = 1.2"],
        ),
        (
            YarnScaling(
                rope_theta=1e4,
                original_context=4096,
                context_length=16384,
                factor=4.0,
                other_parameters={"yarn_ext_factor": 0.5},
            ),
            "llama",
            ["yarn_ext_factor"],
        ),
        (
            LongRopeScaling(rope_theta=1e4, original_context=4096, context_length=131072),
            "phi3",
            ["longrope", "short_factor"],
        ),
    ],
)
def test_parameters_that_a_graph_ignores_are_rejected_by_name(
    rope: RopeScaling, architecture: str, parts: list[str]
) -> None:
    with pytest.raises(UnsupportedModel) as caught:
        rope.to_gguf(architecture)
    for part in parts:
        assert part in caught.value.message
    assert caught.value.hint


def test_yarn_betas_are_written_for_graphs_that_read_them() -> None:
    rope = read_rope(yarn(beta_fast=64, beta_slow=2), {})
    keys = rope.to_gguf("mistral3")
    assert keys["mistral3.rope.scaling.yarn_beta_fast"] == f32(64.0)
    assert rope_from_metadata(keys, "mistral3") == rope
    assert read_rope(rope.to_config(), {}) == rope


# --- tensors in a GGUF


def llama_keys(**keys: TypedValue) -> dict[str, TypedValue]:
    return {"llama.context_length": u32(131072), "llama.rope.freq_base": f32(5e5), **keys}


@pytest.mark.parametrize("size", [64, 128])
@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama_3_is_recognized_by_its_tensor(size: int, factor: float) -> None:
    tensors = {"rope_freqs.weight": llama_cpp_freq_factors(5e5, size, factor, 8192)}
    rope = rope_from_metadata(llama_keys(), "llama", tensors)
    bands = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    assert rope == Llama3Scaling(
        rope_theta=5e5, original_context=8192, context_length=131072, factor=factor, **bands
    )
    np.testing.assert_array_equal(rope.tensors(size)["rope_freqs.weight"], tensors["rope_freqs.weight"])
    assert rope.to_config()["rope_scaling"] == {**LLAMA3, "factor": factor}


@pytest.mark.parametrize(
    "values", [np.full(32, 2.0), np.full(32, np.nan), np.linspace(1, 8, 32), np.zeros(32)]
)
def test_unknown_freq_factors_are_explained_and_not_exported(values: np.ndarray) -> None:
    rope = rope_from_metadata(llama_keys(), "llama", {"rope_freqs.weight": values.astype(np.float32)})
    assert rope.rope_type == "none"
    assert "its own number in rope_freqs.weight" in rope.explain()
    np.testing.assert_array_equal(rope.tensors(64)["rope_freqs.weight"], values.astype(np.float32))
    with pytest.raises(UnsupportedModel, match=r"rope_freqs\.weight") as caught:
        rope.to_config()
    assert caught.value.hint


def test_freq_factors_with_a_factor_are_explained_and_not_exported() -> None:
    keys = llama_keys(**{"llama.rope.scaling.factor": f32(2.0)})
    rope = rope_from_metadata(
        keys, "llama", {"rope_freqs.weight": llama_cpp_freq_factors(5e5, 64, 8.0, 8192)}
    )
    assert (rope.rope_type, rope.factor) == ("linear", 2.0)
    assert "rope_freqs.weight" in rope.explain()
    with pytest.raises(UnsupportedModel, match=r"rope_freqs\.weight"):
        rope.to_config()


def test_longrope_with_a_factor_is_not_exported() -> None:
    rope = replace(read_rope(CONFIGS["Phi-3.5-mini"], {}), factor=2.0)
    assert rope.to_gguf("phi3")["phi3.rope.scaling.factor"] == f32(2.0)
    with pytest.raises(UnsupportedModel, match=r"rope\.scaling\.factor = 2") as caught:
        rope.to_config()
    assert caught.value.hint
