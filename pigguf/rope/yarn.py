"""YaRN (arXiv 2309.00071), which divides low frequencies by the factor and keeps high ones.

llama.cpp computes the frequencies itself (ggml-cpu/ops.cpp, rope_yarn) and multiplies queries and keys by
1 + 0.1 ln(factor) (src/llama-context.cpp) and by rope.scaling.attn_factor. The config side is transformers'
modeling_rope_utils.py; attn_factor and extrapolation_factor are jquesnelle/yarn's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from pigguf.common.json_config import JsonConfig
from pigguf.errors import RopeConflict, UnsupportedModel
from pigguf.gguf_io.metadata import TypedValue, f32, round_to_shortest_f32, string, u32
from pigguf.rope.gguf_keys import GGUFRopeKeys
from pigguf.rope.rope_scaling import ROPE_FREQS, RopeScaling, single

CONFIG_KEYS = (
    *("attention_factor", "mscale", "mscale_all_dim", "beta_fast", "beta_slow", "truncate"),
    *("attn_factor", "extrapolation_factor"),
)
BETA_FAST, BETA_SLOW = 32.0, 1.0  # the defaults of transformers and of llama.cpp (src/llama-hparams.h)


def yarn_attention(factor: float, mscale: float = 1.0) -> float:
    """Return what YaRN multiplies queries and keys by, 0.1 mscale ln(factor) + 1."""
    return 1.0 if factor <= 1.0 else 1.0 + 0.1 * mscale * math.log(factor)


@dataclass(frozen=True, kw_only=True)
class YarnScaling(RopeScaling):
    """Rotary positions with YaRN.

    Attributes:
        beta_fast: frequencies with more rotations than this within the original context are kept.
        beta_slow: frequencies with fewer rotations than this are divided by `factor`.
    """

    rope_type: ClassVar[str] = "yarn"
    supports_attn_factor: ClassVar[bool] = True

    beta_fast: float = BETA_FAST
    beta_slow: float = BETA_SLOW

    @classmethod
    def from_gguf(cls, keys: GGUFRopeKeys) -> YarnScaling:
        """Return the positions of a GGUF with YaRN."""
        common = keys.common_fields()
        other = dict(common.pop("other_parameters"))
        beta_fast = other.pop("yarn_beta_fast", BETA_FAST)
        beta_slow = other.pop("yarn_beta_slow", BETA_SLOW)
        return cls(
            **common,
            factor=keys.factor,
            freq_factors=keys.tensor_values(ROPE_FREQS),
            beta_fast=beta_fast,
            beta_slow=beta_slow,
            other_parameters=other,
        )

    def _type_parameters(self) -> dict[str, Any]:
        betas = {"yarn_beta_fast": (self.beta_fast, BETA_FAST), "yarn_beta_slow": (self.beta_slow, BETA_SLOW)}
        return {key: value for key, (value, default) in betas.items() if value != default}

    def _explain_scaling(self) -> str:
        return (
            f"positions are divided by {self.factor:g} for low frequencies and not scaled for high ones "
            f"(YaRN), from {self.original_context} tokens to {self.context_length}"
        )

    def _scaling_keys(self) -> dict[str, TypedValue]:
        keys = {
            "rope.scaling.type": string("yarn"),
            "rope.scaling.factor": f32(self.factor),
            "rope.scaling.original_context_length": u32(self.original_context),
        }
        if self.attn_factor != 1.0:
            keys["rope.scaling.attn_factor"] = f32(self.attn_factor)
        return keys | {f"rope.scaling.{key}": f32(value) for key, value in self._type_parameters().items()}

    def _config_scaling(self) -> dict[str, Any]:
        betas = {
            key.removeprefix("yarn_"): round_to_shortest_f32(value)
            for key, value in self._type_parameters().items()
        }
        keys = {
            "rope_type": "yarn",
            "factor": round_to_shortest_f32(self.factor),
            "original_max_position_embeddings": self.original_context,
            **betas,
        }
        if self.attn_factor != 1.0:
            keys["attention_factor"] = self.attn_factor * yarn_attention(self.factor)
        return keys


def read_yarn_parameters(scaling: JsonConfig) -> dict[str, Any]:
    """Read the keys of YaRN in a config's rope_scaling that are not common to all rope types.

    Returns:
        beta_fast and beta_slow where they are not the defaults, attention_factor, mscale and mscale_all_dim
        where they are present.

    Raises:
        UnsupportedModel: llama.cpp would compute other frequencies.
        RopeConflict: mscale or mscale_all_dim without the other.
        CheckpointError: a value of the wrong type.
    """
    for key, default in (("extrapolation_factor", 1.0), ("attn_factor", 1.0)):
        if scaling.optional(key, float, default) != default:
            raise UnsupportedModel(
                f"{scaling.describe(key)}: neither transformers nor llama.cpp's graphs compute YaRN with it",
                f"remove {key} from config.json if the model was trained without it",
            )
    if not scaling.optional("truncate", bool, True):
        raise UnsupportedModel(
            f"{scaling.describe('truncate')}: llama.cpp rounds the bounds of YaRN's ramp to whole dimensions",
            "it would compute other frequencies than this model was trained with",
        )
    betas = {
        key: single(value)
        for key, default in (("beta_fast", BETA_FAST), ("beta_slow", BETA_SLOW))
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
            f"{scaling.describe(key)} is only one of mscale and mscale_all_dim: transformers ignores it, "
            "and DeepSeek's code does not",
            "set both, or attention_factor, in config.json",
        )
    return {**betas, **attention}


def yarn_attn_factor(parameters: dict[str, Any], factor: float) -> float:
    """Return GGUF's attn_factor: a config's attention scale without the part that llama.cpp computes.

    Args:
        parameters: as read_yarn_parameters returns them.
        factor: the scaling factor.
    """
    mscale, mscale_all_dim = parameters.get("mscale", 0.0), parameters.get("mscale_all_dim", 0.0)
    computed = yarn_attention(factor)
    attention = parameters.get("attention_factor")
    if attention is None:
        has_both = mscale and mscale_all_dim
        attention = (
            yarn_attention(factor, mscale) / yarn_attention(factor, mscale_all_dim) if has_both else computed
        )
    return single(attention / computed)
