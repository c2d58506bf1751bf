"""The rope types by the names that configs have for them.

A new rope type is a module with a subclass of RopeScaling and an entry here. Not here: the keys that all
types share (config_claims.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from pigguf.common.json_config import JsonConfig
from pigguf.rope import llama3, longrope, yarn

# Keys of rope_scaling and rope_parameters that all types share.
COMMON_CONFIG_KEYS = (
    "rope_type",
    "type",
    "factor",
    "rope_theta",
    "original_max_position_embeddings",
    "partial_rotary_factor",  # checked by the family (pigguf.architectures)
    "finetuned",  # informative only
)


class ConfigRopeType(NamedTuple):
    """A rope type in a config.

    Attributes:
        name: its name here, RopeScaling.rope_type; "dynamic" is converted to "none".
        config_keys: its keys besides COMMON_CONFIG_KEYS.
        read_parameters: reads and checks these keys.
        has_factor: whether `factor` scales positions; LongRoPE has lists instead.
    """

    name: str
    config_keys: tuple[str, ...] = ()
    read_parameters: Callable[[JsonConfig], dict[str, Any]] = lambda scaling: {}
    has_factor: bool = True


_LONGROPE = ConfigRopeType(
    "longrope", longrope.CONFIG_KEYS, longrope.read_longrope_parameters, has_factor=False
)
UNSCALED = ConfigRopeType("none")
# By the names in configs.
CONFIG_ROPE_TYPES = {
    "default": UNSCALED,
    "linear": ConfigRopeType("linear"),
    "yarn": ConfigRopeType("yarn", yarn.CONFIG_KEYS, yarn.read_yarn_parameters),
    "longrope": _LONGROPE,
    "su": _LONGROPE,
    "llama3": ConfigRopeType("llama3", llama3.CONFIG_KEYS, llama3.read_llama3_parameters),
    "dynamic": ConfigRopeType("dynamic"),
}
