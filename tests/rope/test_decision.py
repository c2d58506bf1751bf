"""Decisions from a config: contradictions, the overrides that resolve them, and equivalent spellings."""

from __future__ import annotations

import math
from typing import Any

import pytest
from support.rope_configs import AUTO_MAP, LLAMA3, LONGROPE, linear, mpe, scaling

from pigguf.errors import CheckpointError, PigError, RopeConflict, UnsupportedModel
from pigguf.rope import LinearScaling, RopeOverrides, UnscaledRope, read_rope

# Configs that cannot be decided or converted: the error, and what its message and its hint must name.
CONFLICTS: dict[str, tuple[dict[str, Any], type[PigError], list[str], list[str]]] = {
    "LlongOrca fork": (
        mpe(16384, position_interpolation_scale=1, **linear(4.0)),
        RopeConflict,
        ["rope_scaling.factor = 4.0", "position_interpolation_scale = 1"],
        ["`rope.factor"],
    ),
    "Giraffe, two factors": (
        mpe(4096, abacus_scale=4, **linear(8.0)),
        RopeConflict,
        ["rope_scaling.factor = 8.0", "abacus_scale = 4"],
        ["`rope.factor"],
    ),
    "LongChat, two factors": (
        mpe(2048, rope_condense_ratio=8, factor=2.0),
        RopeConflict,
        ["rope_condense_ratio = 8", "config.json: factor = 2.0"],
        ["`rope.factor"],
    ),
    "SuperHOT merge without its code": (
        mpe(8192, max_sequence_length=2048),
        RopeConflict,
        ["max_position_embeddings = 8192", "max_sequence_length = 2048"],
        ["`rope.factor=4`", "`rope.factor=1`"],
    ),
    "Vicuna 16k without its factor": (
        mpe(4096, max_sequence_length=16384),
        RopeConflict,
        ["max_position_embeddings = 4096", "max_sequence_length = 16384"],
        ["`rope.factor=4`", "`rope.factor=1`"],
    ),
    "custom code without a sign of scaling": (
        mpe(8192, auto_map=AUTO_MAP),
        RopeConflict,
        ["auto_map", "modelling_llama.LlamaForCausalLM"],
        ["`rope.factor"],
    ),
    "context lengths that do not fit the factor": (
        mpe(4096, max_sequence_length=8192, **linear(4.0)),
        RopeConflict,
        ["max_position_embeddings = 4096", "max_sequence_length = 8192", "rope_scaling.factor = 4.0"],
        ["`rope.original_context", "`rope.context"],
    ),
    "an original context that does not fit": (
        mpe(32768, original_max_position_embeddings=2048, **linear(8.0)),
        RopeConflict,
        ["max_position_embeddings = 32768", "original_max_position_embeddings = 2048", "factor = 8.0"],
        ["`rope.original_context", "`rope.context"],
    ),
    "an original context without a factor": (
        mpe(16384, original_max_position_embeddings=4096),
        RopeConflict,
        ["max_position_embeddings = 16384", "original_max_position_embeddings = 4096"],
        ["`rope.factor=4`"],
    ),
    "a context length that may be either": (
        mpe(6144, **linear(2.0)),
        RopeConflict,
        ["max_position_embeddings = 6144", "rope_scaling.factor = 2.0"],
        ["`rope.original_context=6144`", "`rope.context=6144`"],
    ),
    "both schemas, different factors": (
        mpe(16384, rope_parameters={"rope_type": "linear", "factor": 2.0}, **linear(4.0)),
        RopeConflict,
        ["rope_scaling.factor = 4.0", "rope_parameters.factor = 2.0"],
        ["`rope.factor"],
    ),
    "both schemas, different rope types": (
        mpe(16384, rope_parameters={"rope_type": "default", "rope_theta": 1e4}, **linear(4.0)),
        RopeConflict,
        ['rope_scaling.type = "linear"', 'rope_parameters.rope_type = "default"'],
        ["`rope.factor"],
    ),
    "both spellings, different rope types": (
        mpe(16384, rope_scaling={"type": "linear", "rope_type": "default", "factor": 4.0}),
        RopeConflict,
        ['rope_scaling.rope_type = "default"', 'rope_scaling.type = "linear"'],
        ["`rope.factor"],
    ),
    "a factor without a rope type": (
        mpe(16384, rope_scaling={"factor": 4.0}),
        RopeConflict,
        ["rope_scaling.factor = 4.0", "rope_scaling.rope_type"],
        ["`rope.factor"],
    ),
    "a rope type without a factor": (
        mpe(4096, rope_scaling={"type": "linear"}),
        RopeConflict,
        ['rope_scaling.type = "linear"'],
        ["`rope.factor"],
    ),
    "two values of rope_theta": (
        mpe(4096, rope_theta=10000.0, rope_parameters={"rope_type": "default", "rope_theta": 1e6}),
        RopeConflict,
        ["config.json: rope_theta = 10000.0", "rope_parameters.rope_theta = 1000000.0"],
        ["config.json"],
    ),
    "an inverted factor": (
        mpe(2048, **linear(0.125)),
        RopeConflict,
        ["rope_scaling.factor = 0.125"],
        ["`rope.factor=8`"],
    ),
    "an inverted multiplier": (
        mpe(2048, position_interpolation_scale=4),
        RopeConflict,
        ["position_interpolation_scale = 4", "0.25"],
        ["`rope.factor=4`"],
    ),
    "text_config contradicts the top level": (
        mpe(4096, rope_condense_ratio=8, text_config=linear(4.0)),
        RopeConflict,
        ["rope_condense_ratio = 8", "text_config.rope_scaling.factor = 4.0"],
        ["`rope.factor"],
    ),
    "Yarn-Llama-2-70b": (
        mpe(
            8192,
            max_sequence_length=32768,
            **scaling("yarn", 8.0, original_max_position_embeddings=4096, finetuned=True),
        ),
        RopeConflict,
        [
            "factor = 8.0",
            "original_max_position_embeddings = 4096",
            "max_position_embeddings = 8192",
            "max_sequence_length = 32768",
        ],
        ["`rope.original_context=4096` `rope.context=32768`"],
    ),
    "yarn without its original context": (
        mpe(131072, **scaling("yarn", 4.0)),
        RopeConflict,
        ["max_position_embeddings = 131072", "original_max_position_embeddings", "transformers"],
        ["`rope.original_context=32768` `rope.context=131072`", "`rope.original_context=131072`"],
    ),
    "both schemas, different frequency factors": (
        mpe(
            131072,
            rope_theta=5e5,
            rope_scaling=LLAMA3,
            rope_parameters={**LLAMA3, "rope_theta": 5e5, "high_freq_factor": 8.0},
        ),
        RopeConflict,
        ['rope_scaling = {"rope_type": "llama3"', 'rope_parameters = {"rope_type": "llama3"', "llama3"],
        ["transformers reads rope_scaling", "rope_parameters"],
    ),
    "both schemas, yarn and linear": (
        mpe(
            16384,
            rope_scaling={"type": "linear", "factor": 4.0},
            rope_parameters={
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 4096,
                "rope_theta": 1e4,
            },
        ),
        RopeConflict,
        ['rope_scaling.type = "linear"', 'rope_parameters.rope_type = "yarn"'],
        ["transformers reads rope_scaling", "`rope.factor=1`"],
    ),
    "Llama 3 without its frequency factors": (
        mpe(
            131072,
            rope_scaling={"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192},
        ),
        CheckpointError,
        ["rope_scaling.low_freq_factor"],
        [],
    ),
    "Llama 3 without its original context": (
        mpe(131072, rope_scaling={k: v for k, v in LLAMA3.items() if not k.startswith("original")}),
        CheckpointError,
        ["rope_scaling.original_max_position_embeddings"],
        [],
    ),
    "Llama 3 with inverted frequency factors": (
        mpe(131072, rope_scaling={**LLAMA3, "high_freq_factor": 0.5}),
        CheckpointError,
        ["rope_scaling.high_freq_factor = 0.5", "low_freq_factor = 1"],
        [],
    ),
    "Llama-3-Giraffe": (
        mpe(8192, rope_theta=5e5, hidden_size=8192, num_attention_heads=64, **scaling("dynamic", 4.0)),
        RopeConflict,
        ['rope_scaling.type = "dynamic"', "length of text"],
        ["`rope.context=32768`", "`rope.context=8192`"],
    ),
    "dynamic without head_dim": (
        mpe(8192, **scaling("dynamic", 4.0)),
        RopeConflict,
        ['rope_scaling.type = "dynamic"'],
        ["`rope.context=32768`"],
    ),
    "Phi-3 without its lists": (
        mpe(131072, original_max_position_embeddings=4096, rope_scaling={"type": "su"}),
        CheckpointError,
        ["rope_scaling.short_factor"],
        ["list"],
    ),
    "Phi-3 with lists of two lengths": (
        mpe(
            131072,
            original_max_position_embeddings=4096,
            rope_scaling={"type": "longrope", "short_factor": [1.0, 2.0], "long_factor": [1.0]},
        ),
        RopeConflict,
        ["rope_scaling.short_factor has 2", "rope_scaling.long_factor 1"],
        ["config.json"],
    ),
    "Phi-3 with an invalid list": (
        mpe(
            131072,
            original_max_position_embeddings=4096,
            rope_scaling={"type": "longrope", "short_factor": [1.0, True], "long_factor": [1.0, 2.0]},
        ),
        CheckpointError,
        ["rope_scaling.short_factor = [1.0, true]"],
        [],
    ),
    "Phi-3 without its original context": (
        mpe(131072, rope_scaling={"type": "longrope", **LONGROPE}),
        CheckpointError,
        ['rope_scaling.type = "longrope"', "original_max_position_embeddings"],
        ["`rope.original_context"],
    ),
    "Phi-3.5-MoE": (
        mpe(
            131072,
            original_max_position_embeddings=4096,
            rope_scaling={"type": "longrope", **LONGROPE, "short_mscale": 1.2, "long_mscale": 1.2},
        ),
        UnsupportedModel,
        ["rope_scaling.short_mscale = 1.2"],
        ["attention_factor"],
    ),
    "YaRN without truncate": (
        mpe(131072, **scaling("yarn", 4.0, original_max_position_embeddings=32768, truncate=False)),
        UnsupportedModel,
        ["rope_scaling.truncate = false"],
        ["frequencies"],
    ),
    "YaRN with extrapolation_factor": (
        mpe(131072, **scaling("yarn", 4.0, original_max_position_embeddings=32768, extrapolation_factor=0.5)),
        UnsupportedModel,
        ["rope_scaling.extrapolation_factor = 0.5"],
        ["extrapolation_factor"],
    ),
    "YaRN with only one mscale": (
        mpe(163840, **scaling("yarn", 40.0, original_max_position_embeddings=4096, mscale=0.707)),
        RopeConflict,
        ["rope_scaling.mscale = 0.707", "mscale_all_dim"],
        ["attention_factor"],
    ),
    "layers with different scaling": (
        mpe(
            131072,
            rope_parameters={
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4},
            },
        ),
        UnsupportedModel,
        ["full_attention", "sliding_attention"],
        ["rope_theta"],
    ),
    "sliding layers without rope_theta": (
        mpe(
            131072,
            rope_parameters={
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default"},
            },
        ),
        UnsupportedModel,
        ["sliding_attention"],
        ["rope_theta"],
    ),
    "two values of rope_theta of sliding layers": (
        mpe(
            131072,
            rope_local_base_freq=2e4,
            rope_parameters={
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        ),
        RopeConflict,
        ["rope_local_base_freq = 20000.0", "sliding_attention.rope_theta = 10000.0"],
        ["config.json"],
    ),
    "an unknown rope type": (
        mpe(4096, **scaling("clex", 16.0)),
        UnsupportedModel,
        ['"clex"'],
        ["yarn", "linear"],
    ),
    "NTK-aware": (mpe(8192, ntk_alpha=4), UnsupportedModel, ["ntk_alpha = 4"], ["linear", "dynamic"]),
    "an unknown key of linear": (
        mpe(16384, **scaling("linear", 4.0, mrope_section=[16, 24, 24])),
        UnsupportedModel,
        ["rope_scaling.mrope_section", "16, 24, 24"],
        ["factor"],
    ),
    "a factor that is a string": (mpe(4096, **linear("4")), CheckpointError, ['factor = "4"'], []),  # type: ignore[arg-type]
    "a factor that is a boolean": (mpe(4096, **linear(True)), CheckpointError, ["factor = true"], []),
    "a factor that is not finite": (mpe(4096, **linear(math.inf)), CheckpointError, ["factor = Inf"], []),
    "a factor of 0": (mpe(4096, **linear(0)), CheckpointError, ["factor = 0"], []),
    "a context length that is a string": (
        {"max_position_embeddings": "4096"},
        CheckpointError,
        ['"4096"'],
        [],
    ),
    "a context length that is not a whole number": (
        {"max_position_embeddings": 4096.5},
        CheckpointError,
        ["4096.5"],
        [],
    ),
    "no context length": (
        {"rope_theta": 1e4},
        CheckpointError,
        ["max_position_embeddings"],
        ["`rope.context"],
    ),
    "a rope_theta of 0": (mpe(4096, rope_theta=0), CheckpointError, ["rope_theta = 0"], []),
    "a scaling that is a number": (mpe(4096, rope_scaling=4.0), CheckpointError, ["rope_scaling = 4.0"], []),
}


@pytest.mark.parametrize("name", CONFLICTS)
def test_contradictory_or_unknown_configs_are_rejected(name: str) -> None:
    config, error, message_parts, hint_parts = CONFLICTS[name]
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


RESOLVED = [
    (CONFLICTS["LlongOrca fork"][0], RopeOverrides(factor=4.0), (4.0, 4096, 16384)),
    (CONFLICTS["LlongOrca fork"][0], RopeOverrides(factor=1.0), (1.0, 16384, 16384)),
    (CONFLICTS["Giraffe, two factors"][0], RopeOverrides(factor=8.0), (8.0, 4096, 32768)),
    (CONFLICTS["SuperHOT merge without its code"][0], RopeOverrides(factor=4.0), (4.0, 2048, 8192)),
    (
        CONFLICTS["SuperHOT merge without its code"][0],
        RopeOverrides(original_context=2048),
        (4.0, 2048, 8192),
    ),
    (
        CONFLICTS["SuperHOT merge without its code"][0],
        RopeOverrides(factor=1.0, context=8192),
        (1.0, 8192, 8192),
    ),
    (CONFLICTS["Vicuna 16k without its factor"][0], RopeOverrides(factor=4.0), (4.0, 4096, 16384)),
    (CONFLICTS["custom code without a sign of scaling"][0], RopeOverrides(factor=1.0), (1.0, 8192, 8192)),
    (CONFLICTS["custom code without a sign of scaling"][0], RopeOverrides(factor=4.0), (4.0, 2048, 8192)),
    (
        CONFLICTS["context lengths that do not fit the factor"][0],
        RopeOverrides(original_context=4096, context=16384),
        (4.0, 4096, 16384),
    ),
    (
        CONFLICTS["an original context that does not fit"][0],
        RopeOverrides(original_context=4096, context=32768),
        (8.0, 4096, 32768),
    ),
    (CONFLICTS["an original context without a factor"][0], RopeOverrides(factor=4.0), (4.0, 4096, 16384)),
    (
        CONFLICTS["a context length that may be either"][0],
        RopeOverrides(original_context=6144),
        (2.0, 6144, 12288),
    ),
    (CONFLICTS["a context length that may be either"][0], RopeOverrides(context=6144), (2.0, 3072, 6144)),
    (CONFLICTS["both schemas, different factors"][0], RopeOverrides(factor=4.0), (4.0, 4096, 16384)),
    (CONFLICTS["both schemas, different rope types"][0], RopeOverrides(factor=1.0), (1.0, 16384, 16384)),
    (CONFLICTS["both spellings, different rope types"][0], RopeOverrides(factor=4.0), (4.0, 4096, 16384)),
    (CONFLICTS["a factor without a rope type"][0], RopeOverrides(factor=4.0), (4.0, 4096, 16384)),
    (CONFLICTS["a rope type without a factor"][0], RopeOverrides(factor=4.0), (4.0, 4096, 16384)),
    (CONFLICTS["a rope type without a factor"][0], RopeOverrides(context=16384), (4.0, 4096, 16384)),
    (CONFLICTS["an inverted factor"][0], RopeOverrides(factor=8.0), (8.0, 2048, 16384)),
    (mpe(4096, **linear(4.0)), RopeOverrides(factor=8.0), (8.0, 4096, 32768)),
    (mpe(4096, factor=2.0), RopeOverrides(context=4096), (2.0, 2048, 4096)),
    (mpe(4096), RopeOverrides(factor=8.0, original_context=2048), (8.0, 2048, 16384)),
    (mpe(8192), RopeOverrides(factor=4.0, original_context=8192), (4.0, 8192, 32768)),
    (mpe(8192), RopeOverrides(factor=4.0, context=8192), (4.0, 2048, 8192)),
    (mpe(4096), RopeOverrides(original_context=2048, context=32768), (16.0, 2048, 32768)),
    (mpe(32768, sliding_window=4096), RopeOverrides(context=4096), (1.0, 4096, 4096)),
    ({"rope_theta": 1e4}, RopeOverrides(context=4096), (1.0, 4096, 4096)),
    (mpe(4096), RopeOverrides(factor=2.5, original_context=4096, context=10240), (2.5, 4096, 10240)),
    (
        CONFLICTS["both schemas, yarn and linear"][0],
        RopeOverrides(factor=1.0, context=16384),
        (1.0, 16384, 16384),
    ),
]


@pytest.mark.parametrize(("config", "overrides", "expected"), RESOLVED)
def test_the_overrides_that_hints_name_resolve_conflicts(
    config: dict[str, Any], overrides: RopeOverrides, expected: tuple[float, int, int]
) -> None:
    rope = read_rope(config, {}, overrides)
    assert (rope.factor, rope.original_context, rope.context_length) == expected
    assert rope.rope_type == ("none" if expected[0] == 1.0 else "linear")
    given = [item for item in rope.evidence if item.source == "command line"]
    assert len(given) == sum(v is not None for v in vars(overrides).values())


@pytest.mark.parametrize(
    ("config", "overrides", "parts"),
    [
        (mpe(4096), RopeOverrides(context=16384), ["`rope.context=16384`", "max_position_embeddings = 4096"]),
        (mpe(4096), RopeOverrides(original_context=8192), ["`rope.original_context=8192`", "= 4096"]),
        (
            mpe(4096, **linear(4.0)),
            RopeOverrides(original_context=4096, context=32768),
            ["factor = 4.0", "`rope.original_context=4096`", "`rope.context=32768`"],
        ),
        (
            mpe(4096),
            RopeOverrides(factor=4.0, original_context=4096, context=8192),
            ["`rope.factor=4.0`", "`rope.original_context=4096`", "`rope.context=8192`"],
        ),
        (mpe(32768, **linear(8.0)), RopeOverrides(context=16384), ["= 32768", "`rope.context=16384`"]),
        (
            mpe(8192),
            RopeOverrides(factor=4.0),
            ["max_position_embeddings = 8192", "`rope.factor=4.0`", "2048"],
        ),
        (mpe(4096), RopeOverrides(factor=0.25), ["`rope.factor=0.25`"]),
        (mpe(4096), RopeOverrides(factor=math.nan), ["`rope.factor=nan`"]),
        (mpe(4096), RopeOverrides(context=0), ["`rope.context=0`"]),
        (mpe(2**31, **linear(4.0)), RopeOverrides(original_context=2**31), ["32 bits"]),
    ],
)
def test_inconsistent_overrides_are_conflicts(
    config: dict[str, Any], overrides: RopeOverrides, parts: list[str]
) -> None:
    with pytest.raises(RopeConflict) as caught:
        read_rope(config, {}, overrides)
    for part in parts:
        assert part in caught.value.message
    assert "`rope." in (caught.value.hint or "")


EQUIVALENT = {
    "rope_type": {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    "both spellings": {"rope_scaling": {"rope_type": "linear", "type": "linear", "factor": 4}},
    "transformers 5": {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}},
    "both schemas": {
        "rope_scaling": {"type": "linear", "factor": 4.0},
        "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4},
        "rope_theta": 10000,
    },
    "by layer type, equal": {
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 4.0},
            "sliding_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": None},
        }
    },
    "by layer type, one": {"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 4.0}}},
    "an original context inside": {
        "rope_scaling": {"type": "linear", "factor": 4.0, "original_max_position_embeddings": 4096}
    },
    "an original context at the top level": {
        "rope_scaling": {"type": "linear", "factor": 4.0},
        "original_max_position_embeddings": 4096,
    },
    "a missing factor, original context known": {
        "rope_scaling": {"type": "linear"},
        "original_max_position_embeddings": 4096,
    },
    "a missing factor, two context lengths": {
        "rope_scaling": {"type": "linear"},
        "max_sequence_length": 4096,
    },
    "one schema empty": {"rope_scaling": {"type": "linear", "factor": 4.0}, "rope_parameters": {}},
    "off": {"rope_scaling": {"type": "linear", "factor": 4.0}, "use_xpos": False, "ntk_alpha": None},
}


