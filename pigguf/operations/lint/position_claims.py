"""A GGUF file's position keys as claims, to be decided on as those of a checkpoint are (rope/decision.py)."""

from __future__ import annotations

from pigguf.common.json_config import JsonConfig
from pigguf.gguf_io import GGUFFile
from pigguf.operations.lint.model_names import context_lengths_in_names
from pigguf.operations.lint.position_keys import (
    CONTEXT_LENGTH,
    FREQ_BASE,
    ORIGINAL_CONTEXT_LENGTH,
    SCALE_LINEAR,
    SCALING_FACTOR,
    SCALING_TYPE,
    PositionKeys,
)
from pigguf.rope import Evidence, RopeOverrides
from pigguf.rope.config_claims import collect_claims
from pigguf.rope.evidence import COMMAND_LINE, Claim
from pigguf.rope.overrides import NO_OVERRIDES


def position_claims(
    file: GGUFFile, overrides: RopeOverrides = NO_OVERRIDES, rope_theta: float | None = None
) -> list[Claim]:
    """Return what a file states about linear or unscaled positions, with the overrides last.

    Args:
        file: The file's header.
        overrides: Numbers that replace the file's own.
        rope_theta: A rope theta that replaces the file's own, or None.

    Raises:
        RopeConflict: An override is out of range.
    """
    keys = PositionKeys(file)
    claims = _scaling_claims(keys)
    file_theta = keys.positive(FREQ_BASE)
    if rope_theta is None and file_theta is not None:
        claims.append(Claim("rope_thetas", file_theta, keys.evidence(FREQ_BASE, "the rope theta")))
    for quantity, key, meaning in (
        ("original_contexts", ORIGINAL_CONTEXT_LENGTH, "the original context length"),
        ("context_lengths", CONTEXT_LENGTH, "a context length, original or extended"),
    ):
        length = keys.count(key)
        if length is not None:
            claims.append(Claim(quantity, length, keys.evidence(key, meaning)))
    claims += [Claim("tokenizer_limits", length, name) for name, length in context_lengths_in_names(keys)]
    claims += collect_claims(JsonConfig({}), JsonConfig({}), overrides)
    if rope_theta is not None:
        evidence = Evidence(COMMAND_LINE, "rope_theta", rope_theta, "an override")
        claims.append(Claim("rope_thetas", rope_theta, evidence))
    return claims


def _scaling_claims(keys: PositionKeys) -> list[Claim]:
    """Return the claims about the scaling type and the factor."""
    claims: list[Claim] = []
    scaling_type = keys.scaling_type
    if scaling_type in ("none", "linear"):
        claims.append(Claim("rope_types", scaling_type, keys.evidence(SCALING_TYPE, "the scaling type")))
    for key in (SCALING_FACTOR, SCALE_LINEAR):
        factor = keys.positive(key)
        if factor is not None:
            is_idle = scaling_type == "none" and factor != 1.0  # llama.cpp ignores it
            quantity = "unused_factors" if is_idle else "factors"
            claims.append(Claim(quantity, factor, keys.evidence(key, "the factor")))
    return claims
