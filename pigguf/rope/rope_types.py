"""Kinds of scaling as configs have them: their names, the keys each has, and what llama.cpp cannot express.

A kind is a row in KINDS. Its keys become parameters under the names that GGUF has for them, where it has
any, without what is the default anyway; a value that llama.cpp would not compute is refused by name.
Keys and defaults are those of transformers' modeling_rope_utils.py, and for YaRN's attn_factor and
extrapolation_factor of jquesnelle/yarn, whose names llama.cpp's converter takes too.

Left out: the factor, the base and the windows, which all kinds share (evidence.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from pigguf.common.config import Config
from pigguf.errors import CheckpointError, RopeConflict, UnsupportedModel
from pigguf.rope.frequencies import single

COMMON_KEYS = (
    "rope_type",
    "type",
    "factor",
    "rope_theta",
    "original_max_position_embeddings",
    "partial_rotary_factor",  # the family's business: arch/ refuses what it cannot express
    "finetuned",  # told, never computed with
)

Parameters = dict[str, Any]


class ScalingKind(NamedTuple):
    """What a kind is called here, its keys beyond the common ones, and how they are read.

    `has_factor` says whether `factor` divides; LongRoPE has lists instead.
    """

    name: str
    keys: tuple[str, ...] = ()
    read: Callable[[Config], Parameters] = lambda scaling: {}
    has_factor: bool = True


def _yarn(scaling: Config) -> Parameters:
    for key, only in (("extrapolation_factor", 1.0), ("attn_factor", 1.0)):
        if scaling.optional(key, float, only) != only:
            raise UnsupportedModel(
                f"{scaling.says(key)}: YaRN has no such part in transformers, nor in llama.cpp's graphs",
                f"remove {key} from config.json if the model was trained without it",
            )
    if not scaling.optional("truncate", bool, True):
        raise UnsupportedModel(
            f"{scaling.says('truncate')}: llama.cpp rounds the bounds of YaRN's ramp to whole dimensions",
            "it would compute other frequencies than this model was trained with",
        )
    parameters = {
        f"yarn_{key}": single(value)
        for key, default in (("beta_fast", 32.0), ("beta_slow", 1.0))
        if (value := scaling.optional(key, float, default) or default) != default
    }
    attention = {
        key: scaling.require(key, float)
        for key in ("attention_factor", "mscale", "mscale_all_dim")
        if key in scaling
    }
    if len(attention.keys() & {"mscale", "mscale_all_dim"}) == 1 and "attention_factor" not in attention:
        (key,) = attention
        raise RopeConflict(
            f"{scaling.says(key)} is but one of mscale and mscale_all_dim: transformers then ignores it, "
            "and DeepSeek's code does not",
            "set both, or attention_factor, in config.json",
        )
    return {**parameters, **attention}


def _longrope(scaling: Config) -> Parameters:
    parameters = {key: _divisors(scaling, key) for key in ("short_factor", "long_factor")}
    if len(set(map(len, parameters.values()))) != 1:
        raise RopeConflict(
            f"{scaling.file}: {scaling.prefix}short_factor has {len(parameters['short_factor'])} numbers, "
            f"{scaling.prefix}long_factor {len(parameters['long_factor'])}",
            f"correct {scaling.file}: both have one for each rotated pair of a head",
        )
    numbers = {key: scaling.require(key, float) for key in ("factor", "attention_factor") if key in scaling}
    return {**parameters, **numbers}


def _divisors(scaling: Config, key: str) -> tuple[float, ...]:
    if key not in scaling:
        raise CheckpointError(
            f"{scaling.file} lacks {scaling.prefix}{key}",
            "it should hold a list of numbers, one a rotated pair",
        )
    values = scaling.values[key]
    if not isinstance(values, list) or not values or not all(map(_is_positive, values)):
        raise scaling.invalid(key, "a list of numbers above 0")
    return tuple(single(value) for value in values)


def _is_positive(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value > 0


def _llama3(scaling: Config) -> Parameters:
    for key in ("factor", "original_max_position_embeddings"):
        scaling.require(key, float)
    low, high = (scaling.require(f"{band}_freq_factor", float) for band in ("low", "high"))
    if not 0 < low < high:
        raise scaling.invalid("high_freq_factor", f"above low_freq_factor = {low:g}, which is above 0")
    return {"low_freq_factor": low, "high_freq_factor": high}


# By the names that configs have for them.
KINDS = {
    "default": ScalingKind("none"),
    "linear": ScalingKind("linear"),
    "yarn": ScalingKind(
        "yarn",
        (
            *("attention_factor", "mscale", "mscale_all_dim", "beta_fast", "beta_slow", "truncate"),
            *("attn_factor", "extrapolation_factor"),
        ),
        _yarn,
    ),
    "longrope": ScalingKind(
        "longrope", ("short_factor", "long_factor", "attention_factor"), _longrope, has_factor=False
    ),
    "su": ScalingKind(
        "longrope", ("short_factor", "long_factor", "attention_factor"), _longrope, has_factor=False
    ),
    "llama3": ScalingKind("llama3", ("low_freq_factor", "high_freq_factor"), _llama3),
    "dynamic": ScalingKind("dynamic"),
}
UNSCALED = KINDS["default"]
