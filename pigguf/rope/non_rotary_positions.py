"""What learned positions and ALiBi have in common: a context length, and no frequencies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pigguf.common.json_config import MAX_COUNT, JsonConfig
from pigguf.errors import CheckpointError, RopeConflict
from pigguf.gguf_io.metadata import TypedValue, u32
from pigguf.rope.evidence import Evidence
from pigguf.rope.rope_scaling import DEFAULT_ROPE_THETA, FreqFactors

CONTEXT_KEY = "max_position_embeddings"


@dataclass(frozen=True, kw_only=True)
class NonRotaryPositions:
    """Positions without a rotation.

    Attributes:
        context_length: the context length in tokens.
        evidence: everything that was found, in order.
        decisions: what was concluded, a sentence each.
    """

    rope_type: ClassVar[str]

    context_length: int
    evidence: tuple[Evidence, ...] = field(default=(), compare=False)
    decisions: tuple[str, ...] = field(default=(), compare=False)

    def to_gguf(self, architecture: str) -> dict[str, TypedValue]:
        """Return the GGUF keys of these positions."""
        return {f"{architecture}.context_length": u32(self.context_length)}

    def tensors(self, rotary_dim: int) -> dict[str, FreqFactors]:
        """Return {}: there are no frequencies to scale."""
        return {}

    def to_config(self) -> dict[str, Any]:
        """Return the config.json keys of these positions, for an export."""
        return {CONTEXT_KEY: self.context_length}

    def _as_data(self, factor: float, original_context: int) -> dict[str, Any]:
        return {
            "kind": self.rope_type,
            "factor": factor,
            "base": DEFAULT_ROPE_THETA,
            "original_context_length": original_context,
            "context_length": self.context_length,
            "parameters": {},
        }


def read_context_length(config: Mapping[str, Any]) -> tuple[int, Evidence]:
    """Return max_position_embeddings and its evidence.

    Raises:
        CheckpointError: it is missing, or not a whole number above 0.
    """
    keys = JsonConfig(config)
    if CONTEXT_KEY not in keys:
        raise CheckpointError(
            f"config.json lacks {CONTEXT_KEY}", "give the context length with `rope.context`"
        )
    evidence = Evidence("config.json", CONTEXT_KEY, config[CONTEXT_KEY], "the context length")
    return keys.require(CONTEXT_KEY, int), evidence


def check_context_length(context_length: float, origin: str) -> int:
    """Return a context length as a whole number.

    Raises:
        RopeConflict: it is not one above 0 that fits 32 bits.
    """
    if not 1 <= context_length <= MAX_COUNT or context_length != int(context_length):
        raise RopeConflict(
            f"{origin} gives a context length of {context_length:g} tokens",
            "it must be a whole number above 0",
        )
    return int(context_length)
