"""Typed reads of a config, and the keys a HParams becomes."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from pigguf.architectures.hparams import HParams
from pigguf.common.json_config import JsonConfig
from pigguf.errors import CheckpointError
from pigguf.gguf_io.metadata import f32, round_to_shortest_f32, string, u32
from pigguf.rope import LinearScaling

SPEC = HParams(
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


def test_a_spec_as_gguf_keys() -> None:
    assert SPEC.to_metadata() == {
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


def test_a_head_of_its_own_width_is_said() -> None:
    keys = replace(SPEC, head_dim=128, rotary_dim=128).to_metadata()
    assert keys["llama.attention.key_length"] == u32(128)
    assert keys["llama.attention.value_length"] == u32(128)
    assert keys["llama.rope.dimension_count"] == u32(128)


def test_single_precision_is_kept_as_the_file_holds_it_and_told_shortly() -> None:
    assert f32(1e-5).value == 9.999999747378752e-06
    assert round_to_shortest_f32(9.999999747378752e-06) == 1e-05
    for value in (1e-6, 10000.0, 500000.0, 24.41, 1 / 3):
        assert f32(round_to_shortest_f32(f32(value).value)) == f32(value)


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        (int, 4096, 4096),
        (int, 4096.0, 4096),
        (int, 1, 1),
        (int, 2**32 - 1, 2**32 - 1),
        (float, 1e-5, 1e-5),
        (float, 4, 4.0),
        (float, -0.5, -0.5),
        (bool, True, True),
        (bool, False, False),
        (str, "silu", "silu"),
    ],
)
def test_values_are_read_as_their_type(kind: type, value: Any, expected: Any) -> None:
    config = JsonConfig({"key": value})
    for read in (config.require("key", kind), config.optional("key", kind, expected)):
        assert read == expected
        assert type(read) is kind


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (int, True),
        (int, "4096"),
        (int, 4096.5),
        (int, 0),
        (int, -1),
        (int, 2**32),
        (int, math.nan),
        (int, [4096]),
        (float, True),
        (float, "1e-5"),
        (float, math.nan),
        (float, math.inf),
        (float, 10**400),
        (bool, 1),
        (bool, "true"),
        (str, 1),
        (str, ["silu"]),
    ],
)
def test_other_types_are_refused_with_file_key_and_value(kind: type, value: Any) -> None:
    config = JsonConfig({"key": value}, "generation_config.json", "section.")
    for read in (lambda: config.require("key", kind), lambda: config.optional("key", kind, None)):
        with pytest.raises(CheckpointError, match=r"generation_config\.json: section\.key = "):
            read()


def test_null_is_absence() -> None:
    config = JsonConfig({"there": None})
    assert "there" not in config
    assert config.optional("there", int, 7) == 7
    assert config.optional("absent", float, 0.5) == 0.5
    for key in ("there", "absent"):
        with pytest.raises(CheckpointError, match=f"config.json lacks {key}") as caught:
            config.require(key, int)
        assert caught.value.hint == "set it to an integer above 0"


def test_sections_are_objects() -> None:
    config = JsonConfig({"a": {"b": {"c": "x"}}, "empty": {}, "null": None, "number": 1})
    section = config.section("a")
    assert section is not None
    nested = section.section("b")
    assert nested is not None
    with pytest.raises(CheckpointError, match=r'config\.json: a\.b\.c = "x" is not an integer above 0'):
        nested.require("c", int)
    assert [config.section(key) for key in ("empty", "null", "absent")] == [None, None, None]
    with pytest.raises(CheckpointError, match="number = 1 is not an object"):
        config.section("number")


def test_long_values_are_cut_in_messages() -> None:
    message = JsonConfig({"key": list(range(1000))}).describe("key")
    assert len(message) < 250
    assert message.endswith("...")
