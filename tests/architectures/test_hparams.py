"""The GGUF keys of HParams."""

from __future__ import annotations

from dataclasses import replace

from pigguf.architectures.hparams import HParams
from pigguf.gguf_io.metadata import f32, round_to_shortest_f32, string, u32
from pigguf.rope import LinearScaling

HPARAMS = HParams(
    architecture="llama",
    hf_class="LlamaForCausalLM",
    layers=30,
    embedding_length=576,
    feed_forward_length=1536,
    heads=9,
    kv_heads=3,
    head_dim=64,
    rotary_dim=64,
    vocab_size=49152,
    norm_epsilon=1e-5,
    rope=LinearScaling(rope_theta=100000.0, original_context=8192, context_length=32768, factor=4.0),
)


def test_hparams_as_gguf_keys() -> None:
    assert HPARAMS.to_metadata() == {
        "llama.block_count": u32(30),
        "llama.embedding_length": u32(576),
        "llama.feed_forward_length": u32(1536),
        "llama.attention.head_count": u32(9),
        "llama.attention.head_count_kv": u32(3),
        "llama.attention.layer_norm_rms_epsilon": f32(1e-5),
        "llama.vocab_size": u32(49152),
        "llama.rope.dimension_count": u32(64),
        "llama.context_length": u32(32768),
        "llama.rope.freq_base": f32(100000.0),
        "llama.rope.scaling.type": string("linear"),
        "llama.rope.scaling.factor": f32(4.0),
        "llama.rope.scaling.original_context_length": u32(8192),
    }


def test_a_custom_head_dim_is_written() -> None:
    keys = replace(HPARAMS, head_dim=128, rotary_dim=128).to_metadata()
    assert keys["llama.attention.key_length"] == u32(128)
    assert keys["llama.attention.value_length"] == u32(128)
    assert keys["llama.rope.dimension_count"] == u32(128)


def test_single_precision_values_are_exact_and_shown_short() -> None:
    assert f32(1e-5).value == 9.999999747378752e-06
    assert round_to_shortest_f32(9.999999747378752e-06) == 1e-05
    for value in (1e-6, 10000.0, 500000.0, 24.41, 1 / 3):
        assert f32(round_to_shortest_f32(f32(value).value)) == f32(value)
