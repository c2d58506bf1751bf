"""The building blocks of a Family's config keys: feature flags, extra hyperparameters, rotary dimensions.

Each can read its key from config.json and write it. Keys may be in a section ("attn_config.clip_qkv"). null
means the same as a missing key. Not here: the keys that every family has (config_reader.py,
config_writer.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pigguf.common.json_config import JsonConfig
from pigguf.errors import UnsupportedModel
from pigguf.gguf_io.metadata import TypedValue, ValueType, f32, round_to_shortest_f32

_PYTHON_TYPES: dict[ValueType, type] = {"u32": int, "f32": float, "bool": bool, "str": str}


@dataclass(frozen=True)
class FeatureFlag:
    """A boolean config key that switches an optional feature on or off.

    Attributes:
        key: the config key.
        default: transformers' default.
        inverted: the key is true where the feature is absent.
    """

    key: str
    default: bool = False
    inverted: bool = False

    def read(self, keys: JsonConfig) -> bool:
        """Return whether a config has the feature.

        Raises:
            CheckpointError: the key is not a boolean.
        """
        section, key = _resolve_path(keys, self.key)
        value = self.default if section is None else section.optional(key, bool, self.default)
        return value != self.inverted

    def write(self, config: dict[str, Any], present: bool) -> None:
        """Write the key into a config."""
        _set_path(config, self.key, present != self.inverted)


@dataclass(frozen=True)
class HParamRule:
    """A hyperparameter that only some families have, in config.json and in a GGUF.

    Attributes:
        config_key: its key in config.json.
        gguf_key: its GGUF key without the architecture's prefix.
        kind: its type in a GGUF.
        default: transformers' default; None if the GGUF then has no key either.
        to_gguf: converts a config's value to the GGUF's.
        to_config: converts a GGUF's value to the config's.
    """

    config_key: str
    gguf_key: str
    kind: ValueType
    default: Any = None
    to_gguf: Callable[[Any], Any] = lambda value: value
    to_config: Callable[[Any], Any] = lambda value: value

    def read(self, keys: JsonConfig) -> TypedValue | None:
        """Return a config's value as a GGUF value, or None if the GGUF has no such key.

        Raises:
            CheckpointError: the value is of another type.
        """
        section, key = _resolve_path(keys, self.config_key)
        value = self.default
        if section is not None and key in section:
            value = section.require(key, _PYTHON_TYPES[self.kind])
        if value is None:
            return None
        value = self.to_gguf(value)
        return f32(value) if self.kind == "f32" else TypedValue(self.kind, value)

    def write(self, config: dict[str, Any], value: Any) -> None:
        """Write a GGUF's value into a config."""
        value = round_to_shortest_f32(value) if self.kind == "f32" else value
        _set_path(config, self.config_key, self.to_config(value))


@dataclass(frozen=True)
class FullRotary:
    """All dimensions of a head are rotated."""

    def read(self, keys: JsonConfig, head_dim: int) -> int:
        """Return the number of rotated dimensions of a head.

        Raises:
            UnsupportedModel: the config asks for partial rotary, which the graph does not compute.
        """
        for section, key in _find_key(keys, "partial_rotary_factor"):
            if section.values[key] != 1:
                raise UnsupportedModel(
                    f"{section.describe(key)} asks for partial rotary embeddings",
                    "llama.cpp's graph of this family would compute something else",
                )
        return head_dim

    def write(self, config: dict[str, Any], rotary_dim: int, head_dim: int) -> None:
        """Write the number of rotated dimensions into a config; this class has no key for it."""


FULL_ROTARY = FullRotary()


@dataclass(frozen=True)
class PartialRotary(FullRotary):
    """The first dimensions of a head are rotated, a fraction that the config gives.

    Attributes:
        keys: names of the fraction, the newest first; they may be in rope_parameters. All versions of
            transformers know the last one.
        default: transformers' default of the fraction.
    """

    keys: tuple[str, ...] = ("partial_rotary_factor",)
    default: float = 1.0

    def read(self, keys: JsonConfig, head_dim: int) -> int:
        """Return the number of rotated dimensions of a head.

        Raises:
            CheckpointError: the fraction is not a number.
        """
        fractions = [
            section.require(key, float) for name in self.keys for section, key in _find_key(keys, name)
        ]
        return int(head_dim * (fractions[0] if fractions else self.default))

    def write(self, config: dict[str, Any], rotary_dim: int, head_dim: int) -> None:
        """Write the fraction into a config and its rope_parameters."""
        config[self.keys[-1]] = rotary_dim / head_dim
        config["rope_parameters"]["partial_rotary_factor"] = rotary_dim / head_dim


@dataclass(frozen=True)
class RotaryDimensions(FullRotary):
    """The first dimensions of a head are rotated, a number that the config gives.

    Attributes:
        key: the config key.
        default: transformers' default.
    """

    key: str = "rotary_dim"
    default: int = 64

    def read(self, keys: JsonConfig, head_dim: int) -> int:
        """Return the number of rotated dimensions of a head.

        Raises:
            CheckpointError: it is not a whole number above 0.
        """
        return keys.optional(self.key, int, self.default)

    def write(self, config: dict[str, Any], rotary_dim: int, head_dim: int) -> None:
        """Write the number of rotated dimensions into a config."""
        config[self.key] = rotary_dim


def kv_heads_equal_heads(keys: JsonConfig, heads: int) -> int:
    """Return the number of KV heads of a family with multi-head attention: that of query heads."""
    return heads


def four_times_hidden_size(hidden_size: int) -> int:
    """Return the usual intermediate_size where a config does not give it."""
    return 4 * hidden_size


def no_sliding_window(keys: JsonConfig) -> int | None:
    """Return None: the family ignores sliding_window."""
    return None


def explicit_sliding_window(keys: JsonConfig) -> int | None:
    """Return the config's sliding_window, for families that have none by default.

    Raises:
        CheckpointError: it is not a whole number above 0.
    """
    return keys.require("sliding_window", int) if "sliding_window" in keys else None


def has_key(keys: JsonConfig, key: str) -> bool:
    """Return whether a config has a key, at the top level or in its rope scaling."""
    return bool(_find_key(keys, key))


def _find_key(keys: JsonConfig, key: str) -> list[tuple[JsonConfig, str]]:
    """Return the sections that have a key, with its name there: the top level, then those of rope scaling.

    There may be one for each type of layer, where rope_local_base_freq is called rope_theta.
    """
    scalings = [keys.section(name) for name in ("rope_parameters", "rope_scaling")]
    layer_type = "sliding_attention" if key == "rope_local_base_freq" else "full_attention"
    nested = [scaling.section(layer_type) for scaling in scalings if scaling is not None]
    nested_key = "rope_theta" if key == "rope_local_base_freq" else key
    candidates = [
        (keys, key),
        *((scaling, key) for scaling in scalings),
        *((section, nested_key) for section in nested),
    ]
    return [(section, name) for section, name in candidates if section is not None and name in section]


def _resolve_path(keys: JsonConfig, path: str) -> tuple[JsonConfig | None, str]:
    """Return the section that a dotted key is in, None if there is none, and the key's last part."""
    section: JsonConfig | None = keys
    *outer, key = path.split(".")
    for name in outer:
        section = None if section is None else section.section(name)
    return section, key


def _set_path(config: dict[str, Any], path: str, value: Any) -> None:
    *outer, key = path.split(".")
    for name in outer:
        config = config.setdefault(name, {})
    config[key] = value
