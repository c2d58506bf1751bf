"""Evidence: every key that speaks of positions, checked by itself and turned into claims.

A claim is a value for one quantity (a kind, a factor, a base, a window); a key that may mean either
window claims no more than that. A new dialect is a row in FACTOR_KEYS or in kinds.py.

Where config.json is silent, a model's name may speak (known.py).

Sources: transformers' modeling_rope_utils.py for rope_scaling and rope_parameters; for keys that
transformers never knew, the code that reads them: LongChat's llama_condense_monkey_patch.py,
Giraffe's interpolate.py (abacusai/Long-Context) and scaled_rope/ of jquesnelle/yarn. Gemma 3's sliding
layers: configuration_gemma3.py.
Left out: comparing claims.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from pigguf.common.config import MAX_COUNT, Config, as_json
from pigguf.errors import RopeConflict, UnsupportedModel
from pigguf.rope.known_models import KNOWN, KnownFamily
from pigguf.rope.rope_types import COMMON_KEYS, KINDS, UNSCALED, ScalingKind
from pigguf.rope.scaling import COMMAND_LINE, DEFAULT_BASE, Evidence


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

# Keys that speak of a scheme for positions which is not written; null and false are silent.
OTHER_SCHEMES = {
    "ntk_alpha": "NTK-aware scaling",
    "part_ntk_scale": "NTK-by-parts scaling",
    "use_xpos": "xPos",
    "dual_chunk_attention_config": "dual chunk attention",
}

NOT_WRITTEN = f"pigguf writes what these say in rope_scaling: {', '.join(KINDS)}"
DIMENSION_KEYS = ("head_dim", "hidden_size", "num_attention_heads")  # what dynamic scaling needs besides
EXAMPLE = "as in --rope-factor 4 --original-context 8192 --context 32768"
LARGEST_BASE = 1e30  # well inside single precision
LOCAL_BASE = "the base of layers with a sliding window"


@dataclass(frozen=True)
class RopeOverrides:
    """What the user says of positions; it overrules the checkpoint, number by number.

    `interpolation` is how a table of learned positions gets its rows (rope/unrotated.py).
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
        kinds: of each rope_scaling and rope_parameters, as kinds.py calls them.
        parameters: what else each says of its kind.
        factors: factors.
        idle_factors: factors in a dict whose kind has none.
        bases: theta; local_bases: that of layers with a sliding window.
        rotary: dimensions of a head that are rotated, where the kind needs them.
        originals: original context lengths.
        contexts: extended ones; only the user says which they are.
        windows: max_position_embeddings and max_sequence_length, of which either may be either.
        limits: the tokenizer's model_max_length.
        code: auto_map, where it names modelling code.
        names: the model's name, where it is one of known_models.json and the config has no scaling.
        overrides: how many numbers the user gave.
        plain: whether the checkpoint itself says nothing of scaling, what is overruled included.
    """

    kinds: Claims = ()
    parameters: Claims = ()
    factors: Claims = ()
    idle_factors: Claims = ()
    bases: Claims = ()
    local_bases: Claims = ()
    rotary: Claims = ()
    originals: Claims = ()
    contexts: Claims = ()
    windows: Claims = ()
    limits: Claims = ()
    code: Claims = ()
    names: Claims = ()
    overrides: int = 0
    plain: bool = True


def gather(
    config: Config,
    tokenizer_config: Config,
    overrides: RopeOverrides,
    extended: Config | None = None,
    name: str = "",
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
    if not any(_speaks_of_kind(claim) for claim in claims):
        claims += _known_claims(config, name)
    return claims + _override_claims(overrides)


def weigh(claims: list[Claim]) -> Facts:
    """Claims by quantity, without those that the user overrules."""
    given = [claim for claim in claims if claim.evidence.source == COMMAND_LINE]
    overruled = {claim.quantity for claim in given}
    if "factors" in overruled:
        overruled |= {"idle_factors", "names"}
        if not _keeps_kind(claims, given):
            overruled |= {"kinds", "parameters"}
    by_quantity: dict[str, Claims] = {}
    for claim in claims:
        if claim in given or claim.quantity not in overruled:
            by_quantity[claim.quantity] = (*by_quantity.get(claim.quantity, ()), claim)
    plain = not any(_speaks_of_scaling(claim) for claim in claims if claim not in given)
    return Facts(**by_quantity, overrides=len(given), plain=plain)


def _keeps_kind(claims: list[Claim], given: list[Claim]) -> bool:
    """Whether the user's factor is one for the kind that the files name; otherwise it is linear."""
    factors = [claim.value for claim in given if claim.quantity == "factors"]
    return factors != [1.0] and any(
        claim.quantity == "kinds" and claim.value not in ("none", "linear") for claim in claims
    )


