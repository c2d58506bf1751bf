"""LongRoPE (Phi-3): each frequency is divided by a factor of its own, from one list of two.

llama.cpp and transformers use short_factor up to the original context and long_factor beyond; llama.cpp
decides by the length of the context, transformers by that of the text. Sources: transformers'
modeling_rope_utils.py; llama.cpp src/llama-model.cpp (get_rope_factors) and conversion/phi.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from pigguf.common.json_config import JsonConfig
from pigguf.errors import CheckpointError, RopeConflict, UnsupportedModel
from pigguf.gguf_io.metadata import TypedValue, f32, round_to_shortest_f32, string, u32
from pigguf.rope.gguf_keys import GGUFRopeKeys
from pigguf.rope.rope_scaling import FreqFactors, RopeScaling, freq_factor_tensors, single

LONG_FACTORS, SHORT_FACTORS = "rope_factors_long.weight", "rope_factors_short.weight"  # GGUF tensors
CONFIG_KEYS = ("short_factor", "long_factor", "attention_factor")


def longrope_attention(factor: float, original_context: int) -> float:
    """Return what LongRoPE multiplies queries and keys by, where a config does not give it."""
    return 1.0 if factor <= 1.0 else math.sqrt(1 + math.log(factor) / math.log(original_context))


@dataclass(frozen=True, kw_only=True)
class LongRopeScaling(RopeScaling):
    """Rotary positions with LongRoPE.

    `factor` is 1.0, unless a GGUF has a rope.scaling.factor in addition.

    Attributes:
        short_factor: freq_factors of contexts up to the original one, (n_pairs,).
        long_factor: freq_factors of longer contexts, (n_pairs,).
    """

    rope_type: ClassVar[str] = "longrope"
    supports_attn_factor: ClassVar[bool] = True

    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()

    @classmethod
    def from_gguf(cls, keys: GGUFRopeKeys) -> LongRopeScaling:
        """Return the positions of a GGUF with LongRoPE; without its tensors the factors are empty."""
        common = keys.common_fields()
        common["original_context"] = keys.stated_original_context or keys.context_length
        return cls(
            **common,
            factor=keys.factor,
            short_factor=keys.tensor_values(SHORT_FACTORS),
            long_factor=keys.tensor_values(LONG_FACTORS),
        )

    def tensors(self, rotary_dim: int) -> dict[str, FreqFactors]:
        """Return the GGUF tensors of these positions: name -> (rotary_dim / 2,), float32.

        Raises:
            CheckpointError: the lists have another number of factors.
        """
        factors = {LONG_FACTORS: self.long_factor, SHORT_FACTORS: self.short_factor}
        return freq_factor_tensors({name: values for name, values in factors.items() if values}, rotary_dim)

    def _type_parameters(self) -> dict[str, Any]:
        lists = {"short_factor": self.short_factor, "long_factor": self.long_factor}
        return {key: values for key, values in lists.items() if values}

    def _check_parameters(self) -> None:
        super()._check_parameters()
        for key, values in (("short_factor", self.short_factor), ("long_factor", self.long_factor)):
            if not values:
                raise UnsupportedModel(
                    f"longrope scaling lacks {key}",
                    f"the file should have {LONG_FACTORS} and {SHORT_FACTORS}",
                )

    def _check_exportable(self) -> None:
        super()._check_exportable()
        if self.factor != 1.0:
            raise UnsupportedModel(
                f"rope.scaling.factor = {self.factor:g} with rope type longrope divides positions again",
                "configs have no such key; `pigguf repair --remove` removes it",
            )

    def _explain_scaling(self) -> str:
        return (
            "positions are divided by a factor for each frequency (LongRoPE): from one list for contexts up "
            f"to {self.original_context} tokens, from another beyond, up to {self.context_length}"
        )

    def _scaling_keys(self) -> dict[str, TypedValue]:
        keys = {"rope.scaling.type": string("longrope")}
        if self.factor != 1.0:
            keys["rope.scaling.factor"] = f32(self.factor)
        keys["rope.scaling.original_context_length"] = u32(self.original_context)
        if self.attn_factor != 1.0:
            keys["rope.scaling.attn_factor"] = f32(self.attn_factor)
        return keys

    def _config_scaling(self) -> dict[str, Any]:
        default = longrope_attention(self.context_length / self.original_context, self.original_context)
        is_default = self.attn_factor == single(default)
        return {
            "type": "longrope",
            "short_factor": [round_to_shortest_f32(value) for value in self.short_factor],
            "long_factor": [round_to_shortest_f32(value) for value in self.long_factor],
            **({} if is_default else {"attention_factor": round_to_shortest_f32(self.attn_factor)}),
        }

    def _config_top_level(self) -> dict[str, Any]:
        return {"original_max_position_embeddings": self.original_context}

    def _config_rope_parameters(self, rope_scaling: Mapping[str, Any], theta: float) -> dict[str, Any]:
        parameters = super()._config_rope_parameters(rope_scaling, theta)
        return {**parameters, "original_max_position_embeddings": self.original_context}


def read_longrope_parameters(scaling: JsonConfig) -> dict[str, Any]:
    """Read the keys of LongRoPE in a config's rope_scaling.

    Returns:
        short_factor and long_factor, factor and attention_factor where they are present.

    Raises:
        RopeConflict: the two lists have different lengths.
        CheckpointError: a list is missing, or a value is of the wrong type.
    """
    parameters = {key: _read_factors(scaling, key) for key in ("short_factor", "long_factor")}
    if len(set(map(len, parameters.values()))) != 1:
        raise RopeConflict(
            f"{scaling.file}: {scaling.prefix}short_factor has {len(parameters['short_factor'])} numbers, "
            f"{scaling.prefix}long_factor {len(parameters['long_factor'])}",
            f"correct {scaling.file}: both have one number for each rotated pair of a head",
        )
    numbers = {key: scaling.require(key, float) for key in ("factor", "attention_factor") if key in scaling}
    return {**parameters, **numbers}


def _read_factors(scaling: JsonConfig, key: str) -> tuple[float, ...]:
    if key not in scaling:
        raise CheckpointError(
            f"{scaling.file} lacks {scaling.prefix}{key}",
            "it should be a list of numbers, one for each rotated pair",
        )
    values = scaling.values[key]
    if not isinstance(values, list) or not values or not all(map(_is_positive, values)):
        raise scaling.invalid_value(key, "a list of numbers above 0")
    return tuple(single(value) for value in values)


def _is_positive(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value > 0
