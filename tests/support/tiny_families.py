"""Tiny seeded models made with transformers, one for each variant that the families' rules distinguish."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from safetensors.numpy import load_file

from pigguf.architectures import (
    Family,
    family_from_config,
    hparams_from_config,
    map_tensors_to_gguf,
    positions_from_config,
)
from pigguf.architectures.hparams import HParams
from pigguf.common.lazy_tensor import LazyTensor

WINDOW = 64
BASE: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": WINDOW,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
GPT2: dict[str, Any] = {
    "vocab_size": 96,
    "n_embd": 64,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": WINDOW,
}
NEOX: dict[str, Any] = {
    **{key: value for key, value in BASE.items() if key not in ("num_key_value_heads", "rms_norm_eps")},
    "num_attention_heads": 4,
}
PHI: dict[str, Any] = {**NEOX, "num_key_value_heads": 2}
FALCON: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": WINDOW,
}
BLOOM: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "n_layer": 2,
    "n_head": 4,
    "seq_length": WINDOW,
}
MPT: dict[str, Any] = {"vocab_size": 96, "d_model": 64, "n_layers": 2, "n_heads": 4, "max_seq_len": WINDOW}
OPT: dict[str, Any] = {
    **FALCON,
    "ffn_dim": 96,
    "word_embed_proj_dim": 64,
}
GEMMA: dict[str, Any] = {**BASE, "head_dim": 16, "tie_word_embeddings": True}
GEMMA2: dict[str, Any] = {
    **GEMMA,
    "num_hidden_layers": 4,
    "sliding_window": 24,
    "query_pre_attn_scalar": 16,
    "attn_logit_softcapping": 5.0,
    "final_logit_softcapping": 3.0,
}
GEMMA3: dict[str, Any] = {**GEMMA, "num_hidden_layers": 7, "sliding_window": 24, "query_pre_attn_scalar": 16}
MIXTRAL: dict[str, Any] = {**BASE, "num_local_experts": 4, "num_experts_per_tok": 2}
GRANITE: dict[str, Any] = {
    **BASE,
    "embedding_multiplier": 3.0,
    "attention_multiplier": 0.25,
    "residual_multiplier": 0.5,
    "logits_scaling": 1.5,
}
SMALL_IDS: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
COHERE: dict[str, Any] = {**PHI, **SMALL_IDS, "tie_word_embeddings": True, "logit_scale": 0.5}
PHI3: dict[str, Any] = {**BASE, **SMALL_IDS, "original_max_position_embeddings": WINDOW}
SMOLLM3: dict[str, Any] = {**BASE, **SMALL_IDS, "num_hidden_layers": 5}
LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
UNSCALED = {"rope_type": "default", "rope_theta": 10000.0}
SCALED = {"rope_parameters": LINEAR}


class ModelVariant(NamedTuple):
    """A transformers class and the keys of its config."""

    hf_class: str
    config: Mapping[str, Any]


MODEL_VARIANTS: dict[str, ModelVariant] = {
    "llama": ModelVariant("LlamaForCausalLM", BASE),
    "llama, factor 4": ModelVariant("LlamaForCausalLM", {**BASE, **SCALED}),
    "llama, tied": ModelVariant("LlamaForCausalLM", {**BASE, "tie_word_embeddings": True}),
    "llama, biases": ModelVariant(
        "LlamaForCausalLM", {**BASE, "attention_bias": True, "mlp_bias": True, **SCALED}
    ),
    "llama, heads of their own width": ModelVariant(
        "LlamaForCausalLM", {**BASE, "head_dim": 16, "num_key_value_heads": 4}
    ),
    "llama, no shared heads": ModelVariant("LlamaForCausalLM", {**BASE, "num_key_value_heads": 8}),
    "mistral": ModelVariant("MistralForCausalLM", {**BASE, "sliding_window": None, **SCALED}),
    "qwen2": ModelVariant("Qwen2ForCausalLM", BASE),
    "qwen2, tied, factor 4": ModelVariant(
        "Qwen2ForCausalLM", {**BASE, "tie_word_embeddings": True, **SCALED}
    ),
    "qwen3": ModelVariant("Qwen3ForCausalLM", {**BASE, "head_dim": 16}),
    "qwen3, factor 4": ModelVariant("Qwen3ForCausalLM", {**BASE, "head_dim": 16, **SCALED}),
    "gpt2": ModelVariant("GPT2LMHeadModel", GPT2),
    "gpt2, untied": ModelVariant("GPT2LMHeadModel", {**GPT2, "n_inner": 96, "tie_word_embeddings": False}),
    "gptneox": ModelVariant("GPTNeoXForCausalLM", NEOX),
    "gptneox, one after the other, factor 4": ModelVariant(
        "GPTNeoXForCausalLM",
        {**NEOX, "use_parallel_residual": False, "rope_parameters": {**LINEAR, "partial_rotary_factor": 0.5}},
    ),
    "gptneox, tied": ModelVariant("GPTNeoXForCausalLM", {**NEOX, "tie_word_embeddings": True}),
    "phi2": ModelVariant("PhiForCausalLM", PHI),
    "phi2, factor 4": ModelVariant(
        "PhiForCausalLM", {**PHI, "rope_parameters": {**LINEAR, "partial_rotary_factor": 0.5}}
    ),
    "gptj": ModelVariant("GPTJForCausalLM", {**GPT2, "rotary_dim": 8}),
    "falcon": ModelVariant("FalconForCausalLM", FALCON),
    "falcon, no shared heads, untied": ModelVariant(
        "FalconForCausalLM", {**FALCON, "multi_query": False, "tie_word_embeddings": False}
    ),
    "falcon, two norms, factor 4": ModelVariant(
        "FalconForCausalLM", {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2, **SCALED}
    ),
    "bloom": ModelVariant("BloomForCausalLM", BLOOM),
    "bloom, 12 heads": ModelVariant("BloomForCausalLM", {**BLOOM, "hidden_size": 96, "n_head": 12}),
    "mpt": ModelVariant("MptForCausalLM", MPT),
    "mpt, clipped": ModelVariant("MptForCausalLM", {**MPT, "attn_config": {"clip_qkv": 0.5}}),
    "starcoder": ModelVariant("GPTBigCodeForCausalLM", GPT2),
    "starcoder, no shared heads": ModelVariant("GPTBigCodeForCausalLM", {**GPT2, "multi_query": False}),
    "opt": ModelVariant("OPTForCausalLM", OPT),
    "mixtral": ModelVariant("MixtralForCausalLM", MIXTRAL),
    "mixtral, factor 4": ModelVariant("MixtralForCausalLM", {**MIXTRAL, **SCALED}),
    "gemma": ModelVariant("GemmaForCausalLM", GEMMA),
    "gemma, factor 4": ModelVariant("GemmaForCausalLM", {**GEMMA, **SCALED}),
    "gemma2": ModelVariant("Gemma2ForCausalLM", GEMMA2),
    "gemma2, factor 4": ModelVariant("Gemma2ForCausalLM", {**GEMMA2, **SCALED}),
    "gemma2, other layers slide": ModelVariant(
        "Gemma2ForCausalLM", {**GEMMA2, "layer_types": ["full_attention", *["sliding_attention"] * 3]}
    ),
    "gemma3": ModelVariant("Gemma3ForCausalLM", GEMMA3),
    "gemma3, untied, other layers slide, factor 4": ModelVariant(
        "Gemma3ForCausalLM",
        {
            **GEMMA3,
            "tie_word_embeddings": False,
            "layer_types": [*["sliding_attention", "full_attention"] * 3, "sliding_attention"],
            "final_logit_softcapping": 3.0,
            "rope_parameters": {
                "full_attention": LINEAR,
                "sliding_attention": {**UNSCALED, "rope_theta": 5000.0},
            },
        },
    ),
    "phi3": ModelVariant("Phi3ForCausalLM", PHI3),
    "phi3, tied, half of a head": ModelVariant(
        "Phi3ForCausalLM", {**PHI3, "tie_word_embeddings": True, "partial_rotary_factor": 0.5}
    ),
    "starcoder2": ModelVariant("Starcoder2ForCausalLM", {**PHI, **SMALL_IDS}),
    "starcoder2, tied, factor 4": ModelVariant(
        "Starcoder2ForCausalLM", {**PHI, **SMALL_IDS, "tie_word_embeddings": True, **SCALED}
    ),
    "olmo2": ModelVariant("Olmo2ForCausalLM", {**BASE, **SMALL_IDS}),
    "olmo2, factor 4": ModelVariant("Olmo2ForCausalLM", {**BASE, **SMALL_IDS, **SCALED}),
    "granite": ModelVariant("GraniteForCausalLM", GRANITE),
    "granite, tied, biases, factor 4": ModelVariant(
        "GraniteForCausalLM",
        {**GRANITE, "tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True, **SCALED},
    ),
    "command-r": ModelVariant("CohereForCausalLM", COHERE),
    "command-r, factor 4": ModelVariant("CohereForCausalLM", {**COHERE, **SCALED}),
    "smollm3": ModelVariant("SmolLM3ForCausalLM", SMOLLM3),
    "smollm3, tied, factor 4": ModelVariant(
        "SmolLM3ForCausalLM", {**SMOLLM3, "tie_word_embeddings": True, **SCALED}
    ),
    "stablelm": ModelVariant(
        "StableLmForCausalLM", {**PHI, "rope_parameters": {**UNSCALED, "partial_rotary_factor": 0.25}}
    ),
    "stablelm, biases, side by side, factor 4": ModelVariant(
        "StableLmForCausalLM",
        {
            **PHI,
            "use_qkv_bias": True,
            "use_parallel_residual": True,
            "rope_parameters": {**LINEAR, "partial_rotary_factor": 0.5},
        },
    ),
}


def scaled_rope_parameters(kind: str, rope: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config keys that scale a variant's positions, as its class has them."""
    if MODEL_VARIANTS[kind].hf_class == "Gemma3ForCausalLM":
        return {"rope_parameters": {"full_attention": rope, "sliding_attention": UNSCALED}}
    return {"rope_parameters": {**(MODEL_VARIANTS[kind].config.get("rope_parameters") or {}), **rope}}


