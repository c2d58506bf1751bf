"""Claims about positions in a checkpoint: every key that mentions them, checked and turned into claims.

A new dialect is an entry in FACTOR_KEYS, or a rope type in rope_types.py. Where config.json has no scaling,
the model's name may imply one (known_models.py).

Sources: transformers' modeling_rope_utils.py for rope_scaling and rope_parameters, configuration_gemma3.py
for sliding layers; for keys that transformers never had, the code that reads them: LongChat's
llama_condense_monkey_patch.py, Giraffe's interpolate.py (abacusai/Long-Context) and scaled_rope/ of
jquesnelle/yarn. Not here: deciding between claims (decision.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from pigguf.common.json_config import MAX_COUNT, JsonConfig
from pigguf.errors import UnsupportedModel
from pigguf.rope.evidence import Claim, Evidence, claims_scaling, names_rope_type
from pigguf.rope.known_models import KNOWN_MODELS, KnownModel
from pigguf.rope.overrides import RopeOverrides, override_claims
from pigguf.rope.rope_scaling import DEFAULT_ROPE_THETA
from pigguf.rope.rope_types import CONFIG_ROPE_TYPES
from pigguf.rope.scaling_section import make_claim, positive, scaling_claims, shared_claims, theta_claim


class FactorKey(NamedTuple):
    """A config key outside rope_scaling that gives a linear factor.

    Attributes:
        meaning: which code reads it, and how.
        to_factor: converts its value to a factor.
    """

    meaning: str
    to_factor: Callable[[float], float]


FACTOR_KEYS = {
    "rope_condense_ratio": FactorKey("LongChat divides positions by it", lambda ratio: ratio),
    "abacus_scale": FactorKey("Giraffe divides positions by it", lambda scale: scale),
    "position_interpolation_scale": FactorKey(
        "scaled_rope multiplies positions by it", lambda scale: 1 / scale
    ),
    "factor": FactorKey("a linear factor outside rope_scaling", lambda factor: factor),
}

# Keys of position schemes that cannot be converted; null and false mean that they are off.
UNSUPPORTED_SCHEMES = {
    "ntk_alpha": "NTK-aware scaling",
    "part_ntk_scale": "NTK-by-parts scaling",
    "use_xpos": "xPos",
    "dual_chunk_attention_config": "dual chunk attention",
}
_SUPPORTED_HINT = f"rope types in rope_scaling that can be converted: {', '.join(CONFIG_ROPE_TYPES)}"
_HEAD_DIM_KEYS = ("head_dim", "hidden_size", "num_attention_heads")
_PARTIAL_ROTARY_KEYS = ("partial_rotary_factor", "rotary_pct", "rope_pct")


def collect_claims(
    config: JsonConfig,
    tokenizer_config: JsonConfig,
    overrides: RopeOverrides,
    extended: JsonConfig | None = None,
    name: str = "",
) -> list[Claim]:
    """Return all claims about a checkpoint's positions, in order, overrides last.

    Args:
        config: config.json.
        tokenizer_config: tokenizer_config.json.
        overrides: the user's numbers.
        extended: config.json of the model with an adapter that extends its context.
        name: the model's name.

    Raises:
        UnsupportedModel: a position scheme that cannot be converted.
        CheckpointError: a key has a wrong value.
        RopeConflict: an override is out of range.
    """
    claims = _checkpoint_claims(config) + _tokenizer_limit_claims(tokenizer_config)
    if extended is not None:
        claims = _claims_before_extension(_add_defaults(claims, config))
        claims += _add_defaults(_checkpoint_claims(extended), extended)
    if not any(claims_scaling(claim) for claim in claims):
        claims += _known_model_claims(config, name)
    return claims + override_claims(overrides)


def _checkpoint_claims(config: JsonConfig) -> list[Claim]:
    claims: list[Claim] = []
    for section in (config, config.section("text_config")):
        if section is not None:
            _check_unsupported_schemes(section)
            for name in ("rope_scaling", "rope_parameters"):
                claims += scaling_claims(section.section(name))
            claims += _top_level_claims(section)
            claims += _rotary_dim_claims(section, claims)
    return claims + _custom_code_claims(config)


def _check_unsupported_schemes(section: JsonConfig) -> None:
    for key, scheme in UNSUPPORTED_SCHEMES.items():
        if key in section and section.values[key] is not False:
            raise UnsupportedModel(f"{section.describe(key)}: {scheme} cannot be converted", _SUPPORTED_HINT)


def _top_level_claims(section: JsonConfig) -> list[Claim]:
    """Return the claims of the keys besides rope_scaling."""
    claims = []
    for key, (meaning, to_factor) in FACTOR_KEYS.items():
        if key in section:
            claims.append(make_claim("factors", section, key, to_factor(positive(section, key)), meaning))
    claims += shared_claims(section)
    if "rope_local_base_freq" in section:
        claims.append(theta_claim("local_rope_thetas", section, "rope_local_base_freq"))
    for key in ("max_position_embeddings", "max_sequence_length"):
        if key in section:
            length = section.require(key, int)
            meaning = "a context length, original or extended"
            claims.append(make_claim("context_lengths", section, key, length, meaning))
    return claims


def _rotary_dim_claims(section: JsonConfig, claims: list[Claim]) -> list[Claim]:
    """Return the rotated dimensions of a head, where dynamic scaling depends on them.

    transformers computes int(head_dim * partial_rotary_factor).
    """
    is_dynamic = any(claim[:2] == ("rope_types", "dynamic") for claim in claims)
    if not is_dynamic or "num_attention_heads" not in section:
        return []
    if "head_dim" in section:
        head_dim = section.require("head_dim", int)
    else:
        head_dim = section.require("hidden_size", int) // section.require("num_attention_heads", int)
    candidates = (section, section.section("rope_scaling"), section.section("rope_parameters"))
    fractions = [
        candidate.require(key, float)
        for candidate in candidates
        if candidate is not None
        for key in _PARTIAL_ROTARY_KEYS
        if key in candidate
    ]
    rotary_dim = int(head_dim * fractions[0]) if fractions else head_dim
    values = {key: section.values[key] for key in _HEAD_DIM_KEYS if key in section}
    evidence = Evidence(
        section.file, f"{section.prefix}num_attention_heads", values, "the rotated dimensions of a head"
    )
    return [Claim("rotary_dims", rotary_dim, evidence)]


def _custom_code_claims(config: JsonConfig) -> list[Claim]:
    auto_map = config.section("auto_map")
    if auto_map is None or not any(name.startswith("AutoModel") for name in auto_map.values):
        return []
    return [make_claim("custom_code", config, "auto_map", None, "custom modelling code, which is not run")]


def _tokenizer_limit_claims(tokenizer_config: JsonConfig) -> list[Claim]:
    key = "model_max_length"
    value = tokenizer_config.values.get(key)
    if value is None or (isinstance(value, (int, float)) and value > MAX_COUNT):
        return []  # transformers writes VERY_LARGE_INTEGER, 1e30, for "no limit"
    length = tokenizer_config.require(key, int)
    return [make_claim("tokenizer_limits", tokenizer_config, key, length, "the tokenizer's limit")]


def _known_model_claims(config: JsonConfig, name: str) -> list[Claim]:
    """Return the claims of known_models.json about a model whose config has no scaling."""
    name_or_path = str(config.values.get("_name_or_path") or "")
    for source, model_name in (("its name", name), (f"{config.file}: _name_or_path", name_or_path)):
        known = next(
            (model for model in KNOWN_MODELS if model_name and model.matches(model_name, config.values)), None
        )
        if known is not None:
            evidence = Evidence(source, model_name, known.name, known.source)
            return [Claim("model_names", known.name, evidence), *_known_scaling_claims(known)]
    return []


def _known_scaling_claims(known: KnownModel) -> list[Claim]:
    return scaling_claims(JsonConfig(known.rope_scaling, "known_models.json", f"{known.name}."))


def _claims_before_extension(claims: list[Claim]) -> list[Claim]:
    """Return a checkpoint's claims as claims about the model that an adapter extends from it.

    If the checkpoint is not scaled, its context length is the original one, and the rest does not concern the
    extended model. If it is scaled, both must be scaled in the same way.
    """
    factors = [claim.value for claim in claims if claim.quantity in ("factors", "unused_factors")]
    is_scaled = set(factors) != {1.0} if factors else any(map(names_rope_type, claims))
    if is_scaled:
        return claims
    remaining = [claim for claim in claims if claim.quantity not in ("rope_types", "factors")]
    return [_as_original(claim) if claim.quantity == "context_lengths" else claim for claim in remaining]


def _as_original(claim: Claim) -> Claim:
    meaning = "the context length before the adapter"
    return Claim("original_contexts", claim.value, replace(claim.evidence, meaning=meaning))


def _add_defaults(claims: list[Claim], config: JsonConfig) -> list[Claim]:
    """Return the claims, and the defaults of keys that a config omits, as two configs may differ in them."""
    quantities = {claim.quantity for claim in claims}
    added = []
    if not quantities & {"rope_types", "factors"}:
        evidence = Evidence(config.file, "rope_scaling", None, "not scaled")
        added.append(Claim("rope_types", "none", evidence))
    if "rope_thetas" not in quantities:
        evidence = Evidence(config.file, "rope_theta", None, "transformers' default")
        added.append(Claim("rope_thetas", DEFAULT_ROPE_THETA, evidence))
    return claims + added