@pytest.mark.parametrize("name", EQUIVALENT)
def test_all_spellings_of_a_scaling_are_read_alike(name: str) -> None:
    for config in (mpe(16384, **EQUIVALENT[name]), {"text_config": mpe(16384, **EQUIVALENT[name])}):
        assert read_rope(config, {}) == LinearScaling(
            rope_theta=10000.0, original_context=4096, context_length=16384, factor=4.0
        )


def test_a_factor_of_one_is_no_scaling() -> None:
    assert read_rope(mpe(8192, **linear(1.0)), {}) == UnscaledRope(
        rope_theta=10000.0, original_context=8192, context_length=8192
    )


def test_rounded_factors_agree_with_context_lengths() -> None:
    config = mpe(100000, original_max_position_embeddings=4096, **linear(24.41))
    assert read_rope(config, {}) == LinearScaling(
        rope_theta=10000.0, original_context=4096, context_length=100000, factor=24.41
    )
    with pytest.raises(RopeConflict):
        read_rope(mpe(100000, original_max_position_embeddings=4096, **linear(24.0)), {})


@pytest.mark.parametrize("factor", [1.5, 2, 2.5, 3, 4, 6.25, 8, 16, 32])
@pytest.mark.parametrize("original", [512, 1000, 2048, 4096])
def test_factor_times_original_is_the_context_length_whichever_is_stated(
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


def test_decisions_and_evidence_contain_everything_that_was_found() -> None:
    config = mpe(8192, max_sequence_length=2048, auto_map=AUTO_MAP)
    rope = read_rope(config, {"model_max_length": 2048}, RopeOverrides(context=8192))
    assert [(item.source, item.key, item.value) for item in rope.evidence] == [
        ("config.json", "max_position_embeddings", 8192),
        ("config.json", "max_sequence_length", 2048),
        ("config.json", "auto_map", AUTO_MAP),
        ("tokenizer_config.json", "model_max_length", 2048),
        ("command line", "rope.context", 8192),
    ]
    assert "inferred, 4" in rope.decisions[0]
    assert "max_sequence_length = 2048" in rope.decisions[0]
    assert "from 2048 to 8192" in rope.decisions[1]
    assert "10000" in rope.decisions[2]
    assert all(item.meaning for item in rope.evidence)


def test_the_effect_on_positions_is_explained() -> None:
    scaled = LinearScaling(rope_theta=10000.0, original_context=8192, context_length=32768, factor=4.0)
    assert "position 32767" in scaled.explain()
    assert "8191.75" in scaled.explain()
    assert "8192" in UnscaledRope(rope_theta=10000.0, original_context=8193, context_length=8193).explain()
