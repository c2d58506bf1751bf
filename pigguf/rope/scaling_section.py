"""Claims of one rope_scaling or rope_parameters object of a config."""

from __future__ import annotations

from typing import Any

from pigguf.common.json_config import JsonConfig, format_json_value
from pigguf.errors import UnsupportedModel
from pigguf.rope.evidence import Claim, Evidence
from pigguf.rope.rope_types import COMMON_CONFIG_KEYS, CONFIG_ROPE_TYPES, UNSCALED, ConfigRopeType

MAX_ROPE_THETA = 1e30  # well within single precision


def scaling_claims(scaling: JsonConfig | None) -> list[Claim]:
    """Return the claims of a rope_scaling or rope_parameters object.

    Raises:
        UnsupportedModel: a rope type or a key that is not known, or layers with different scaling.
        CheckpointError: a key has a wrong value.
    """
    if scaling is None:
        return []
    scaling, local_claims = _split_layer_types(scaling)
    rope_types = _read_rope_types(scaling)
    claims = [_rope_type_claim(scaling, key, rope_type) for key, rope_type in rope_types.items()]
    rope_type = next(iter(rope_types.values()))
    _check_known_keys(scaling, rope_types, claims[0])
    if rope_type.config_keys:
        meaning = f"the parameters of {rope_type.name}"
        evidence = Evidence(scaling.file, scaling.prefix.rstrip("."), scaling.values, meaning)
        claims.append(Claim("parameters", rope_type.read_parameters(scaling), evidence))
    if "factor" in scaling and rope_type.has_factor:
        factor = positive(scaling, "factor")
        is_used = factor == 1.0 or any(each.name != "none" for each in rope_types.values())
        quantity = "factors" if is_used else "unused_factors"
        claims.append(make_claim(quantity, scaling, "factor", factor, "the factor"))
    return claims + shared_claims(scaling) + local_claims


def _check_known_keys(scaling: JsonConfig, rope_types: dict[str, ConfigRopeType], first: Claim) -> None:
    known = {*COMMON_CONFIG_KEYS, *(key for each in rope_types.values() for key in each.config_keys)}
    for key in scaling.values:
        if key in scaling and key not in known:
            expected = (*COMMON_CONFIG_KEYS, *next(iter(rope_types.values())).config_keys)
            raise UnsupportedModel(
                f"{scaling.describe(key)} is not known for {first}",
                f"the keys of such a scaling are {', '.join(expected)}",
            )


def _split_layer_types(scaling: JsonConfig) -> tuple[JsonConfig, list[Claim]]:
    """Return the parameters of full attention layers, and the claims of those of sliding layers.

    transformers 5 has a set for each type of layer. In llama.cpp's graphs, sliding layers are scaled like all
    others, or not scaled and with a rope_theta of their own (Gemma 3).
    """
    full, sliding = scaling.section("full_attention"), scaling.section("sliding_attention")
    if full is None and sliding is None:
        return scaling, []
    other_keys = _present(scaling).keys() - {"full_attention", "sliding_attention"}
    if full is None or other_keys:
        raise _unsupported_layer_types(scaling)
    if sliding is None or _present(sliding) == _present(full):
        return full, []
    is_unscaled = all(rope_type is UNSCALED for rope_type in _read_rope_types(sliding).values())
    if not is_unscaled or "rope_theta" not in sliding or "factor" in sliding:
        raise _unsupported_layer_types(scaling)
    return full, [theta_claim("local_rope_thetas", sliding, "rope_theta")]


def _unsupported_layer_types(scaling: JsonConfig) -> UnsupportedModel:
    return UnsupportedModel(
        f"{scaling.file}: {scaling.prefix.rstrip('.')} = {format_json_value(scaling.values)}: "
        "llama.cpp cannot scale layers differently in this way",
        "sliding layers may be scaled like the others, or not scaled and with a rope_theta of their own",
    )


def _present(section: JsonConfig) -> dict[str, Any]:
    return {key: value for key, value in section.values.items() if value is not None}


def _read_rope_types(scaling: JsonConfig) -> dict[str, ConfigRopeType]:
    """Return the rope type under rope_type, under type (before transformers 4.43), or both."""
    rope_types = {}
    for key in ("rope_type", "type"):
        if key in scaling:
            name = scaling.require(key, str)
            if name not in CONFIG_ROPE_TYPES:
                raise UnsupportedModel(
                    f"{scaling.describe(key)}: unknown rope type",
                    f"rope types that can be converted: {', '.join(CONFIG_ROPE_TYPES)}",
                )
            rope_types[key] = CONFIG_ROPE_TYPES[name]
    return rope_types or {"rope_type": UNSCALED}


def _rope_type_claim(scaling: JsonConfig, key: str, rope_type: ConfigRopeType) -> Claim:
    meaning = "the rope type" if key in scaling else "not scaled"
    evidence = Evidence(scaling.file, scaling.prefix + key, scaling.values.get(key), meaning)
    return Claim("rope_types", rope_type.name, evidence)


def shared_claims(section: JsonConfig) -> list[Claim]:
    """Return the claims of the two keys that may be at the top level or in rope_scaling."""
    claims = []
    if "rope_theta" in section:
        claims.append(theta_claim("rope_thetas", section, "rope_theta"))
    key = "original_max_position_embeddings"
    if key in section:
        length = section.require(key, int)
        claims.append(make_claim("original_contexts", section, key, length, "the original context length"))
    return claims


def theta_claim(quantity: str, section: JsonConfig, key: str) -> Claim:
    """Return the claim of a rope_theta.

    Raises:
        CheckpointError: it is out of range.
    """
    theta = section.require(key, float)
    if not 1.0 < theta < MAX_ROPE_THETA:
        raise section.invalid_value(key, f"between 1 and {MAX_ROPE_THETA:g}")
    is_local = quantity == "local_rope_thetas"
    meaning = "rope_theta of layers with a sliding window" if is_local else "the base of the frequencies"
    return make_claim(quantity, section, key, theta, meaning)


def make_claim(quantity: str, section: JsonConfig, key: str, value: Any, meaning: str) -> Claim:
    """Return a claim of a config's key."""
    return Claim(quantity, value, Evidence(section.file, section.prefix + key, section.values[key], meaning))


def positive(section: JsonConfig, key: str) -> float:
    """Return a number of a config.

    Raises:
        CheckpointError: it is not a number above 0.
    """
    value = section.require(key, float)
    if value <= 0:
        raise section.invalid_value(key, "above 0")
    return value
