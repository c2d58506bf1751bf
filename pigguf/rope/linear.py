"""Linear scaling, which is Position Interpolation (arXiv 2306.15595).

Position m becomes m / factor, with factor = extended context / original context: RoPE rotates pair i of a
head of dimension d by m / factor * theta^(-2i/d).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from pigguf.gguf_io.metadata import TypedValue, f32, round_to_shortest_f32, string, u32
from pigguf.rope.gguf_keys import GGUFRopeKeys
from pigguf.rope.rope_scaling import ROPE_FREQS, RopeScaling


@dataclass(frozen=True, kw_only=True)
class LinearScaling(RopeScaling):
    """Rotary positions that are divided by `factor`."""

    rope_type: ClassVar[str] = "linear"

    @classmethod
    def from_gguf(cls, keys: GGUFRopeKeys) -> LinearScaling:
        """Return the positions of a GGUF with linear scaling."""
        return cls(**keys.common_fields(), factor=keys.factor, freq_factors=keys.tensor_values(ROPE_FREQS))

    def _explain_scaling(self) -> str:
        last = self.context_length - 1
        scaled = f"position {last}, the last, becomes {last / self.factor:.10g}"
        if self.context_matches_factor:
            return (
                f"{scaled}: {self.context_length} positions share the {self.original_context} "
                f"that the model was trained at"
            )
        return f"{scaled}: every position is divided by {self.factor:g}"

    def _scaling_keys(self) -> dict[str, TypedValue]:
        return {
            "rope.scaling.type": string("linear"),
            "rope.scaling.factor": f32(self.factor),
            "rope.scaling.original_context_length": u32(self.original_context),
        }

    def _config_scaling(self) -> dict[str, Any]:
        return {"type": "linear", "factor": round_to_shortest_f32(self.factor)}

    def _config_top_level(self) -> dict[str, Any]:
        if not self.context_matches_factor:
            return {}
        return {"original_max_position_embeddings": self.original_context}
