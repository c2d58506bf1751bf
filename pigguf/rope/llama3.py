"""Llama 3's scaling, which divides low frequencies by the factor and keeps high ones.

A GGUF has no key for it but a tensor, rope_freqs.weight, which is computed as conversion/llama.py computes
it. The config side is transformers' modeling_rope_utils.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from pigguf.common.json_config import JsonConfig
from pigguf.gguf_io.metadata import TypedValue, round_to_shortest_f32, u32
from pigguf.rope.gguf_keys import GGUFRopeKeys
from pigguf.rope.rope_scaling import ROPE_FREQS, FreqFactors, RopeScaling

CONFIG_KEYS = ("low_freq_factor", "high_freq_factor")
# Those of all published Llama 3 models since 3.1. Their factor (8, 32) can be read off the tensor.
ORIGINAL_CONTEXT = 8192
LOW_FREQ_FACTOR, HIGH_FREQ_FACTOR = 1.0, 4.0
RELATIVE_TOLERANCE = 1e-6  # powers in single precision differ in the last digits between libraries


@dataclass(frozen=True, kw_only=True)
class Llama3Scaling(RopeScaling):
    """Rotary positions with Llama 3's scaling.

    Attributes:
        low_freq_factor: frequencies with fewer rotations than this within the original context are divided by
            `factor`.
        high_freq_factor: frequencies with more rotations than this are kept; those between are interpolated.
    """

    rope_type: ClassVar[str] = "llama3"

    low_freq_factor: float = LOW_FREQ_FACTOR
    high_freq_factor: float = HIGH_FREQ_FACTOR

    @classmethod
    def from_gguf(cls, keys: GGUFRopeKeys) -> Llama3Scaling | None:
        """Return the positions of a GGUF whose rope_freqs.weight is Llama 3's, or None for another tensor.

        The parameters cannot be computed from a tensor in general. The last element is the factor; the tensor
        that the published parameters give with it must then be this one.
        """
        freq_factors = keys.tensors[ROPE_FREQS]
        factor = float(freq_factors[-1])
        original_context = keys.stated_original_context or ORIGINAL_CONTEXT
        if not (math.isfinite(factor) and factor >= 1.0):
            return None
        scaling = cls(**{**keys.common_fields(), "original_context": original_context}, factor=factor)
        expected = scaling.compute_freq_factors(2 * len(freq_factors))
        return scaling if np.allclose(expected, freq_factors, rtol=RELATIVE_TOLERANCE, atol=0.0) else None

    def compute_freq_factors(self, rotary_dim: int) -> FreqFactors:
        """Return what each frequency is divided by, (rotary_dim / 2,), computed in single precision.

        1 for wavelengths that fit more than high_freq_factor times into the original context, `factor` for
        those that fit fewer than low_freq_factor times, and values in between for the others.
        """
        low, high, original = self.low_freq_factor, self.high_freq_factor, self.original_context
        exponents = np.arange(0, rotary_dim, 2, dtype=np.float32) / np.float32(rotary_dim)
        wavelengths = np.float32(2 * math.pi) / (np.float32(1) / np.float32(self.rope_theta) ** exponents)
        smooth = (np.float32(original) / wavelengths - np.float32(low)) / np.float32(high - low)
        between = np.float32(1) / ((np.float32(1) - smooth) / np.float32(self.factor) + smooth)
        is_short, is_long = wavelengths < original / high, wavelengths > original / low
        factors = np.where(is_short, np.float32(1), np.where(is_long, np.float32(self.factor), between))
        return factors.astype(np.float32)

    def tensors(self, rotary_dim: int) -> dict[str, FreqFactors]:
        """Return rope_freqs.weight, (rotary_dim / 2,), float32."""
        return {ROPE_FREQS: self.compute_freq_factors(rotary_dim)}

    def _type_parameters(self) -> dict[str, Any]:
        return {"low_freq_factor": self.low_freq_factor, "high_freq_factor": self.high_freq_factor}

    def _explain_scaling(self) -> str:
        return (
            f"positions are divided by {self.factor:g} for low frequencies and not scaled for high ones "
            f"(Llama 3), from {self.original_context} tokens to {self.context_length}"
        )

    def _scaling_keys(self) -> dict[str, TypedValue]:
        return {"rope.scaling.original_context_length": u32(self.original_context)}

    def _config_scaling(self) -> dict[str, Any]:
        return {
            "rope_type": "llama3",
            "factor": round_to_shortest_f32(self.factor),
            "original_max_position_embeddings": self.original_context,
            **self._type_parameters(),
        }


def read_llama3_parameters(scaling: JsonConfig) -> dict[str, Any]:
    """Read low_freq_factor and high_freq_factor from a config's rope_scaling.

    Raises:
        CheckpointError: a key is missing, of the wrong type, or the two are not in order.
    """
    for key in ("factor", "original_max_position_embeddings"):
        scaling.require(key, float)
    low, high = (scaling.require(key, float) for key in CONFIG_KEYS)
    if not 0 < low < high:
        raise scaling.invalid_value("high_freq_factor", f"above low_freq_factor = {low:g}, which is above 0")
    return {"low_freq_factor": low, "high_freq_factor": high}
