"""Learned positions: a table with a row for each position of the context (GPT-2, StarCoder, OPT).

For a longer context the table gets more rows. Position m of the new context is m (L - 1) / (L' - 1) of the
original one, both ends aligned ("align corners", as vision transformers resize their tables), and its row is
interpolated between two original rows. This is Position Interpolation for learned positions (arXiv
2306.15595, Section 4). Not here: the rows themselves (pigguf.architectures.tensor_transforms).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pigguf.errors import RopeConflict
from pigguf.rope.evidence import COMMAND_LINE, Evidence
from pigguf.rope.non_rotary_positions import NonRotaryPositions, check_context_length, read_context_length
from pigguf.rope.overrides import OVERRIDE_MEANING, RopeOverrides

INTERPOLATIONS = ("linear", "nearest", "none")


@dataclass(frozen=True, kw_only=True)
class LearnedPositions(NonRotaryPositions):
    """A table of learned positions.

    Attributes:
        original_context: rows of the checkpoint's table.
        context_length: rows of the GGUF's table.
        interpolation: "linear": a row is interpolated between two original rows; "nearest": it is the nearer
            one; "none": the first rows are used, which can only make the context shorter.
        evidence: everything that was found, in order.
        decisions: what was concluded, a sentence each.
    """

    rope_type: ClassVar[str] = "learned"

    original_context: int
    interpolation: str = "linear"

    @property
    def factor(self) -> float:
        """The factor by which the table grows."""
        return self.context_length / self.original_context

    def explain(self) -> str:
        """Return what the positions are, in a sentence."""
        rows = f"positions are rows of a learned table, 0 to {self.context_length - 1}"
        if self.context_length == self.original_context:
            return rows
        if self.interpolation == "none":
            return f"{rows}, the first of {self.original_context}"
        return f"{rows}, interpolated ({self.interpolation}) from {self.original_context}"

    def as_data(self) -> dict[str, Any]:
        """Return the positions as JSON output has them, with the same keys as rotary positions."""
        return self._as_data(self.factor, self.original_context)

    def interpolation_weights(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return for each row of the new table the original row below it, and the weight of the one above.

        Returns:
            Two arrays, (context_length,) each.
        """
        rows = np.arange(self.context_length, dtype=np.int64)
        if self.interpolation == "none" or self.context_length == self.original_context:
            return rows, np.zeros(len(rows))
        original = rows * ((self.original_context - 1) / max(1, self.context_length - 1))
        if self.interpolation == "nearest":
            return np.floor(original + 0.5).astype(np.int64), np.zeros(len(rows))
        lower = np.minimum(np.floor(original).astype(np.int64), max(0, self.original_context - 2))
        return lower, original - lower


def read_learned_positions(config: Mapping[str, Any], overrides: RopeOverrides) -> LearnedPositions:
    """Return the learned positions of a checkpoint, with the context length that the user asks for.

    Args:
        config: config.json, with the number of the table's rows as max_position_embeddings.
        overrides: the user's context length, or factor of the original one, and interpolation.

    Raises:
        CheckpointError: the config has no context length.
        RopeConflict: numbers that contradict each other.
    """
    original, evidence = read_context_length(config)
    interpolation = overrides.interpolation or "linear"
    if overrides.original_context not in (None, original):
        raise RopeConflict(
            f"`rope.original_context={overrides.original_context}` contradicts {evidence}, the rows of the "
            "table",
            "leave it out: the table itself has the original context length",
        )
    context_length, given = _override_context_length(original, overrides)
    if interpolation == "none" and context_length > original:
        raise RopeConflict(
            f"`rope.interpolation=none` keeps the table's {original} rows, and {context_length} positions "
            "need more",
            "give `rope.interpolation=linear` or `rope.interpolation=nearest`, or a smaller `rope.context`",
        )
    change = f"interpolated ({interpolation}) from {original} rows to {context_length}"
    state = "unchanged" if context_length == original else change
    return LearnedPositions(
        original_context=original,
        context_length=context_length,
        evidence=(evidence, *given),
        decisions=(f"the table of learned positions is {state}: {evidence}",),
        interpolation=interpolation,
    )


def _override_context_length(original: int, overrides: RopeOverrides) -> tuple[int, list[Evidence]]:
    """Return the context length that the user asks for, and the overrides as evidence."""
    factor, context, given = overrides.factor, overrides.context, []
    context_length = original
    if factor is not None:
        context_length = check_context_length(original * factor, f"`rope.factor={factor}`")
        given.append(Evidence(COMMAND_LINE, "rope.factor", factor, OVERRIDE_MEANING))
    if context is not None:
        if factor is not None and context != context_length:
            raise RopeConflict(
                f"`rope.context={context}` is not {original} x `rope.factor={factor:g}`",
                "give one of the two",
            )
        context_length = check_context_length(context, f"`rope.context={context}`")
        given.append(Evidence(COMMAND_LINE, "rope.context", context, OVERRIDE_MEANING))
    return context_length, given
