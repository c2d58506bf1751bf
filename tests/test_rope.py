"""Positions: every published dialect, every contradiction, and the numbers against transformers'."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pigguf.errors import CheckpointError, GGUFError, PigError, RopeConflict, UnsupportedModel
from pigguf.metadata import Typed, f32, string, u32
from pigguf.rope import RopeOverrides, RopeScaling, read_rope, rope_from_metadata

SENTINEL = int(1e30)  # transformers' VERY_LARGE_INTEGER
AUTO_MAP = {"AutoModelForCausalLM": "modelling_llama.LlamaForCausalLM"}


def mpe(window: int, **keys: Any) -> dict[str, Any]:
    return {"max_position_embeddings": window, **keys}


def scaling(kind: str, factor: float, **keys: Any) -> dict[str, Any]:
    return {"rope_scaling": {"type": kind, "factor": factor, **keys}}


def linear(factor: float) -> dict[str, Any]:
    return scaling("linear", factor)


# (config keys as published, tokenizer's model_max_length, factor, original window, context length, base)
PUBLISHED = {
    "longchat-7b-16k": (mpe(2048, rope_condense_ratio=8), None, 8, 2048, 16384, 1e4),
    "longchat-7b-16k, resaved": (
        mpe(2048, rope_condense_ratio=8, rope_scaling=None, max_sequence_length=16384),
        2048,
        *(8, 2048, 16384, 1e4),
    ),
    "longchat-7b-v1.5-32k": (
        mpe(4096, rope_condense_ratio=8, max_sequence_length=32768, **linear(8.0)),
        SENTINEL,
        *(8, 4096, 32768, 1e4),
    ),
    "longchat-7b-v1.5-32k, fork": (mpe(4096, rope_condense_ratio=8), None, 8, 4096, 32768, 1e4),
    "vicuna-7b-v1.5-16k": (mpe(4096, **linear(4.0)), 4096, 4, 4096, 16384, 1e4),
    "vicuna-7b-v1.5-16k, later tokenizer": (mpe(4096, **linear(4.0)), 16384, 4, 4096, 16384, 1e4),
    "vicuna-13b-v1.5-16k": (
        mpe(4096, max_sequence_length=16384, **linear(4.0)),
        None,
        *(4, 4096, 16384, 1e4),
    ),
    "LLaMA-2-7B-32K": (
        mpe(32768, auto_map=AUTO_MAP, **linear(8.0)),
        SENTINEL,
        *(8, 4096, 32768, 1e4),
    ),
    "LLongMA-2-7b": (mpe(8192, **linear(2.0)), None, 2, 4096, 8192, 1e4),
    "chinese-alpaca-2-7b-16k": (mpe(16384, rope_theta=10000.0, **linear(4.0)), None, 4, 4096, 16384, 1e4),
    "LlongOrca-7B-16k": (mpe(16384, **linear(4.0)), 16384, 4, 4096, 16384, 1e4),
    "LLaMA-2-7B-PoSE-Linear-16k": (mpe(16384, vocab_size=32001, **linear(4.0)), None, 4, 4096, 16384, 1e4),
    "LongAlpaca-7B": (mpe(4096, vocab_size=32001, **linear(8.0)), 32768, 8, 4096, 32768, 1e4),
    "Llama-2-7b-longlora-32k": (mpe(4096, **linear(8.0)), None, 8, 4096, 32768, 1e4),
    "Giraffe-v1": (mpe(2048, abacus_scale=8), None, 8, 2048, 16384, 1e4),
    "Giraffe-v2-13b-32k": (mpe(4096, **linear(8.0)), None, 8, 4096, 32768, 1e4),
    "Giraffe-13b-32k-v3": (mpe(32768, **linear(8.0)), None, 8, 4096, 32768, 1e4),
    "SuperHOT 8k merge": (
        mpe(8192, max_sequence_length=2048, auto_map=AUTO_MAP),
        None,
        *(4, 2048, 8192, 1e4),
    ),
    "SuperHOT 16k merge": (
        mpe(16384, max_sequence_length=2048, auto_map=AUTO_MAP, rope_scaling=None),
        2048,
        *(8, 2048, 16384, 1e4),
    ),
    "scaled_rope merge": (mpe(16384, position_interpolation_scale=0.125), None, 8, 2048, 16384, 1e4),
    "deepseek-coder-6.7b": (mpe(16384, rope_theta=100000, **linear(4.0)), 16384, 4, 4096, 16384, 1e5),
    "LLaVA-NeXT-Video-7B-DPO": (mpe(4096, factor=2.0), None, 2, 4096, 8192, 1e4),
    "Linear-Llama-7b-32k": (
        mpe(32768, **scaling("linear", 8.0, original_max_position_embeddings=4096, finetuned=True)),
        None,
        *(8, 4096, 32768, 1e4),
    ),
    "CodeLlama-7b": (mpe(16384, rope_theta=1000000, rope_scaling=None), None, 1, 16384, 16384, 1e6),
    "SmolLM2-135M-Instruct": (
        mpe(8192, rope_theta=100000, rope_interleaved=False, rope_scaling=None),
        8192,
        *(1, 8192, 8192, 1e5),
    ),
    "Llama-2-7b": (mpe(4096), SENTINEL, 1, 4096, 4096, 1e4),
    "LLaMA-7b, first conversion": ({"max_sequence_length": 2048}, 1e30, 1, 2048, 2048, 1e4),
    "Qwen2.5-7B-Instruct": (mpe(32768, rope_theta=1000000.0), 131072, 1, 32768, 32768, 1e6),
    "LongLoRA with rope_scaling null": (mpe(4096, rope_scaling=None), 32768, 1, 4096, 4096, 1e4),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_checkpoints_read_as_they_were_trained(name: str) -> None:
    config, limit, factor, original, context, base = PUBLISHED[name]
    rope = read_rope(config, {} if limit is None else {"model_max_length": limit})
    assert (rope.factor, rope.original_context, rope.context_length, rope.base) == (
        factor,
        original,
        context,
        base,
    )
    assert rope.kind == ("none" if factor == 1 else "linear")
    assert rope.windows_agree
    assert len(rope.decisions) == 3


def test_the_table_in_the_documentation_is_true() -> None:
    text = (Path(__file__).parent.parent / "docs" / "rope.md").read_text(encoding="utf-8")
    table = re.findall(r"^\| ([^|]+) \| [^|]+ \| (\d+) \| (\d+) \| (\d+) \|$", text, re.MULTILINE)
    assert len(table) >= 20
    for name, *numbers in table:
        config, limit, *_ = PUBLISHED[name.removesuffix(" (its language model)")]
        rope = read_rope(config, {"model_max_length": limit})
        assert [rope.factor, rope.original_context, rope.context_length] == [int(n) for n in numbers], name


# What cannot be decided or written: config keys, the error, what its message and its hint must name.
REFUSED: dict[str, tuple[dict[str, Any], type[PigError], list[str], list[str]]] = {
    "LlongOrca fork": (
        mpe(16384, position_interpolation_scale=1, **linear(4.0)),
        RopeConflict,
        ["rope_scaling.factor = 4.0", "position_interpolation_scale = 1"],
        ["--rope-factor"],
    ),
    "Giraffe, two factors": (
        mpe(4096, abacus_scale=4, **linear(8.0)),
        RopeConflict,
        ["rope_scaling.factor = 8.0", "abacus_scale = 4"],
        ["--rope-factor"],
    ),
    "LongChat, two factors": (
        mpe(2048, rope_condense_ratio=8, factor=2.0),
        RopeConflict,
        ["rope_condense_ratio = 8", "config.json: factor = 2.0"],
        ["--rope-factor"],
    ),
    "SuperHOT merge without its code": (
        mpe(8192, max_sequence_length=2048),
        RopeConflict,
        ["max_position_embeddings = 8192", "max_sequence_length = 2048"],
        ["--rope-factor 4", "--rope-factor 1"],
    ),
    "Vicuna 16k without its factor": (
        mpe(4096, max_sequence_length=16384),
        RopeConflict,
        ["max_position_embeddings = 4096", "max_sequence_length = 16384"],
        ["--rope-factor 4", "--rope-factor 1"],
    ),
    "code of its own and no word on scaling": (
        mpe(8192, auto_map=AUTO_MAP),
        RopeConflict,
        ["auto_map", "modelling_llama.LlamaForCausalLM"],
        ["--rope-factor"],
    ),
    "windows that the factor does not join": (
        mpe(4096, max_sequence_length=8192, **linear(4.0)),
        RopeConflict,
        ["max_position_embeddings = 4096", "max_sequence_length = 8192", "rope_scaling.factor = 4.0"],
        ["--original-context", "--context"],
    ),
    "an original window that does not fit": (
        mpe(32768, original_max_position_embeddings=2048, **linear(8.0)),
        RopeConflict,
        ["max_position_embeddings = 32768", "original_max_position_embeddings = 2048", "factor = 8.0"],
        ["--original-context", "--context"],
    ),
    "an original window and no factor": (
        mpe(16384, original_max_position_embeddings=4096),
        RopeConflict,
        ["max_position_embeddings = 16384", "original_max_position_embeddings = 4096"],
        ["--rope-factor 4"],
    ),
    "a window that could be either": (
        mpe(6144, **linear(2.0)),
        RopeConflict,
        ["max_position_embeddings = 6144", "rope_scaling.factor = 2.0"],
        ["--original-context 6144", "--context 6144"],
    ),
    "both schemas, different factors": (
        mpe(16384, rope_parameters={"rope_type": "linear", "factor": 2.0}, **linear(4.0)),
        RopeConflict,
        ["rope_scaling.factor = 4.0", "rope_parameters.factor = 2.0"],
        ["--rope-factor"],
    ),
    "both schemas, different kinds": (
        mpe(16384, rope_parameters={"rope_type": "default", "rope_theta": 1e4}, **linear(4.0)),
        RopeConflict,
        ['rope_scaling.type = "linear"', 'rope_parameters.rope_type = "default"'],
        ["--rope-factor"],
    ),
    "both spellings, different kinds": (
        mpe(16384, rope_scaling={"type": "linear", "rope_type": "default", "factor": 4.0}),
        RopeConflict,
        ['rope_scaling.rope_type = "default"', 'rope_scaling.type = "linear"'],
        ["--rope-factor"],
    ),
    "a factor without a kind": (
        mpe(16384, rope_scaling={"factor": 4.0}),
        RopeConflict,
        ["rope_scaling.factor = 4.0", "rope_scaling.rope_type"],
        ["--rope-factor"],
    ),
    "a kind without a factor": (
        mpe(4096, rope_scaling={"type": "linear"}),
        RopeConflict,
        ['rope_scaling.type = "linear"'],
        ["--rope-factor"],
    ),
    "two bases": (
        mpe(4096, rope_theta=10000.0, rope_parameters={"rope_type": "default", "rope_theta": 1e6}),
        RopeConflict,
        ["config.json: rope_theta = 10000.0", "rope_parameters.rope_theta = 1000000.0"],
        ["config.json"],
    ),
    "a factor upside down": (
        mpe(2048, **linear(0.125)),
        RopeConflict,
        ["rope_scaling.factor = 0.125"],
        ["--rope-factor 8"],
    ),
    "a multiplier upside down": (
        mpe(2048, position_interpolation_scale=4),
        RopeConflict,
        ["position_interpolation_scale = 4", "0.25"],
        ["--rope-factor 4"],
    ),
    "text_config against the top level": (
        mpe(4096, rope_condense_ratio=8, text_config=linear(4.0)),
        RopeConflict,
        ["rope_condense_ratio = 8", "text_config.rope_scaling.factor = 4.0"],
        ["--rope-factor"],
    ),
    "Yarn-Llama-2": (
        mpe(4096, **scaling("yarn", 16.0, original_max_position_embeddings=4096, finetuned=True)),
        UnsupportedModel,
        ['rope_scaling.type = "yarn"'],
        ["linear"],
    ),
    "Yarn-Llama-2-70b": (
        mpe(8192, max_sequence_length=32768, **scaling("yarn", 8.0)),
        UnsupportedModel,
        ['"yarn"'],
        ["linear"],
    ),
    "Llama-3.1": (
        mpe(131072, rope_theta=5e5, rope_scaling={"rope_type": "llama3", "factor": 8.0}),
        UnsupportedModel,
        ['rope_scaling.rope_type = "llama3"'],
        ["linear"],
    ),
    "Llama-3-Giraffe": (mpe(8192, **scaling("dynamic", 4.0)), UnsupportedModel, ['"dynamic"'], ["linear"]),
    "Phi-3 128k": (
        mpe(131072, original_max_position_embeddings=4096, rope_scaling={"type": "su"}),
        UnsupportedModel,
        ['"su"'],
        ["linear"],
    ),
    "Phi-3.5": (mpe(131072, rope_scaling={"type": "longrope"}), UnsupportedModel, ['"longrope"'], ["linear"]),
    "a kind of nobody's": (
        mpe(4096, **scaling("clex", 16.0)),
        UnsupportedModel,
        ['"clex"'],
        ["yarn", "linear"],
    ),
    "Gemma 3": (
        mpe(131072, rope_theta=1e6, rope_local_base_freq=1e4, **linear(8.0)),
        UnsupportedModel,
        ["rope_local_base_freq = 10000.0"],
        ["linear"],
    ),
    "layers that differ": (
        mpe(
            131072,
            rope_parameters={
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        ),
        UnsupportedModel,
        ["full_attention", "sliding_attention"],
        ["linear"],
    ),
    "NTK-aware": (mpe(8192, ntk_alpha=4), UnsupportedModel, ["ntk_alpha = 4"], ["linear"]),
    "a key that linear does not know": (
        mpe(16384, **scaling("linear", 4.0, mrope_section=[16, 24, 24])),
        UnsupportedModel,
        ["rope_scaling.mrope_section", "16, 24, 24"],
        ["factor"],
    ),
    "a factor that is a text": (mpe(4096, **linear("4")), CheckpointError, ['factor = "4"'], []),  # type: ignore[arg-type]
    "a factor that is a truth": (mpe(4096, **linear(True)), CheckpointError, ["factor = true"], []),
    "a factor that is not finite": (mpe(4096, **linear(math.inf)), CheckpointError, ["factor = Inf"], []),
    "a factor of nothing": (mpe(4096, **linear(0)), CheckpointError, ["factor = 0"], []),
    "a window that is a text": ({"max_position_embeddings": "4096"}, CheckpointError, ['"4096"'], []),
    "a window that is no whole number": (
        {"max_position_embeddings": 4096.5},
        CheckpointError,
        ["4096.5"],
        [],
    ),
    "no window": ({"rope_theta": 1e4}, CheckpointError, ["max_position_embeddings"], ["--context"]),
    "a base of nothing": (mpe(4096, rope_theta=0), CheckpointError, ["rope_theta = 0"], []),
    "a scaling that is a number": (mpe(4096, rope_scaling=4.0), CheckpointError, ["rope_scaling = 4.0"], []),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_contradicts_itself_or_is_not_understood_is_refused(name: str) -> None:
    config, error, message_parts, hint_parts = REFUSED[name]
    with pytest.raises(PigError) as caught:
        read_rope(config, {})
    assert type(caught.value) is error, caught.value
    for part in message_parts:
        assert part in caught.value.message
    for part in hint_parts:
        assert part in (caught.value.hint or "")
    assert "config.json" in caught.value.message
    assert caught.value.hint
    assert "\n" not in caught.value.message


SETTLED = [
    (REFUSED["LlongOrca fork"][0], RopeOverrides(factor=4.0), (4.0, 4096, 16384)),
    (REFUSED["LlongOrca fork"][0], RopeOverrides(factor=1.0), (1.0, 16384, 16384)),
    (REFUSED["Giraffe, two factors"][0], RopeOverrides(factor=8.0), (8.0, 4096, 32768)),
    (REFUSED["SuperHOT merge without its code"][0], RopeOverrides(factor=4.0), (4.0, 2048, 8192)),
    (REFUSED["SuperHOT merge without its code"][0], RopeOverrides(original_context=2048), (4.0, 2048, 8192)),
    (
        REFUSED["SuperHOT merge without its code"][0],
        RopeOverrides(factor=1.0, context=8192),
        (1.0, 8192, 8192),
    ),
    (REFUSED["Vicuna 16k without its factor"][0], RopeOverrides(factor=4.0), (4.0, 4096, 16384)),
    (REFUSED["code of its own and no word on scaling"][0], RopeOverrides(factor=1.0), (1.0, 8192, 8192)),
    (REFUSED["code of its own and no word on scaling"][0], RopeOverrides(factor=4.0), (4.0, 2048, 8192)),
    (
        REFUSED["windows that the factor does not join"][0],
        RopeOverrides(original_context=4096, context=16384),
        (4.0, 4096, 16384),
    ),
    (
        REFUSED["an original window that does not fit"][0],
        RopeOverrides(original_context=4096, context=32768),
        (8.0, 4096, 32768),
    ),
    (REFUSED["an original window and no factor"][0], RopeOverrides(factor=4.0), (4.0, 4096, 16384)),
    (REFUSED["a window that could be either"][0], RopeOverrides(original_context=6144), (2.0, 6144, 12288)),
    (REFUSED["a window that could be either"][0], RopeOverrides(context=6144), (2.0, 3072, 6144)),
    (REFUSED["both schemas, different factors"][0], RopeOverrides(factor=4.0), (4.0, 4096, 16384)),
    (REFUSED["both schemas, different kinds"][0], RopeOverrides(factor=1.0), (1.0, 16384, 16384)),
    (REFUSED["both spellings, different kinds"][0], RopeOverrides(factor=4.0), (4.0, 4096, 16384)),
    (REFUSED["a factor without a kind"][0], RopeOverrides(factor=4.0), (4.0, 4096, 16384)),
    (REFUSED["a kind without a factor"][0], RopeOverrides(factor=4.0), (4.0, 4096, 16384)),
    (REFUSED["a kind without a factor"][0], RopeOverrides(context=16384), (4.0, 4096, 16384)),
    (REFUSED["a factor upside down"][0], RopeOverrides(factor=8.0), (8.0, 2048, 16384)),
    (mpe(4096, **linear(4.0)), RopeOverrides(factor=8.0), (8.0, 4096, 32768)),
    (mpe(4096, factor=2.0), RopeOverrides(context=4096), (2.0, 2048, 4096)),
    (mpe(4096), RopeOverrides(factor=8.0, original_context=2048), (8.0, 2048, 16384)),
    (mpe(8192), RopeOverrides(factor=4.0, original_context=8192), (4.0, 8192, 32768)),
    (mpe(8192), RopeOverrides(factor=4.0, context=8192), (4.0, 2048, 8192)),
    (mpe(4096), RopeOverrides(original_context=2048, context=32768), (16.0, 2048, 32768)),
    (mpe(32768, sliding_window=4096), RopeOverrides(context=4096), (1.0, 4096, 4096)),
    ({"rope_theta": 1e4}, RopeOverrides(context=4096), (1.0, 4096, 4096)),
    (mpe(4096), RopeOverrides(factor=2.5, original_context=4096, context=10240), (2.5, 4096, 10240)),
]


@pytest.mark.parametrize(("config", "overrides", "expected"), SETTLED)
def test_the_flags_that_errors_name_settle_them(
    config: dict[str, Any], overrides: RopeOverrides, expected: tuple[float, int, int]
) -> None:
    rope = read_rope(config, {}, overrides)
    assert (rope.factor, rope.original_context, rope.context_length) == expected
    assert rope.kind == ("none" if expected[0] == 1.0 else "linear")
    given = [item for item in rope.evidence if item.source == "command line"]
    assert len(given) == sum(v is not None for v in vars(overrides).values())


@pytest.mark.parametrize(
    ("config", "overrides", "parts"),
    [
        (mpe(4096), RopeOverrides(context=16384), ["--context 16384", "max_position_embeddings = 4096"]),
        (mpe(4096), RopeOverrides(original_context=8192), ["--original-context 8192", "= 4096"]),
        (
            mpe(4096, **linear(4.0)),
            RopeOverrides(original_context=4096, context=32768),
            ["factor = 4.0", "--original-context 4096", "--context 32768"],
        ),
        (
            mpe(4096),
            RopeOverrides(factor=4.0, original_context=4096, context=8192),
            ["--rope-factor 4.0", "--original-context 4096", "--context 8192"],
        ),
        (mpe(32768, **linear(8.0)), RopeOverrides(context=16384), ["= 32768", "--context 16384"]),
        (
            mpe(8192),
            RopeOverrides(factor=4.0),
            ["max_position_embeddings = 8192", "--rope-factor 4.0", "2048"],
        ),
        (mpe(4096), RopeOverrides(factor=0.25), ["--rope-factor 0.25"]),
        (mpe(4096), RopeOverrides(factor=math.nan), ["--rope-factor nan"]),
        (mpe(4096), RopeOverrides(context=0), ["--context 0"]),
        (mpe(2**31, **linear(4.0)), RopeOverrides(original_context=2**31), ["32 bits"]),
    ],
)
def test_flags_that_do_not_fit_are_conflicts_too(
    config: dict[str, Any], overrides: RopeOverrides, parts: list[str]
) -> None:
    with pytest.raises(RopeConflict) as caught:
        read_rope(config, {}, overrides)
    for part in parts:
        assert part in caught.value.message
    assert "--" in (caught.value.hint or "")


EQUIVALENT = {
    "rope_type": {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    "both spellings": {"rope_scaling": {"rope_type": "linear", "type": "linear", "factor": 4}},
    "transformers 5": {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}},
    "both schemas": {
        "rope_scaling": {"type": "linear", "factor": 4.0},
        "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4},
        "rope_theta": 10000,
    },
    "by layer type, alike": {
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 4.0},
            "sliding_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": None},
        }
    },
    "by layer type, one": {"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 4.0}}},
    "an original window inside": {
        "rope_scaling": {"type": "linear", "factor": 4.0, "original_max_position_embeddings": 4096}
    },
    "an original window at the top": {
        "rope_scaling": {"type": "linear", "factor": 4.0},
        "original_max_position_embeddings": 4096,
    },
    "a lost factor, original window known": {
        "rope_scaling": {"type": "linear"},
        "original_max_position_embeddings": 4096,
    },
    "a lost factor, two windows": {"rope_scaling": {"type": "linear"}, "max_sequence_length": 4096},
    "empty beside full": {"rope_scaling": {"type": "linear", "factor": 4.0}, "rope_parameters": {}},
    "off": {"rope_scaling": {"type": "linear", "factor": 4.0}, "use_xpos": False, "ntk_alpha": None},
}


@pytest.mark.parametrize("name", EQUIVALENT)
def test_spellings_of_one_scaling_read_alike(name: str) -> None:
    for config in (mpe(16384, **EQUIVALENT[name]), {"text_config": mpe(16384, **EQUIVALENT[name])}):
        assert read_rope(config, {}) == RopeScaling("linear", 4.0, 10000.0, 4096, 16384)


def test_a_factor_of_one_is_no_scaling() -> None:
    assert read_rope(mpe(8192, **linear(1.0)), {}) == RopeScaling("none", 1.0, 10000.0, 8192, 8192)


def test_rounded_factors_agree_with_windows() -> None:
    config = mpe(100000, original_max_position_embeddings=4096, **linear(24.41))
    assert read_rope(config, {}) == RopeScaling("linear", 24.41, 10000.0, 4096, 100000)
    with pytest.raises(RopeConflict):
        read_rope(mpe(100000, original_max_position_embeddings=4096, **linear(24.0)), {})


@pytest.mark.parametrize("factor", [1.5, 2, 2.5, 3, 4, 6.25, 8, 16, 32])
@pytest.mark.parametrize("original", [512, 1000, 2048, 4096])
def test_factor_times_original_is_the_context_whichever_window_is_stated(
    factor: float, original: int
) -> None:
    extended = round(factor * original)
    stated = [
        mpe(original, **linear(factor)),
        mpe(extended, original_max_position_embeddings=original, **linear(factor)),
        mpe(original, max_sequence_length=extended, **linear(factor)),
        mpe(extended, max_sequence_length=original, **linear(factor)),
    ]
    for config in stated:
        rope = read_rope(config, {})
        assert (rope.original_context, rope.context_length) == (original, extended)


def test_decisions_and_evidence_tell_everything_that_was_found() -> None:
    config = mpe(8192, max_sequence_length=2048, auto_map=AUTO_MAP)
    rope = read_rope(config, {"model_max_length": 2048}, RopeOverrides(context=8192))
    assert [(item.source, item.key, item.value) for item in rope.evidence] == [
        ("config.json", "max_position_embeddings", 8192),
        ("config.json", "max_sequence_length", 2048),
        ("config.json", "auto_map", AUTO_MAP),
        ("tokenizer_config.json", "model_max_length", 2048),
        ("command line", "--context", 8192),
    ]
    assert "inferred, 4" in rope.decisions[0]
    assert "max_sequence_length = 2048" in rope.decisions[0]
    assert "from 2048 to 8192" in rope.decisions[1]
    assert "10000" in rope.decisions[2]
    assert all(item.meaning for item in rope.evidence)


def test_the_meaning_for_positions_is_told() -> None:
    scaled = RopeScaling("linear", 4.0, 10000.0, 8192, 32768)
    assert "position 32767" in scaled.explain()
    assert "8191.75" in scaled.explain()
    assert "8192" in RopeScaling("none", 1.0, 10000.0, 8193, 8193).explain()


# --- GGUF keys


def test_linear_scaling_as_gguf_keys() -> None:
    assert RopeScaling("linear", 8.0, 10000.0, 4096, 32768).metadata("llama") == {
        "llama.context_length": u32(32768),
        "llama.rope.freq_base": f32(10000.0),
        "llama.rope.scaling.type": string("linear"),
        "llama.rope.scaling.factor": f32(8.0),
        "llama.rope.scaling.original_context_length": u32(4096),
    }


def test_unscaled_positions_as_gguf_keys() -> None:
    assert RopeScaling("none", 1.0, 1e6, 32768, 32768).metadata("qwen2") == {
        "qwen2.context_length": u32(32768),
        "qwen2.rope.freq_base": f32(1e6),
    }


@pytest.mark.parametrize("name", PUBLISHED)
def test_gguf_keys_read_back_as_the_same_scaling(name: str) -> None:
    config, limit, *_ = PUBLISHED[name]
    rope = read_rope(config, {"model_max_length": limit})
    keys = rope.metadata("llama")
    assert rope_from_metadata(keys, "llama") == rope
    assert rope_from_metadata(keys, "llama").metadata("llama") == keys


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, RopeScaling("none", 1.0, 10000.0, 4096, 4096)),
        ({"freq_base": f32(5e5)}, RopeScaling("none", 1.0, 5e5, 4096, 4096)),
        (
            {"scaling.type": string("none"), "scaling.factor": f32(4)},
            RopeScaling("none", 1.0, 1e4, 4096, 4096),
        ),
        ({"scaling.type": string("linear")}, RopeScaling("none", 1.0, 1e4, 4096, 4096)),
        ({"scaling.factor": f32(4)}, RopeScaling("linear", 4.0, 1e4, 4096, 4096)),
        ({"scale_linear": f32(4)}, RopeScaling("linear", 4.0, 1e4, 4096, 4096)),
        ({"scale_linear": f32(4), "scaling.factor": f32(0)}, RopeScaling("none", 1.0, 1e4, 4096, 4096)),
        (
            {"scaling.factor": f32(4), "scaling.original_context_length": u32(1024)},
            RopeScaling("linear", 4.0, 1e4, 1024, 4096),
        ),
        ({"scaling.finetuned": Typed("bool", True)}, RopeScaling("none", 1.0, 1e4, 4096, 4096)),
        (
            {
                "scaling.type": string("yarn"),
                "scaling.factor": f32(16),
                "scaling.original_context_length": u32(256),
                "scaling.yarn_beta_fast": f32(32),
            },
            RopeScaling("yarn", 16.0, 1e4, 256, 4096, {"yarn_beta_fast": 32.0}),
        ),
        (
            {"scaling.type": string("longrope"), "scaling.attn_factor": f32(1.5)},
            RopeScaling("longrope", 1.0, 1e4, 4096, 4096, {"attn_factor": 1.5}),
        ),
    ],
)
def test_gguf_keys_are_read_as_llama_cpp_reads_them(keys: dict[str, Typed], expected: RopeScaling) -> None:
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
        ("llama.rope.freq_base", Typed("f32", (1e4,), is_array=True)),
        ("llama.context_length", u32(0)),
        ("llama.context_length", Typed("u64", 4096)),
        ("llama.context_length", None),
    ],
)
def test_gguf_keys_that_llama_cpp_would_not_take_are_refused(key: str, value: Typed | None) -> None:
    metadata = {"llama.context_length": u32(4096), key: value}
    metadata = {name: typed for name, typed in metadata.items() if typed is not None}
    with pytest.raises(GGUFError, match=key) as caught:
        rope_from_metadata(metadata, "llama")  # type: ignore[arg-type]
    assert caught.value.hint


@pytest.mark.parametrize(
    "rope",
    [
        RopeScaling("yarn", 16.0, 1e4, 4096, 65536),
        RopeScaling("longrope", 1.0, 1e4, 4096, 131072),
        RopeScaling("linear", 4.0, 1e4, 4096, 16384, {"attn_factor": 1.2}),
    ],
)
def test_kinds_that_are_only_read_are_told_and_not_written(rope: RopeScaling) -> None:
    assert "position" in rope.explain()
    with pytest.raises(UnsupportedModel):
        rope.metadata("llama")
    with pytest.raises(UnsupportedModel):
        rope.config()


# --- config.json keys for an export


@pytest.mark.parametrize("name", PUBLISHED)
def test_exported_keys_read_back_as_the_same_scaling(name: str) -> None:
    config, limit, *_ = PUBLISHED[name]
    rope = read_rope(config, {"model_max_length": limit})
    from_file = rope_from_metadata(rope.metadata("llama"), "llama")
    assert read_rope(from_file.config(), {}) == rope


def test_an_export_claims_no_original_window_that_the_gguf_did_not_know() -> None:
    keys = {"llama.context_length": u32(32768), "llama.rope.scaling.factor": f32(8.0)}
    rope = rope_from_metadata(keys, "llama")
    assert not rope.windows_agree
    assert "original_max_position_embeddings" not in rope.config()
    assert read_rope(rope.config(), {}) == RopeScaling("linear", 8.0, 10000.0, 4096, 32768)


def llama_frequencies(config: dict[str, Any]) -> np.ndarray:
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    sizes = {"hidden_size": 256, "num_attention_heads": 4}
    return LlamaRotaryEmbedding(LlamaConfig.from_dict({**config, **sizes})).inv_freq.numpy()  # type: ignore[no-any-return]


def our_frequencies(rope: RopeScaling) -> np.ndarray:
    return rope.base ** (-np.arange(0, 64, 2) / 64) / rope.factor


UNDERSTOOD_BY_TRANSFORMERS = [
    name
    for name, row in PUBLISHED.items()
    if row[2] == 1 or ("rope_scaling" in row[0] and row[0]["rope_scaling"])
]


@pytest.mark.parametrize("name", UNDERSTOOD_BY_TRANSFORMERS)
def test_frequencies_equal_transformers(name: str) -> None:
    config = PUBLISHED[name][0]
    rope = read_rope(config, {})
    np.testing.assert_allclose(our_frequencies(rope), llama_frequencies(dict(config)), rtol=2e-6)
    # and those of the config that an export writes, whose window is the extended one
    np.testing.assert_allclose(our_frequencies(rope), llama_frequencies(rope.config()), rtol=2e-6)


@pytest.mark.parametrize("keep", ["rope_parameters", "rope_scaling"])
def test_either_schema_of_an_export_is_enough_for_transformers(keep: str) -> None:
    rope = RopeScaling("linear", 4.0, 1e5, 4096, 16384)
    config = rope.config()
    dropped = {"rope_parameters": ("rope_scaling", "rope_theta"), "rope_scaling": ("rope_parameters",)}[keep]
    for key in dropped:
        del config[key]
    np.testing.assert_allclose(llama_frequencies(config), our_frequencies(rope), rtol=2e-6)
