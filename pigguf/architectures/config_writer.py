"""Hyperparameters and positions of a model -> config.json.

Used by an export, and by whatever gives a checkpoint other positions. Not here: the tokenizer's token ids.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pigguf.architectures.config_keys import config_key, language_model_config
from pigguf.architectures.family import Family
from pigguf.architectures.hparams import HParams
from pigguf.architectures.layer_types import layer_types_config
from pigguf.errors import GGUFError
from pigguf.gguf_io.metadata import FOREIGN_FILE_HINT, round_to_shortest_f32

# Written as null where the tokenizer has none: transformers' defaults are those of the published models.
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
SCALING_SECTIONS = ("rope_scaling", "rope_parameters")


def config_from_hparams(family: Family, hparams: HParams) -> dict[str, Any]:
    """Return the config.json of an export with bfloat16 weights; the token ids are still null.

    Raises:
        GGUFError: the GGUF lacks a key for which transformers has another default than the graph.
    """
    keys = {
        config_key(family, llama_key): value
        for llama_key, value in {**_llama_keys(family, hparams), **hparams.rope.to_config()}.items()
    }
    for rule in family.hparam_rules:
        if rule.gguf_key in hparams.extra_keys:
            rule.write(keys, hparams.extra_keys[rule.gguf_key].value)
        elif rule.gguf_key == "expert_count":
            rule.write(keys, hparams.experts)
        elif rule.default is not None:  # the graph's default and transformers' may differ
            raise GGUFError(
                f"metadata key {family.architecture}.{rule.gguf_key} is missing", FOREIGN_FILE_HINT
            )
    for feature, flag in family.optional_features.items():
        flag.write(keys, hparams.has_feature(feature))
    family.rotary.write(keys, hparams.rotary_dim, hparams.head_dim)
    from_hparams = family.export_config_from_hparams
    return {
        "architectures": [family.hf_classes[0]],
        "model_type": family.model_type,
        **keys,
        family.norm_epsilon_key: round_to_shortest_f32(hparams.norm_epsilon),
        **layer_types_config(family, hparams),
        **dict.fromkeys(TOKEN_IDS),
        "torch_dtype": "bfloat16",
        **(from_hparams(hparams) if from_hparams else {}),
        **family.export_config,
    }


def config_with_positions(family: Family, config: Mapping[str, Any], hparams: HParams) -> dict[str, Any]:
    """Return a checkpoint's config.json with its positions replaced by those of `hparams`.

    All of its own scaling keys are removed: transformers prefers rope_scaling to rope_parameters.
    """
    keys = language_model_config(family, config)
    unscaled = {key: value for key, value in keys.values.items() if key not in SCALING_SECTIONS}
    positions = {config_key(family, key): value for key, value in hparams.rope.to_config().items()}
    language = {**unscaled, **positions}
    family.rotary.write(language, hparams.rotary_dim, hparams.head_dim)
    return {**config, family.config_section: language} if keys.prefix else language


def _llama_keys(family: Family, hparams: HParams) -> dict[str, int]:
    """Return the sizes by Llama's names of their keys."""
    keys = {
        "vocab_size": hparams.vocab_size,
        "hidden_size": hparams.embedding_length,
        "intermediate_size": hparams.feed_forward_length,
        "num_hidden_layers": hparams.layers,
        "num_attention_heads": hparams.heads,
    }
    if family.read_kv_heads is None:
        keys["num_key_value_heads"] = hparams.kv_heads
    is_custom = hparams.head_dim * hparams.heads != hparams.embedding_length
    if is_custom or hparams.head_dim != family.config_defaults.get("head_dim", hparams.head_dim):
        keys["head_dim"] = hparams.head_dim
    return keys
