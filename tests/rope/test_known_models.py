"""Known models: the name supplies a scaling that the config omits, and never contradicts a config."""

from __future__ import annotations

from typing import Any

import pytest
from support.rope_configs import AUTO_MAP, LLAMA3, linear, mpe

from pigguf.errors import RopeConflict
from pigguf.rope import LinearScaling, Llama3Scaling, RopeOverrides, RopeScaling, UnscaledRope, read_rope
from pigguf.rope.known_models import KNOWN_MODELS

LLAMA_1 = mpe(2048)
LLAMA_2 = mpe(4096, rope_scaling=None)
LLAMA_3 = mpe(131072, rope_theta=5e5, rope_scaling=None)
BANDS = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}


def linear_scaling(factor: float, original: int) -> RopeScaling:
    return LinearScaling(
        rope_theta=1e4, original_context=original, context_length=round(factor * original), factor=factor
    )


@pytest.mark.parametrize(
    ("name", "config", "expected"),
    [
        ("superhot-13b-8k-no-rlhf-test", LLAMA_1, linear_scaling(4.0, 2048)),
        ("llama-13b-superhot-13b-16k-no-rlhf-test", LLAMA_1, linear_scaling(8.0, 2048)),
        (
            "Wizard-Vicuna-13B-Uncensored-SuperHOT-8K-fp16",
            mpe(8192, auto_map=AUTO_MAP),
            linear_scaling(4.0, 2048),
        ),
        ("Guanaco-33B-SuperHOT-8K-fp16", mpe(8192, max_sequence_length=2048), linear_scaling(4.0, 2048)),
        ("Llama-2-7b-longlora-8k-ft", LLAMA_2, linear_scaling(2.0, 4096)),
        ("Llama-2-7b-longlora-16k", LLAMA_2, linear_scaling(4.0, 4096)),
        ("Llama-2-13b-longlora-32k", LLAMA_2, linear_scaling(8.0, 4096)),
        ("Llama-2-13b-longlora-64k", LLAMA_2, linear_scaling(16.0, 4096)),
        ("LongAlpaca-7B", LLAMA_2, linear_scaling(8.0, 4096)),
        ("LongAlpaca-13B", mpe(32768, rope_theta=10000.0), linear_scaling(8.0, 4096)),
        (
            "Llama-2-7b-longlora-32k-ft",
            mpe(4096, rope_parameters={"rope_type": "default", "rope_theta": 1e4}),
            linear_scaling(8.0, 4096),
        ),
        ("LongAlpaca-70B-16k", LLAMA_2, linear_scaling(4.0, 4096)),
        (
            "Meta-Llama-3.1-8B",
            LLAMA_3,
            Llama3Scaling(rope_theta=5e5, original_context=8192, context_length=131072, factor=8.0, **BANDS),
        ),
        (
            "llama3.2-1b",
            LLAMA_3,
            Llama3Scaling(rope_theta=5e5, original_context=8192, context_length=131072, factor=32.0, **BANDS),
        ),
        (
            "Llama-3.3-70B-Instruct",
            LLAMA_3,
            Llama3Scaling(rope_theta=5e5, original_context=8192, context_length=131072, factor=8.0, **BANDS),
        ),
    ],
)
def test_a_known_name_supplies_a_missing_scaling(
    name: str, config: dict[str, Any], expected: RopeScaling
) -> None:
    rope = read_rope(config, {}, name=name)
    assert rope == expected
    assert rope == read_rope({**config, "_name_or_path": f"./models/{name}"}, {})
    assert rope.decisions[0].startswith("known by its name")
    assert name in rope.decisions[0]
    named = [item for item in rope.evidence if item.source == "its name"]
    assert [item.key for item in named] == [name]
    assert f"{expected.factor:g}" in rope.decisions[1]
    assert "known_models.json" in rope.decisions[1]
    known_evidence = [item for item in rope.evidence if item.source == "known_models.json"]
    assert any(item.value == expected.factor for item in known_evidence)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("Llama-2-7b-hf", LLAMA_2),
        ("superhot-13b", LLAMA_1),
        ("hot-8k", LLAMA_1),
        ("superhot-128k", LLAMA_1),
        ("Llama-2-7b-longlora-100k-ft", LLAMA_2),
        ("Meta-Llama-3-8B", mpe(8192, rope_theta=5e5)),
        ("Llama-3.1-8B-shortened", mpe(8192, rope_theta=5e5)),
        ("Llama-3.10-8B", LLAMA_3),
        ("LongAlpaca-7B", mpe(16384)),
        ("Llama-3-8B-LongAlpaca", mpe(4096, rope_theta=5e5)),
        ("", LLAMA_1),
    ],
)
def test_other_names_supply_nothing(name: str, config: dict[str, Any]) -> None:
    rope = read_rope(config, {}, name=name)
    assert rope.rope_type == "none"
    assert len(rope.decisions) == 3


@pytest.mark.parametrize(
    "config",
    [
        mpe(4096, **linear(2.0)),
        mpe(2048, rope_condense_ratio=2),
        mpe(131072, rope_theta=5e5, rope_scaling=LLAMA3),
    ],
)
def test_a_config_with_a_scaling_overrides_the_name(config: dict[str, Any]) -> None:
    assert read_rope(config, {}, name="superhot-8k") == read_rope(config, {})


def test_an_override_takes_precedence_over_a_name() -> None:
    rope = read_rope(LLAMA_1, {}, RopeOverrides(factor=1.0), name="superhot-8k")
    assert rope == UnscaledRope(rope_theta=1e4, original_context=2048, context_length=2048)
    assert read_rope(LLAMA_1, {}, RopeOverrides(factor=2.0), name="superhot-8k") == linear_scaling(2.0, 2048)


def test_a_context_length_that_does_not_fit_a_name_is_a_conflict() -> None:
    with pytest.raises(RopeConflict) as caught:
        read_rope(mpe(6000), {}, name="superhot-8k")
    for part in ("known_models.json: SuperHOT 8k.factor = 4.0", "max_position_embeddings = 6000"):
        assert part in caught.value.message
    assert "`rope.original_context" in (caught.value.hint or "")


def test_every_known_model_has_a_source_and_a_unique_name() -> None:
    for family in KNOWN_MODELS:
        assert family.source
        assert set(family.rope_scaling) >= {"rope_type", "factor"}
    assert len({family.name for family in KNOWN_MODELS}) == len(KNOWN_MODELS)