def _speaks_of_scaling(claim: Claim) -> bool:
    return claim.quantity == "code" or _speaks_of_kind(claim)


def _speaks_of_kind(claim: Claim) -> bool:
    return claim.quantity in ("factors", "idle_factors") or _names_kind(claim)


def _names_kind(claim: Claim) -> bool:
    return claim.quantity == "kinds" and claim.value != "none"


def _before_extension(claims: list[Claim]) -> list[Claim]:
    """A checkpoint's claims, as they speak of a model that was extended from it.

    Where it is not scaled itself, that says nothing of the extended model, and its window is the
    original one. Where it is, both must be scaled the same.
    """
    factors = [claim.value for claim in claims if claim.quantity in ("factors", "idle_factors")]
    scaled = set(factors) != {1.0} if factors else any(map(_names_kind, claims))
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
            claims += _rotary_claims(section, claims)
    return claims + _code_claims(config)


def _refuse_other_schemes(section: Config) -> None:
    for key, scheme in OTHER_SCHEMES.items():
        if key in section and section.values[key] is not False:
            raise UnsupportedModel(f"{section.says(key)}: {scheme} is not written", NOT_WRITTEN)


def _scaling_claims(scaling: Config | None) -> list[Claim]:
    """What one rope_scaling or rope_parameters says."""
    if scaling is None:
        return []
    scaling, local = _without_layer_types(scaling)
    kinds = _kinds(scaling)
    claims = [_kind_claim(scaling, key, kind) for key, kind in kinds.items()]
    kind = next(iter(kinds.values()))
    known = {*COMMON_KEYS, *(key for kind in kinds.values() for key in kind.keys)}
    for key in scaling.values:
        if key in scaling and key not in known:
            raise UnsupportedModel(
                f"{scaling.says(key)} is not understood beside {claims[0]}",
                f"the keys of such a scaling are {', '.join((*COMMON_KEYS, *kind.keys))}",
            )
    if kind.keys:
        evidence = Evidence(
            scaling.file, scaling.prefix.rstrip("."), scaling.values, f"the numbers of {kind.name}"
        )
        claims.append(Claim("parameters", kind.read(scaling), evidence))
    if "factor" in scaling and kind.has_factor:
        factor = _positive(scaling, "factor")
        used = factor == 1.0 or any(kind.name != "none" for kind in kinds.values())
        claims.append(_claim("factors" if used else "idle_factors", scaling, "factor", factor, "the factor"))
    return claims + _number_claims(scaling) + local


def _without_layer_types(scaling: Config) -> tuple[Config, list[Claim]]:
    """The parameters of layers that look at everything, and what those of sliding layers claim.

    transformers 5 holds a set for each type of layer. llama.cpp's graphs know sliding layers that are
    rotated as all others are, and such that are not scaled and have a base of their own (Gemma 3).
    """
    full, sliding = scaling.section("full_attention"), scaling.section("sliding_attention")
    if full is None and sliding is None:
        return scaling, []
    beside = _stated(scaling).keys() - {"full_attention", "sliding_attention"}
    if full is None or beside:
        raise _unlike_layers(scaling)
    if sliding is None or _stated(sliding) == _stated(full):
        return full, []
    unscaled = all(kind is UNSCALED for kind in _kinds(sliding).values())
    if not unscaled or "rope_theta" not in sliding or "factor" in sliding:
        raise _unlike_layers(scaling)
    return full, [_base_claim("local_bases", sliding, "rope_theta", LOCAL_BASE)]


def _unlike_layers(scaling: Config) -> UnsupportedModel:
    return UnsupportedModel(
        f"{scaling.file}: {scaling.prefix.rstrip('.')} = {as_json(scaling.values)}: "
        "llama.cpp cannot tell layers apart in this way",
        "sliding layers may be rotated as the others are, or not scaled and with a rope_theta of their own",
    )


