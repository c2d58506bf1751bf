"""config.json keys of an export: read back, and understood by transformers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support.rope_configs import PUBLISHED

from pigguf.gguf_io.metadata import f32, u32
from pigguf.rope import LinearScaling, RopeScaling, read_rope, rope_from_metadata


@pytest.mark.parametrize("name", PUBLISHED)
def test_exported_keys_read_back_as_the_same_scaling(name: str) -> None:
    config, limit, *_ = PUBLISHED[name]
    rope = read_rope(config, {"model_max_length": limit})
    from_file = rope_from_metadata(rope.to_gguf("llama"), "llama")
    assert read_rope(from_file.to_config(), {}) == rope


def test_an_export_omits_an_original_context_that_the_gguf_does_not_state() -> None:
    keys = {"llama.context_length": u32(32768), "llama.rope.scaling.factor": f32(8.0)}
    rope = rope_from_metadata(keys, "llama")
    assert not rope.context_matches_factor
    assert "original_max_position_embeddings" not in rope.to_config()
    assert read_rope(rope.to_config(), {}) == LinearScaling(
        rope_theta=10000.0, original_context=4096, context_length=32768, factor=8.0
    )


def llama_frequencies(config: dict[str, Any]) -> np.ndarray:
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    sizes = {"hidden_size": 256, "num_attention_heads": 4}
    return LlamaRotaryEmbedding(LlamaConfig.from_dict({**config, **sizes})).inv_freq.numpy()  # type: ignore[no-any-return]


def our_frequencies(rope: RopeScaling) -> np.ndarray:
    return rope.rope_theta ** (-np.arange(0, 64, 2) / 64) / rope.factor


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
    np.testing.assert_allclose(our_frequencies(rope), llama_frequencies(rope.to_config()), rtol=2e-6)


@pytest.mark.parametrize("keep", ["rope_parameters", "rope_scaling"])
def test_either_schema_of_an_export_is_enough_for_transformers(keep: str) -> None:
    rope = LinearScaling(rope_theta=1e5, original_context=4096, context_length=16384, factor=4.0)
    config = rope.to_config()
    dropped = {"rope_parameters": ("rope_scaling", "rope_theta"), "rope_scaling": ("rope_parameters",)}[keep]
    for key in dropped:
        del config[key]
    np.testing.assert_allclose(llama_frequencies(config), our_frequencies(rope), rtol=2e-6)
