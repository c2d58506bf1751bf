"""config.json -> hyperparameters and positions of a model.

A config that asks for something llama.cpp's graph of the family does not compute is rejected, with the key
and its value. Not here: reading a GGUF's metadata (metadata_reader.py), deciding about rope scaling
(pigguf.rope).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pigguf.architectures.config_keys import (
    config_key,
    language_model_config,
    read_count,
    with_llama_keys,
)
from pigguf.architectures.family import DEFAULT_ALLOWED_VALUES, NOT_COMPUTED_HINT, Family, position_type
from pigguf.architectures.hparam_checks import check_hparams
from pigguf.architectures.hparams import HParams
from pigguf.architectures.layer_types import sliding_window_keys
from pigguf.common.json_config import JsonConfig
from pigguf.errors import CheckpointError, RopeConflict, UnsupportedModel
from pigguf.gguf_io.metadata import TypedValue
from pigguf.rope import Positions, RopeOverrides, read_alibi, read_learned_positions, read_rope

QUANTIZED_HINT = "convert the checkpoint as it was before it was quantized"


def positions_from_config(
    family: Family,
    config: Mapping[str, Any],
    tokenizer_config: Mapping[str, Any],
    overrides: RopeOverrides | None = None,
    extended: JsonConfig | None = None,
    name: str = "",
) -> Positions:
    """Decide a checkpoint's position encoding from everything in its files and the user's overrides.

    Args and raises: see pigguf.rope.read_rope.
    """
    overrides = overrides or RopeOverrides()
    keys = with_llama_keys(family, config)
    n_layers = read_count(family, language_model_config(family, config), "num_hidden_layers")
    encoding = position_type(family, n_layers)
    if encoding == "learned":
        return read_learned_positions(keys, overrides)
    if overrides.interpolation is not None:
        raise RopeConflict(
            f"`rope.interpolation={overrides.interpolation}`: {family.hf_classes[0]} has no table of learned "
            "positions",
            "it is for GPT-2, StarCoder and OPT; `rope.factor` interpolates rotary positions",
        )
    if encoding == "alibi":
        return read_alibi(keys, overrides)
    return read_rope(keys, tokenizer_config, overrides, extended, name)


def hparams_from_config(family: Family, config: Mapping[str, Any], positions: Positions) -> HParams:
    """Read a model's hyperparameters from config.json.

    Args:
        family: the model's family.
        config: config.json.
        positions: as decided by positions_from_config.

    Raises:
        CheckpointError: a key is missing, of the wrong type, or does not fit another.
        UnsupportedModel: the config asks for something that llama.cpp's graph of the family does not compute.
    """
    keys = language_model_config(family, config)
    _check_allowed_values(family, keys)
    width, heads = read_count(family, keys, "hidden_size"), read_count(family, keys, "num_attention_heads")
    if width % heads and "head_dim" not in keys:
        name = config_key(family, "hidden_size", keys)
        raise keys.invalid_value(name, f"a multiple of num_attention_heads = {heads}")
    head_dim = read_count(family, keys, "head_dim", width // heads)
    compute_inner = family.default_intermediate_size
    layers = read_count(family, keys, "num_hidden_layers")
    hparams = HParams(
        architecture=family.architecture,
        hf_class=family.hf_classes[0],
        layers=layers,
        embedding_length=width,
        feed_forward_length=read_count(
            family, keys, "intermediate_size", compute_inner(width) if compute_inner else None
        ),
        heads=heads,
        kv_heads=_read_kv_heads(family, keys, heads),
        head_dim=head_dim,
        rotary_dim=family.rotary.read(keys, head_dim) if position_type(family, layers) == "rope" else 0,
        vocab_size=read_count(family, keys, "vocab_size"),
        norm_epsilon=keys.optional(family.norm_epsilon_key, float, family.norm_epsilon_default),
        rope=positions,
        norm_type=family.norm_type,
        features=frozenset(feature for feature, flag in family.optional_features.items() if flag.read(keys)),
        experts=_read_expert_count(family, keys),
        extra_keys={
            **_read_extra_keys(family, keys),
            **sliding_window_keys(family, keys, layers, positions.context_length),
        },
    )
    check_hparams(family, hparams, "config.json: ", CheckpointError)
    if family.check_config is not None:
        family.check_config(keys, hparams)
    return hparams


def _check_allowed_values(family: Family, keys: JsonConfig) -> None:
    allowed_values = {**DEFAULT_ALLOWED_VALUES, **family.allowed_values}
    for section in (keys, keys.section("rope_scaling"), keys.section("rope_parameters")):
        for key, allowed in allowed_values.items():
            if section is None or allowed is None or key not in section:
                continue
            values, asks_for = allowed
            if section.values[key] not in values:
                raise UnsupportedModel(
                    f"{section.describe(key)} asks for {asks_for}",
                    NOT_COMPUTED_HINT if values else QUANTIZED_HINT,
                )


def _read_kv_heads(family: Family, keys: JsonConfig, heads: int) -> int:
    if family.read_kv_heads is not None:
        return family.read_kv_heads(keys, heads)
    return read_count(family, keys, "num_key_value_heads", heads)


def _read_expert_count(family: Family, keys: JsonConfig) -> int:
    for rule in family.hparam_rules:
        if rule.gguf_key == "expert_count" and (typed := rule.read(keys)) is not None:
            return int(typed.value)
    return 0


def _read_extra_keys(family: Family, keys: JsonConfig) -> dict[str, TypedValue]:
    values = {
        rule.gguf_key: rule.read(keys) for rule in family.hparam_rules if rule.gguf_key != "expert_count"
    }
    return {key: typed for key, typed in values.items() if typed is not None}