def _stated(section: Config) -> dict[str, Any]:
    return {key: value for key, value in section.values.items() if value is not None}


def _kinds(scaling: Config) -> dict[str, ScalingKind]:
    """The kind: under rope_type, under type as it was spelled before transformers 4.43, or both."""
    kinds = {}
    for key in ("rope_type", "type"):
        if key in scaling:
            name = scaling.require(key, str)
            if name not in KINDS:
                raise UnsupportedModel(
                    f"{scaling.says(key)}: this kind of rope scaling is not known",
                    f"pigguf knows {', '.join(KINDS)}, and guesses at no other",
                )
            kinds[key] = KINDS[name]
    return kinds or {"rope_type": UNSCALED}


def _kind_claim(scaling: Config, key: str, kind: ScalingKind) -> Claim:
    meaning = "the kind of scaling" if key in scaling else "not scaled"
    return Claim(
        "kinds", kind.name, Evidence(scaling.file, scaling.prefix + key, scaling.values.get(key), meaning)
    )


def _top_level_claims(section: Config) -> list[Claim]:
    """What the keys beside rope_scaling say."""
    claims = []
    for key, (meaning, to_factor) in FACTOR_KEYS.items():
        if key in section:
            claims.append(_claim("factors", section, key, to_factor(_positive(section, key)), meaning))
    claims += _number_claims(section)
    if "rope_local_base_freq" in section:
        claims.append(_base_claim("local_bases", section, "rope_local_base_freq", LOCAL_BASE))
    for key in ("max_position_embeddings", "max_sequence_length"):
        if key in section:
            length = section.require(key, int)
            claims.append(_claim("windows", section, key, length, "a window, original or extended"))
    return claims


def _number_claims(section: Config) -> list[Claim]:
    """The two keys that mean the same at the top level and inside a scaling."""
    claims = []
    if "rope_theta" in section:
        claims.append(_base_claim("bases", section, "rope_theta", "the base of the frequencies"))
    key = "original_max_position_embeddings"
    if key in section:
        claims.append(_claim("originals", section, key, section.require(key, int), "the original window"))
    return claims


def _base_claim(quantity: str, section: Config, key: str, meaning: str) -> Claim:
    base = section.require(key, float)
    if not 1.0 < base < LARGEST_BASE:
        raise section.invalid(key, f"between 1 and {LARGEST_BASE:g}")
    return _claim(quantity, section, key, base, meaning)


def _rotary_claims(section: Config, claims: list[Claim]) -> list[Claim]:
    """The rotated dimensions of a head, where a kind's base depends on them.

    They are transformers' int(head_dim * partial_rotary_factor).
    """
    if not any(claim[:2] == ("kinds", "dynamic") for claim in claims) or "num_attention_heads" not in section:
        return []
    if "head_dim" in section:
        size = section.require("head_dim", int)
    else:
        size = section.require("hidden_size", int) // section.require("num_attention_heads", int)
    places = (section, section.section("rope_scaling"), section.section("rope_parameters"))
    parts = [
        place.require(key, float)
        for place in places
        if place is not None
        for key in ("partial_rotary_factor", "rotary_pct", "rope_pct")
        if key in place
    ]
    rotated = int(size * parts[0]) if parts else size
    said = {key: section.values[key] for key in DIMENSION_KEYS if key in section}
    evidence = Evidence(
        section.file, f"{section.prefix}num_attention_heads", said, "what is rotated of a head"
    )
    return [Claim("rotary", rotated, evidence)]


def _known_claims(config: Config, name: str) -> list[Claim]:
    """What a model's name says where its config has no scaling: one of known_models.json's families."""
    for source, said in (("its name", name), (f"{config.file}: _name_or_path", _name_or_path(config))):
        family = next((family for family in KNOWN if said and family.fits(said, config.values)), None)
        if family is not None:
            named = Claim("names", family.name, Evidence(source, said, family.name, family.source))
            return [named, *_family_claims(family)]
    return []


def _family_claims(family: KnownFamily) -> list[Claim]:
    return _scaling_claims(Config(family.rope_scaling, "known_models.json", f"{family.name}."))


def _name_or_path(config: Config) -> str:
    return str(config.values.get("_name_or_path") or "")


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
