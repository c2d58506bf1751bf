"""GGUF keys and tensors of positions, written and read."""

from __future__ import annotations

import math

import pytest
from support.rope_configs import PUBLISHED

from pigguf.errors import GGUFError
from pigguf.gguf_io.metadata import TypedValue, f32, string, u32
from pigguf.rope import (
    LinearScaling,
    LongRopeScaling,
    RopeScaling,
    UnscaledRope,
    YarnScaling,
    read_rope,
    rope_from_metadata,
)


def test_linear_scaling_as_gguf_keys() -> None:
    assert LinearScaling(rope_theta=10000.0, original_context=4096, context_length=32768, factor=8.0).to_gguf(
        "llama"
    ) == {
        "llama.context_length": u32(32768),
        "llama.rope.freq_base": f32(10000.0),
        "llama.rope.scaling.type": string("linear"),
        "llama.rope.scaling.factor": f32(8.0),
        "llama.rope.scaling.original_context_length": u32(4096),
    }


def test_unscaled_positions_as_gguf_keys() -> None:
    assert UnscaledRope(rope_theta=1e6, original_context=32768, context_length=32768).to_gguf("qwen2") == {
        "qwen2.context_length": u32(32768),
        "qwen2.rope.freq_base": f32(1e6),
    }


@pytest.mark.parametrize("name", PUBLISHED)
def test_gguf_keys_read_back_as_the_same_scaling(name: str) -> None:
    config, limit, *_ = PUBLISHED[name]
    rope = read_rope(config, {"model_max_length": limit})
    keys = rope.to_gguf("llama")
    assert rope_from_metadata(keys, "llama") == rope
    assert rope_from_metadata(keys, "llama").to_gguf("llama") == keys


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, UnscaledRope(rope_theta=10000.0, original_context=4096, context_length=4096)),
        ({"freq_base": f32(5e5)}, UnscaledRope(rope_theta=5e5, original_context=4096, context_length=4096)),
        (
            {"scaling.type": string("none"), "scaling.factor": f32(4)},
            UnscaledRope(rope_theta=1e4, original_context=4096, context_length=4096),
        ),
        (
            {"scaling.type": string("linear")},
            UnscaledRope(rope_theta=1e4, original_context=4096, context_length=4096),
        ),
        (
            {"scaling.factor": f32(4)},
            LinearScaling(rope_theta=1e4, original_context=4096, context_length=4096, factor=4.0),
        ),
        (
            {"scale_linear": f32(4)},
            LinearScaling(rope_theta=1e4, original_context=4096, context_length=4096, factor=4.0),
        ),
        (
            {"scale_linear": f32(4), "scaling.factor": f32(0)},
            UnscaledRope(rope_theta=1e4, original_context=4096, context_length=4096),
        ),
        (
            {"scaling.factor": f32(4), "scaling.original_context_length": u32(1024)},
            LinearScaling(rope_theta=1e4, original_context=1024, context_length=4096, factor=4.0),
        ),
        (
            {"scaling.finetuned": TypedValue("bool", True)},
            UnscaledRope(rope_theta=1e4, original_context=4096, context_length=4096),
        ),
        (
            {
                "scaling.type": string("yarn"),
                "scaling.factor": f32(16),
                "scaling.original_context_length": u32(256),
                "scaling.yarn_beta_fast": f32(32),
            },
            YarnScaling(rope_theta=1e4, original_context=256, context_length=4096, factor=16.0),
        ),
        (
            {"scaling.type": string("yarn"), "scaling.factor": f32(4), "scaling.yarn_beta_fast": f32(16)},
            YarnScaling(
                rope_theta=1e4, original_context=4096, context_length=4096, factor=4.0, beta_fast=16.0
            ),
        ),
        (
            {"scaling.type": string("longrope"), "scaling.attn_factor": f32(1.5)},
            LongRopeScaling(rope_theta=1e4, original_context=4096, context_length=4096, attn_factor=1.5),
        ),
    ],
)
def test_gguf_keys_are_read_as_llama_cpp_reads_them(
    keys: dict[str, TypedValue], expected: RopeScaling
) -> None:
    metadata = {"llama.context_length": u32(4096), **{f"llama.rope.{key}": v for key, v in keys.items()}}
    assert rope_from_metadata(metadata, "llama") == expected


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("llama.rope.scaling.type", string("dynamic")),
        ("llama.rope.scaling.type", u32(1)),
        ("llama.rope.scaling.factor", u32(4)),
        ("llama.rope.scaling.factor", f32(math.nan)),
        ("llama.rope.scaling.factor", f32(-4.0)),
        ("llama.rope.freq_base", f32(0.0)),
        ("llama.rope.freq_base", TypedValue("f32", (1e4,), is_array=True)),
        ("llama.context_length", u32(0)),
        ("llama.context_length", TypedValue("u64", 4096)),
        ("llama.context_length", None),
    ],
)
def test_gguf_keys_that_llama_cpp_does_not_accept_are_rejected(key: str, value: TypedValue | None) -> None:
    metadata = {"llama.context_length": u32(4096), key: value}
    metadata = {name: typed for name, typed in metadata.items() if typed is not None}
    with pytest.raises(GGUFError, match=key) as caught:
        rope_from_metadata(metadata, "llama")  # type: ignore[arg-type]
    assert caught.value.hint
