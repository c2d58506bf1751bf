"""ALiBi (arXiv 2108.12409): attention is lowered in proportion to the distance between tokens.

There are no positions to scale, and there is no last position: only the context length is to be chosen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from pigguf.errors import RopeConflict
from pigguf.rope.evidence import COMMAND_LINE, Evidence
from pigguf.rope.non_rotary_positions import NonRotaryPositions, check_context_length, read_context_length
from pigguf.rope.overrides import OVERRIDE_MEANING, RopeOverrides


@dataclass(frozen=True, kw_only=True)
class AlibiPositions(NonRotaryPositions):
    """The distances of ALiBi, up to a context length.

    Attributes:
        context_length: the context length in tokens.
        evidence: everything that was found, in order.
        decisions: what was concluded, a sentence each.
    """

    rope_type: ClassVar[str] = "alibi"
    factor: ClassVar[float] = 1.0

    @property
    def original_context(self) -> int:
        """The context length: nothing is extended."""
        return self.context_length

    def explain(self) -> str:
        """Return what the positions are, in a sentence."""
        distances = f"attention decreases with distance (ALiBi), up to {self.context_length} tokens"
        return f"{distances}: nothing is scaled"

    def as_data(self) -> dict[str, Any]:
        """Return the positions as JSON output has them, with the same keys as rotary positions."""
        return self._as_data(self.factor, self.original_context)


def read_alibi(config: Mapping[str, Any], overrides: RopeOverrides) -> AlibiPositions:
    """Return the positions of a checkpoint with ALiBi, with the user's context length if there is one.

    Raises:
        CheckpointError: there is no context length.
        RopeConflict: the user gives a factor, which ALiBi does not have.
    """
    for name, value in (
        ("rope.factor", overrides.factor),
        ("rope.original_context", overrides.original_context),
    ):
        if value not in (None, 1):
            raise RopeConflict(
                f"`{name}={value:g}`: a model with ALiBi has no positions to scale",
                "`rope.context` sets the context length; attention decreases with distance in any case",
            )
    if overrides.context is not None:
        evidence = Evidence(COMMAND_LINE, "rope.context", overrides.context, OVERRIDE_MEANING)
        context_length = check_context_length(overrides.context, f"`rope.context={overrides.context}`")
    else:
        context_length, evidence = read_context_length(config)
    return AlibiPositions(
        context_length=context_length,
        evidence=(evidence,),
        decisions=(
            f"positions are distances (ALiBi), and the context length is {context_length}: {evidence}",
        ),
    )
