"""Evidence: what a file or an override says about positions, as claims about single quantities.

A claim is a value for one quantity (a rope type, a factor, a rope_theta, a context length). A key that may
mean the original or the extended context length claims no more than that. Not here: finding claims
(config_claims.py, overrides.py), deciding between them (decision.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from pigguf.common.json_config import format_json_value

COMMAND_LINE = "command line"  # the source of overrides


@dataclass(frozen=True)
class Evidence:
    """A key that was found, with its source, its value and what it was taken to mean.

    Attributes:
        source: the file, or COMMAND_LINE.
        key: the key, with its section: "rope_scaling.factor"; of an override the parameter, "rope.factor".
        value: its value.
        meaning: a short explanation.
    """

    source: str
    key: str
    value: Any
    meaning: str

    def __str__(self) -> str:
        if self.source == COMMAND_LINE:
            return f"`{self.key}={self.value}`"
        return f"{self.source}: {self.key} = {format_json_value(self.value)}"


class Claim(NamedTuple):
    """The value that a piece of evidence gives for a quantity, which is a field of ClaimGroups."""

    quantity: str
    value: Any
    evidence: Evidence

    @property
    def is_override(self) -> bool:
        """Whether it is the user's."""
        return self.evidence.source == COMMAND_LINE

    def __str__(self) -> str:
        return str(self.evidence)


Claims = tuple[Claim, ...]


@dataclass(frozen=True)
class ClaimGroups:
    """The claims by quantity, without those that the user overrides.

    Attributes:
        rope_types: of each rope_scaling and rope_parameters.
        parameters: the rope type's other numbers.
        factors: scaling factors.
        unused_factors: factors next to a rope type that has none.
        rope_thetas: rope_theta.
        local_rope_thetas: rope_theta of layers with sliding window attention.
        rotary_dims: rotated dimensions of a head, where the rope type depends on them.
        original_contexts: original context lengths.
        extended_contexts: extended context lengths; only an override says which one it is.
        context_lengths: max_position_embeddings and max_sequence_length, which may be either.
        tokenizer_limits: model_max_length of the tokenizer.
        custom_code: auto_map, where it names modelling code.
        model_names: the model's name, where it is in known_models.json and the config has no scaling.
        n_overrides: the number of the user's overrides.
        is_unscaled: whether the checkpoint itself says nothing about scaling, including what is overridden.
    """

    rope_types: Claims = ()
    parameters: Claims = ()
    factors: Claims = ()
    unused_factors: Claims = ()
    rope_thetas: Claims = ()
    local_rope_thetas: Claims = ()
    rotary_dims: Claims = ()
    original_contexts: Claims = ()
    extended_contexts: Claims = ()
    context_lengths: Claims = ()
    tokenizer_limits: Claims = ()
    custom_code: Claims = ()
    model_names: Claims = ()
    n_overrides: int = 0
    is_unscaled: bool = True


def group_claims(claims: list[Claim]) -> ClaimGroups:
    """Return claims by quantity, without those that the user overrides."""
    overrides = [claim for claim in claims if claim.is_override]
    overridden = {claim.quantity for claim in overrides}
    if "factors" in overridden:
        overridden |= {"unused_factors", "model_names"}
        if not _override_keeps_rope_type(claims, overrides):
            overridden |= {"rope_types", "parameters"}
    by_quantity: dict[str, Claims] = {}
    for claim in claims:
        if claim in overrides or claim.quantity not in overridden:
            by_quantity[claim.quantity] = (*by_quantity.get(claim.quantity, ()), claim)
    mentions_scaling = any(
        claim.quantity == "custom_code" or claims_scaling(claim) for claim in claims if claim not in overrides
    )
    return ClaimGroups(**by_quantity, n_overrides=len(overrides), is_unscaled=not mentions_scaling)


def _override_keeps_rope_type(claims: list[Claim], overrides: list[Claim]) -> bool:
    """Return whether the user's factor is for the rope type in the files; otherwise it is linear."""
    factors = [claim.value for claim in overrides if claim.quantity == "factors"]
    return factors != [1.0] and any(
        claim.quantity == "rope_types" and claim.value not in ("none", "linear") for claim in claims
    )


def claims_scaling(claim: Claim) -> bool:
    """Return whether a claim is about scaling: a factor, or a rope type other than "none"."""
    return claim.quantity in ("factors", "unused_factors") or names_rope_type(claim)


def names_rope_type(claim: Claim) -> bool:
    """Return whether a claim names a rope type other than "none"."""
    return claim.quantity == "rope_types" and claim.value != "none"


def join_claims(claims: Iterable[Claim]) -> str:
    """Return the evidence of claims, separated by commas."""
    return ", ".join(str(claim) for claim in claims)
