"""Rotary positions that are not scaled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from pigguf.rope.gguf_keys import GGUFRopeKeys
from pigguf.rope.rope_scaling import ROPE_FREQS, RopeScaling


@dataclass(frozen=True, kw_only=True)
class UnscaledRope(RopeScaling):
    """Rotary positions that are not scaled; the original context is the context length.

    A GGUF of it has no rope.scaling.type: llama.cpp takes a missing one as linear by 1, and "none" would also
    switch off a factor that is given at run time (src/llama-context.cpp).
    """

    rope_type: ClassVar[str] = "none"

    @classmethod
    def from_gguf(cls, keys: GGUFRopeKeys) -> UnscaledRope:
        """Return the positions of a GGUF without scaling."""
        common = keys.common_fields()
        if common["local_rope_theta"] == keys.rope_theta:
            common["local_rope_theta"] = None
        return cls(
            **{**common, "original_context": keys.context_length},
            factor=1.0,
            freq_factors=keys.tensor_values(ROPE_FREQS),
        )

    def _explain_scaling(self) -> str:
        return f"positions are not scaled, 0 to {self.context_length - 1}"

    def _config_rope_parameters(self, rope_scaling: Mapping[str, Any], theta: float) -> dict[str, Any]:
        return {"rope_type": "default", "rope_theta": theta}
