"""GGUF metadata -> hyperparameters of a model.

Not here: reading config.json (config_reader.py), reading positions (pigguf.rope.rope_from_metadata).
"""

from __future__ import annotations

from collections.abc import Container

from pigguf.architectures.family import NOT_COMPUTED_HINT, Family, position_type
from pigguf.architectures.hparam_checks import check_hparams
from pigguf.architectures.hparam_rules import FULL_ROTARY
from pigguf.architectures.hparams import NORM_EPSILON_KEYS, HParams
from pigguf.architectures.tensor_rules import TensorRule
from pigguf.errors import GGUFError, UnsupportedModel
from pigguf.gguf_io.metadata import (
    FOREIGN_FILE_HINT,
    Metadata,
    TypedValue,
    get_array,
    get_value,
    require_value,
)
from pigguf.llama_cpp_internals.sliding_window import PATTERN_KEY, WINDOW_KEY
from pigguf.rope import rope_from_metadata


def hparams_from_metadata(family: Family, metadata: Metadata, tensors: Container[str] = ()) -> HParams:
    """Read a model's hyperparameters from a GGUF's metadata.

    Args:
        family: the model's family.
        metadata: the file's keys.
        tensors: the names of its tensors, which show the optional features. Without them the model has
            none (map_tensors_to_hf then rejects the tensors that belong to them).

    Raises:
        GGUFError: a key is missing, of the wrong type, or does not fit another.
        UnsupportedModel: the file has a feature that the family does not have here.
    """
    keys = _CountReader(family, metadata)
    _check_gguf_features(family, metadata)
    width, heads = keys.require("embedding_length"), keys.require("attention.head_count")
    head_dim = keys.optional("attention.key_length", width // heads)
    value_length = keys.optional("attention.value_length", head_dim)
    if value_length != head_dim:
        raise _head_dim_mismatch(family, "attention.value_length", value_length, head_dim)
    layers = keys.require("block_count")
    is_rope = position_type(family, layers) == "rope"
    rotary_dim = keys.optional("rope.dimension_count", head_dim) if is_rope else 0
    if is_rope and rotary_dim != head_dim and family.rotary == FULL_ROTARY:
        raise _head_dim_mismatch(family, "rope.dimension_count", rotary_dim, head_dim)
    tokens = get_array(metadata, "tokenizer.ggml.tokens")  # llama.cpp takes its length, not vocab_size
    architecture = family.architecture
    hparams = HParams(
        architecture=architecture,
        hf_class=family.hf_classes[0],
        layers=layers,
        embedding_length=width,
        feed_forward_length=keys.require("feed_forward_length"),
        heads=heads,
        kv_heads=keys.optional("attention.head_count_kv", heads),
        head_dim=head_dim,
        rotary_dim=rotary_dim,
        vocab_size=keys.require("vocab_size") if tokens is None else len(tokens),
        norm_epsilon=require_value(metadata, f"{architecture}.{NORM_EPSILON_KEYS[family.norm_type]}", float),
        rope=rope_from_metadata(metadata, architecture),
        norm_type=family.norm_type,
        features=frozenset(
            feature for feature in family.optional_features if _has_feature(family, feature, tensors)
        ),
        experts=get_value(metadata, f"{architecture}.expert_count", int, 0) or 0,
        extra_keys=_read_extra_keys(family, metadata),
    )
    check_hparams(family, hparams, f"metadata of {architecture}: ", GGUFError)
    return hparams


class _CountReader:
    """Reads the counts among a GGUF's keys, none of which may be 0."""

    def __init__(self, family: Family, metadata: Metadata) -> None:
        self.architecture = family.architecture
        self.metadata = metadata

    def require(self, key: str) -> int:
        name = f"{self.architecture}.{key}"
        return self._above_0(name, require_value(self.metadata, name, int))

    def optional(self, key: str, default: int) -> int:
        name = f"{self.architecture}.{key}"
        return self._above_0(name, get_value(self.metadata, name, int, default))

    @staticmethod
    def _above_0(name: str, value: int | None) -> int:
        if not value:
            raise GGUFError(f"metadata key {name} is {value}", FOREIGN_FILE_HINT)
        return value


def _read_extra_keys(family: Family, metadata: Metadata) -> dict[str, TypedValue]:
    names = [rule.gguf_key for rule in family.hparam_rules if rule.gguf_key != "expert_count"]
    names += [WINDOW_KEY, PATTERN_KEY] if family.sliding_window_pattern else []
    values = {name: metadata.get(f"{family.architecture}.{name}") for name in names}
    return {name: typed for name, typed in values.items() if typed is not None}


def _has_feature(family: Family, feature: str, tensors: Container[str]) -> bool:
    """Return whether a GGUF has one of the tensors that only models with an optional feature have."""
    with_feature = [rule for rule in family.tensor_rules if rule.when == feature]
    without = [rule for rule in family.tensor_rules if rule.when == f"!{feature}"]
    if not with_feature:
        return not any(_first_tensor(rule) in tensors for rule in without)
    names = {_first_tensor(rule) for rule in with_feature}
    distinctive = names - {_first_tensor(rule) for rule in without} or names
    return any(name in tensors for name in distinctive)


def _first_tensor(rule: TensorRule) -> str:
    return rule.gguf[0].name.format(0)


def _head_dim_mismatch(family: Family, key: str, value: int, head_dim: int) -> UnsupportedModel:
    return UnsupportedModel(
        f"metadata key {family.architecture}.{key} is {value}, not the key length {head_dim}",
        NOT_COMPUTED_HINT,
    )


def _check_gguf_features(family: Family, metadata: Metadata) -> None:
    experts = f"{family.architecture}.expert_count"
    if get_value(metadata, experts, int, 0) and not family.has_experts:
        raise UnsupportedModel(
            f"metadata key {experts} is {metadata[experts].value}: a mixture of experts", NOT_COMPUTED_HINT
        )
    causal = f"{family.architecture}.attention.causal"
    if get_value(metadata, causal, bool, True) is False:
        raise UnsupportedModel(
            f"metadata key {causal} is false: attention that is not causal", NOT_COMPUTED_HINT
        )
