"""The rope keys of published checkpoints' config.json, as they were published."""

from __future__ import annotations

from typing import Any

VERY_LARGE_INTEGER = int(1e30)  # transformers' VERY_LARGE_INTEGER
AUTO_MAP = {"AutoModelForCausalLM": "modelling_llama.LlamaForCausalLM"}


def mpe(window: int, **keys: Any) -> dict[str, Any]:
    return {"max_position_embeddings": window, **keys}


def scaling(kind: str, factor: float, **keys: Any) -> dict[str, Any]:
    return {"rope_scaling": {"type": kind, "factor": factor, **keys}}


def linear(factor: float) -> dict[str, Any]:
    return scaling("linear", factor)


# (config keys as published, tokenizer's model_max_length, factor, original context, context length, theta)
PUBLISHED = {
    "longchat-7b-16k": (mpe(2048, rope_condense_ratio=8), None, 8, 2048, 16384, 1e4),
    "longchat-7b-16k, resaved": (
        mpe(2048, rope_condense_ratio=8, rope_scaling=None, max_sequence_length=16384),
        2048,
        *(8, 2048, 16384, 1e4),
    ),
    "longchat-7b-v1.5-32k": (
        mpe(4096, rope_condense_ratio=8, max_sequence_length=32768, **linear(8.0)),
        VERY_LARGE_INTEGER,
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
        VERY_LARGE_INTEGER,
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
    "Llama-2-7b": (mpe(4096), VERY_LARGE_INTEGER, 1, 4096, 4096, 1e4),
    "LLaMA-7b, first conversion": ({"max_sequence_length": 2048}, 1e30, 1, 2048, 2048, 1e4),
    "Qwen2.5-7B-Instruct": (mpe(32768, rope_theta=1000000.0), 131072, 1, 32768, 32768, 1e6),
    "LongLoRA with rope_scaling null": (mpe(4096, rope_scaling=None), 32768, 1, 4096, 4096, 1e4),
}


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
SHORT_FACTOR = [round(1.05 + 0.01 * pair, 2) for pair in range(48)]
LONG_FACTOR = [round(1.08 + 1.31 * pair, 2) for pair in range(48)]
LONGROPE = {"short_factor": SHORT_FACTOR, "long_factor": LONG_FACTOR}

# Rope types other than linear: config keys as published, the rope type, the factor, the original context, the
# context length, rope_theta. The lists of Phi-3 have its length, and other numbers.
OTHER_ROPE_TYPES: dict[str, tuple[dict[str, Any], str, float, int, int, float]] = {
    "Yarn-Llama-2-7b-64k": (
        mpe(65536, **scaling("yarn", 16.0, original_max_position_embeddings=4096, finetuned=True)),
        *("yarn", 16.0, 4096, 65536, 1e4),
    ),
    "Yarn-Llama-2-7b-128k": (
        mpe(131072, **scaling("yarn", 32.0, original_max_position_embeddings=4096, finetuned=True)),
        *("yarn", 32.0, 4096, 131072, 1e4),
    ),
    "Qwen2.5-7B-Instruct with yarn": (
        mpe(32768, rope_theta=1e6, **scaling("yarn", 4.0, original_max_position_embeddings=32768)),
        *("yarn", 4.0, 32768, 131072, 1e6),
    ),
    "Llama-3.1-8B": (mpe(131072, rope_theta=5e5, rope_scaling=LLAMA3), "llama3", 8.0, 8192, 131072, 5e5),
    "Llama-3.2-1B": (
        mpe(131072, rope_theta=5e5, rope_scaling={**LLAMA3, "factor": 32.0}),
        *("llama3", 32.0, 8192, 131072, 5e5),
    ),
    "Phi-3-mini-128k": (
        mpe(
            131072,
            rope_theta=1e4,
            original_max_position_embeddings=4096,
            rope_scaling={"type": "su", **LONGROPE},
        ),
        *("longrope", 1.0, 4096, 131072, 1e4),
    ),
    "Phi-3.5-mini": (
        mpe(
            131072,
            rope_theta=1e4,
            original_max_position_embeddings=4096,
            rope_scaling={"type": "longrope", **LONGROPE},
        ),
        *("longrope", 1.0, 4096, 131072, 1e4),
    ),
    "gemma-3-4b": (
        mpe(
            131072,
            rope_theta=1e6,
            rope_local_base_freq=1e4,
            text_config={"rope_scaling": {"factor": 8.0, "rope_type": "linear"}},
        ),
        *("linear", 8.0, 16384, 131072, 1e6),
    ),
    "gemma-3-1b": (
        mpe(32768, rope_theta=1e6, rope_local_base_freq=1e4, rope_scaling=None),
        *("none", 1.0, 32768, 32768, 1e6),
    ),
}
