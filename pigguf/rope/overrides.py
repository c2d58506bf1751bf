"""RopeOverrides: the user's numbers for positions, which override the checkpoint's."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pigguf.common.json_config import MAX_COUNT
from pigguf.errors import RopeConflict
from pigguf.rope.evidence import COMMAND_LINE, Claim, Evidence

OVERRIDE_MEANING = "overrides the files"
_EXAMPLE_HINT = "as in `rope.factor=4` `rope.original_context=8192` `rope.context=32768`"


@dataclass(frozen=True)
class RopeOverrides:
    """The user's numbers for positions, each of which overrides the checkpoint's.

    Attributes:
        factor: the scaling factor; 1 for no scaling.
        original_context: the context length that the model was trained at, in tokens.
        context: the context length to write, in tokens.
        interpolation: how a table of learned positions gets more or fewer rows (INTERPOLATIONS).
    """

    factor: float | None = None
    original_context: int | None = None
    context: int | None = None
    interpolation: str | None = None


NO_OVERRIDES = RopeOverrides()


def override_claims(overrides: RopeOverrides) -> list[Claim]:
    """Return the overrides as claims.

    Raises:
        RopeConflict: an override is not a positive number that fits 32 bits.
    """
    numbers: tuple[tuple[str, str, float | None], ...] = (
        ("factors", "rope.factor", overrides.factor),
        ("original_contexts", "rope.original_context", overrides.original_context),
        ("extended_contexts", "rope.context", overrides.context),
    )
    claims = []
    for quantity, name, number in numbers:
        if number is not None:
            if not (math.isfinite(number) and 0 < number <= MAX_COUNT):
                raise RopeConflict(
                    f"`{name}={number}` is not a number above 0 that fits 32 bits", _EXAMPLE_HINT
                )
            value = float(number) if quantity == "factors" else number
            claims.append(Claim(quantity, value, Evidence(COMMAND_LINE, name, number, OVERRIDE_MEANING)))
    return claims
