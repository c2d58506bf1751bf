"""Evidence: every key that speaks of positions, checked by itself and turned into claims.

A claim is a value for one quantity (a kind, a factor, a base, a window); a key that may mean either
window claims no more than that. A new dialect is a row in FACTOR_KEYS or CONFIG_KINDS.

Sources: transformers' modeling_rope_utils.py for rope_scaling and rope_parameters; for keys that
transformers never knew, the code that reads them: LongChat's llama_condense_monkey_patch.py,
Giraffe's interpolate.py (abacusai/Long-Context) and scaled_rope/ of jquesnelle/yarn.
Left out: comparing claims.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from pigguf.config import MAX_COUNT, Config, as_json
from pigguf.errors import RopeConflict, UnsupportedModel
from pigguf.rope.scaling import COMMAND_LINE, DEFAULT_BASE, WRITTEN, Evidence

# The kinds of scaling a config may name, and ours; then those that are known but not written yet.
CONFIG_KINDS = {"default": "none", "linear": "linear"}
LATER_KINDS = ("yarn", "longrope", "su", "llama3", "dynamic")


class FactorKey(NamedTuple):
    """A key of its own that gives a linear factor, and the code that gave it its meaning."""

    meaning: str
    factor: Callable[[float], float]


FACTOR_KEYS = {
    "rope_condense_ratio": FactorKey("LongChat divides positions by it", lambda ratio: ratio),
    "abacus_scale": FactorKey("Giraffe divides positions by it", lambda scale: scale),
    "position_interpolation_scale": FactorKey(
        "scaled_rope multiplies positions by it", lambda scale: 1 / scale
    ),
    "factor": FactorKey("a linear factor that lost its rope_scaling", lambda factor: factor),
}

# Keys that speak of a scheme for positions which cannot be written; null and false are silent.
OTHER_SCHEMES = {
    "ntk_alpha": "NTK-aware scaling",
    "part_ntk_scale": "NTK-by-parts scaling",
    "use_xpos": "xPos",
    "rope_local_base_freq": "a base of its own for sliding layers",
    "dual_chunk_attention_config": "dual chunk attention",
}

SCALING_KEYS = (
    "rope_type",
    "type",
    "factor",
    "rope_theta",
    "original_max_position_embeddings",
    "partial_rotary_factor",  # the family's business: arch/ refuses what it cannot express
    "finetuned",  # told, never computed with
)

EXAMPLE = "as in --rope-factor 4 --original-context 8192 --context 32768"
LARGEST_BASE = 1e30  # well inside single precision


@dataclass(frozen=True)
class RopeOverrides:
    """What the user says of positions; it overrules the checkpoint, number by number.

    `interpolation` is how a table of learned positions gets its rows (rope/tables.py).
    """

    factor: float | None = None
    original_context: int | None = None
    context: int | None = None
    interpolation: str | None = None


NO_OVERRIDES = RopeOverrides()


class Claim(NamedTuple):
    """A piece of evidence for one quantity, with the value that it would give it."""

    quantity: str
    value: Any
    evidence: Evidence

    def __str__(self) -> str:
        return str(self.evidence)


Claims = tuple[Claim, ...]


@dataclass(frozen=True)
class Facts:
    """What was found, by quantity; the user's word has taken the place of the checkpoint's.

    Attributes:
        kinds: "none" or "linear", of each rope_scaling and rope_parameters.
        factors: linear factors.
        idle_factors: factors in a dict whose kind has none.
        bases: theta.
        originals: original context lengths.
        contexts: extended ones; only the user says which they are.
        windows: max_position_embeddings and max_sequence_length, of which either may be either.
        limits: the tokenizer's model_max_length.
        code: auto_map, where it names modelling code.
        overrides: how many numbers the user gave.
        plain: whether the checkpoint itself says nothing of scaling, what is overruled included.
    """

    kinds: Claims = ()
    factors: Claims = ()
    idle_factors: Claims = ()
    bases: Claims = ()
    originals: Claims = ()
    contexts: Claims = ()
    windows: Claims = ()
    limits: Claims = ()
    code: Claims = ()
    overrides: int = 0
    plain: bool = True


def gather(
    config: Config, tokenizer_config: Config, overrides: RopeOverrides, extended: Config | None = None
) -> list[Claim]:
    """Everything that speaks of positions, in order, the user's word last.

    Raises:
        UnsupportedModel: a scheme for positions that cannot be written.
        CheckpointError: a key holds something that it cannot.
        RopeConflict: an override is no such number.
    """
    claims = _checkpoint_claims(config) + _limit_claims(tokenizer_config)
    if extended is not None:
        claims = _before_extension(_silence_is_default(claims, config))
        claims += _silence_is_default(_checkpoint_claims(extended), extended)
    return claims + _override_claims(overrides)


def weigh(claims: list[Claim]) -> Facts:
    """Claims by quantity, without those that the user overrules."""
    given = [claim for claim in claims if claim.evidence.source == COMMAND_LINE]
    overruled = {claim.quantity for claim in given}
    if "factors" in overruled:
        overruled |= {"kinds", "idle_factors"}
    by_quantity: dict[str, Claims] = {}
    for claim in claims:
        if claim in given or claim.quantity not in overruled:
            by_quantity[claim.quantity] = (*by_quantity.get(claim.quantity, ()), claim)
    plain = not any(_speaks_of_scaling(claim) for claim in claims if claim not in given)
    return Facts(**by_quantity, overrides=len(given), plain=plain)


def _speaks_of_scaling(claim: Claim) -> bool:
    return claim.quantity in ("factors", "idle_factors", "code") or claim[:2] == ("kinds", "linear")


def _before_extension(claims: list[Claim]) -> list[Claim]:
    """A checkpoint's claims, as they speak of a model that was extended from it.

    Where it is not scaled itself, that says nothing of the extended model, and its window is the
    original one. Where it is, both must be scaled the same.
    """
    factors = [claim.value for claim in claims if claim.quantity in ("factors", "idle_factors")]
    scaled = set(factors) != {1.0} if factors else any(claim[:2] == ("kinds", "linear") for claim in claims)
    if scaled:
        return claims
    kept = [claim for claim in claims if claim.quantity not in ("kinds", "factors")]
    return [_as_original(claim) if claim.quantity == "windows" else claim for claim in kept]


def _as_original(window: Claim) -> Claim:
    return Claim("originals", window.value, replace(window.evidence, meaning="the window before the adapter"))


def _silence_is_default(claims: list[Claim], config: Config) -> list[Claim]:
    """The claims, and what a config says by being silent: two configs differ there too."""
    said = {claim.quantity for claim in claims}
    added = []
    if not said & {"kinds", "factors"}:
        added.append(Claim("kinds", "none", Evidence(config.file, "rope_scaling", None, "not scaled")))
    if "bases" not in said:
        meaning = "transformers' default base"
        added.append(Claim("bases", DEFAULT_BASE, Evidence(config.file, "rope_theta", None, meaning)))
    return claims + added


def _checkpoint_claims(config: Config) -> list[Claim]:
    claims: list[Claim] = []
    for section in (config, config.section("text_config")):
        if section is not None:
            _refuse_other_schemes(section)
            for name in ("rope_scaling", "rope_parameters"):
                claims += _scaling_claims(section.section(name))
            claims += _top_level_claims(section)
    return claims + _code_claims(config)


def _refuse_other_schemes(section: Config) -> None:
    for key, scheme in OTHER_SCHEMES.items():
        if key in section and section.values[key] is not False:
            raise UnsupportedModel(f"{section.says(key)}: {scheme} cannot be written yet", WRITTEN)


def _scaling_claims(scaling: Config | None) -> list[Claim]:
    """What one rope_scaling or rope_parameters says."""
    if scaling is None:
        return []
    scaling = _without_layer_types(scaling)
    claims = _kind_claims(scaling)
    for key in scaling.values:
        if key in scaling and key not in SCALING_KEYS:
            raise UnsupportedModel(
                f"{scaling.says(key)} is not understood beside {claims[0]}",
                f"the keys of such a scaling are {', '.join(SCALING_KEYS)}",
            )
    if "factor" in scaling:
        factor = _positive(scaling, "factor")
        used = factor == 1.0 or any(claim.value == "linear" for claim in claims)
        claims.append(_claim("factors" if used else "idle_factors", scaling, "factor", factor, "the factor"))
    return claims + _number_claims(scaling)


def _without_layer_types(scaling: Config) -> Config:
    """The one set of parameters where a dict holds a set for each type of layer (transformers 5)."""
    full, sliding = scaling.section("full_attention"), scaling.section("sliding_attention")
    if full is None and sliding is None:
        return scaling
    beside = _stated(scaling).keys() - {"full_attention", "sliding_attention"}
    if full is None or beside or (sliding is not None and _stated(sliding) != _stated(full)):
        raise UnsupportedModel(
            f"{scaling.file}: {scaling.prefix.rstrip('.')} = {as_json(scaling.values)}: "
            "positions that differ from layer to layer cannot be written yet",
            WRITTEN,
        )
    return full


def _stated(section: Config) -> dict[str, Any]:
    return {key: value for key, value in section.values.items() if value is not None}


def _kind_claims(scaling: Config) -> list[Claim]:
    """The kind: under rope_type, under type as it was spelled before transformers 4.43, or both."""
    claims = []
    for key in ("rope_type", "type"):
        if key in scaling:
            name = scaling.require(key, str)
            if name not in CONFIG_KINDS:
                raise _unsupported_kind(scaling, key, name)
            claims.append(_claim("kinds", scaling, key, CONFIG_KINDS[name], "the kind of scaling"))
    if claims:
        return claims
    return [Claim("kinds", "none", Evidence(scaling.file, f"{scaling.prefix}rope_type", None, "not scaled"))]


def _unsupported_kind(scaling: Config, key: str, name: str) -> UnsupportedModel:
    hint = WRITTEN
    if name not in LATER_KINDS:
        hint = f"pigguf knows {', '.join([*CONFIG_KINDS, *LATER_KINDS])}, and guesses at no other"
    return UnsupportedModel(f"{scaling.says(key)}: this kind of rope scaling cannot be written yet", hint)


def _top_level_claims(section: Config) -> list[Claim]:
    """What the keys beside rope_scaling say."""
    claims = []
    for key, (meaning, to_factor) in FACTOR_KEYS.items():
        if key in section:
            claims.append(_claim("factors", section, key, to_factor(_positive(section, key)), meaning))
    claims += _number_claims(section)
    for key in ("max_position_embeddings", "max_sequence_length"):
        if key in section:
            length = section.require(key, int)
            claims.append(_claim("windows", section, key, length, "a window, original or extended"))
    return claims


def _number_claims(section: Config) -> list[Claim]:
    """The two keys that mean the same at the top level and inside a scaling."""
    claims = []
    if "rope_theta" in section:
        base = section.require("rope_theta", float)
        if not 1.0 < base < LARGEST_BASE:
            raise section.invalid("rope_theta", f"between 1 and {LARGEST_BASE:g}")
        claims.append(_claim("bases", section, "rope_theta", base, "the base of the frequencies"))
    key = "original_max_position_embeddings"
    if key in section:
        claims.append(_claim("originals", section, key, section.require(key, int), "the original window"))
    return claims


def _code_claims(config: Config) -> list[Claim]:
    auto_map = config.section("auto_map")
    if auto_map is None or not any(name.startswith("AutoModel") for name in auto_map.values):
        return []
    return [_claim("code", config, "auto_map", None, "modelling code of its own, which is not run here")]


def _limit_claims(tokenizer_config: Config) -> list[Claim]:
    key = "model_max_length"
    value = tokenizer_config.values.get(key)
    if value is None or (isinstance(value, (int, float)) and value > MAX_COUNT):
        return []  # transformers writes VERY_LARGE_INTEGER, 1e30, for "no limit"
    length = tokenizer_config.require(key, int)
    return [_claim("limits", tokenizer_config, key, length, "the tokenizer's limit")]


def _override_claims(overrides: RopeOverrides) -> list[Claim]:
    numbers: tuple[tuple[str, str, float | None], ...] = (
        ("factors", "--rope-factor", overrides.factor),
        ("originals", "--original-context", overrides.original_context),
        ("contexts", "--context", overrides.context),
    )
    claims = []
    for quantity, flag, number in numbers:
        if number is not None:
            if not (math.isfinite(number) and 0 < number <= MAX_COUNT):
                raise RopeConflict(f"{flag} {number} is not a number above 0 that fits 32 bits", EXAMPLE)
            value = float(number) if quantity == "factors" else number
            claims.append(Claim(quantity, value, Evidence(COMMAND_LINE, flag, number, "the user's word")))
    return claims


def _claim(quantity: str, section: Config, key: str, value: Any, meaning: str) -> Claim:
    return Claim(quantity, value, Evidence(section.file, section.prefix + key, section.values[key], meaning))


def _positive(section: Config, key: str) -> float:
    value = section.require(key, float)
    if value <= 0:
        raise section.invalid(key, "above 0")
    return value