class TinyModel:
    """A tiny seeded model, its config.json and its tensors.

    Attributes:
        kind: a name in KINDS.
        module: the model.
        config: config.json as transformers writes it.
        tensors: as save_pretrained names them.
    """

    def __init__(self, kind: str, **changes: Any) -> None:
        self.variant = kind
        cls = getattr(transformers, MODEL_VARIANTS[kind].hf_class)
        torch.manual_seed(7)
        self.module = cls(cls.config_class(**{**MODEL_VARIANTS[kind].config, **changes})).eval()
        with torch.no_grad():
            for (
                parameter
            ) in self.module.parameters():  # norms and biases other than 1 and 0, as bfloat16 has them
                parameter.copy_((parameter + torch.randn_like(parameter) * 0.1).bfloat16())
        with tempfile.TemporaryDirectory() as directory:
            self.module.save_pretrained(directory)
            self.config: dict[str, Any] = json.loads(Path(directory, "config.json").read_text())
            state = load_file(Path(directory, "model.safetensors"))
        self.tensors = {name: lazy_tensor(name, values) for name, values in state.items()}

    @property
    def family(self) -> Family:
        return family_from_config(self.config)

    def hparams(self) -> HParams:
        return hparams_from_config(
            self.family, self.config, positions_from_config(self.family, self.config, {})
        )

    def converted(self) -> dict[str, LazyTensor]:
        return {t.name: t for t in map_tensors_to_gguf(self.family, self.hparams(), self.tensors, "here")}


def lazy_tensor(name: str, values: np.ndarray[Any, Any], dtype: str = "F32") -> LazyTensor:
    rows = values if values.ndim == 1 else values.reshape(-1, values.shape[-1])
    read: Callable[[int, int], np.ndarray[Any, Any]] = lambda start, stop: rows[start:stop]  # noqa: E731
    return LazyTensor(name, values.shape, dtype, read)
