"""Conflicts between claims, and the hints that say how to resolve them."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from pigguf.errors import CheckpointError, RopeConflict
from pigguf.rope.evidence import Claims, join_claims

FACTOR_HINT = "give `rope.factor` (`rope.factor=1`: positions are not scaled)"
ROPE_TYPE_HINT = (
    "remove the wrong one from config.json (transformers reads rope_scaling, llama.cpp's converter "
    "rope_parameters), or give `rope.factor=1`: positions are not scaled"
)
CONTEXTS_HINT = "give `rope.original_context` (trained at) and `rope.context` (extended to)"
CONTEXT_HINT = "give `rope.context`"
PRODUCT_HINT = (
    "factor x original context must be the extended context: `rope.factor`, `rope.original_context`, "
    "`rope.context`"
)
THETA_HINT = "correct config.json: no option overrides rope_theta"


def check_agreement(
    claims: Claims, quantity: str, hint: str, equal: Callable[[Any, Any], bool] = operator.eq
) -> None:
    """Raise if claims give different values for a quantity.

    Raises:
        RopeConflict: they do.
    """
    if not all(equal(claim.value, claims[0].value) for claim in claims):
        raise RopeConflict(f"{join_claims(claims)} are different {quantity}", hint)


def missing_context_length() -> CheckpointError:
    """Return the error for a checkpoint without any context length."""
    return CheckpointError(
        "config.json lacks max_position_embeddings", "give the context length with `rope.context`"
    )
