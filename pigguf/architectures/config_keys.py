"""The keys of config.json under the names that a family gives them.

Families describe their keys by Llama's names (config_key_aliases). Used by config_reader.py and
config_writer.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pigguf.architectures.family import Family
from pigguf.architectures.hparam_rules import has_key
from pigguf.common.json_config import JsonConfig


def language_model_config(family: Family, config: Mapping[str, Any]) -> JsonConfig:
    """Return the part of config.json that describes the language model."""
    keys = JsonConfig(config)
    return (keys.section(family.config_section) if family.config_section else None) or keys


def config_key(family: Family, llama_key: str, keys: JsonConfig | None = None) -> str:
    """Return the family's name of one of Llama's config keys.

    Args:
        family: the family.
        llama_key: the name that LlamaConfig has for it.
        keys: a config: of several names the one that it contains is returned, else the first.
    """
    names = family.config_key_aliases.get(llama_key, (llama_key,))
    return next((name for name in names if keys is not None and name in keys), names[0])


def with_llama_keys(family: Family, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return config.json with Llama's names for the family's keys and the family's defaults filled in."""
    keys = language_model_config(family, config)
    aliased = {
        llama_key: keys.values[name]
        for llama_key in family.config_key_aliases
        if (name := config_key(family, llama_key, keys)) in keys
    }
    defaults = {key: value for key, value in family.config_defaults.items() if not has_key(keys, key)}
    present = {key: value for key, value in keys.values.items() if value is not None}
    language = {**defaults, **present, **aliased}
    return {**config, family.config_section: language} if keys.prefix else language


def read_count(family: Family, keys: JsonConfig, llama_key: str, default: int | None = None) -> int:
    """Return a whole number of a config by Llama's name of its key, or the family's default, or `default`.

    Raises:
        CheckpointError: the key is missing and has no default, or is not a whole number above 0.
    """
    name = config_key(family, llama_key, keys)
    default = family.config_defaults.get(llama_key, default)
    return keys.require(name, int) if default is None else keys.optional(name, int, default)
