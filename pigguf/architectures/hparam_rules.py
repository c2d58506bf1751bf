"""What a family's config keys say, each with its way into a GGUF and back: flags, numbers, rotations.

Keys may lie in a section ("attn_config.clip_qkv"). null means what absence means.
Left out: the keys that every family has (family.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pigguf.common.config import Config
from pigguf.errors import UnsupportedModel
from pigguf.gguf_io.metadata import Kind, Typed, f32, shortest_f32

_TYPES: dict[Kind, type] = {"u32": int, "f32": float, "bool": bool, "str": str}


@dataclass(frozen=True)
class Flag:
    """A part that a model has, as a config says it.

    Attributes:
        key: a boolean key.
        default: transformers' value where it is silent.
        inverted: the key says that the part is absent.
    """

    key: str
    default: bool = False
    inverted: bool = False

    def read(self, keys: Config) -> bool:
        section, key = _located(keys, self.key)
        said = self.default if section is None else section.optional(key, bool, self.default)
        return said != self.inverted

    def write(self, config: dict[str, Any], present: bool) -> None:
        _set(config, self.key, present != self.inverted)


@dataclass(frozen=True)
class KeyRule:
    """A number or a choice that a config and a GGUF both hold.

    Attributes:
        config: its key in a config.
        gguf: its key in a GGUF, without the architecture's name before it.
        kind: its type in a GGUF.
        default: transformers' value where the config is silent; None: then the GGUF is silent too.
        to_gguf, to_config: where the two mean it differently.
    """

    config: str
    gguf: str
    kind: Kind
    default: Any = None
    to_gguf: Callable[[Any], Any] = lambda value: value
    to_config: Callable[[Any], Any] = lambda value: value

    def read(self, keys: Config) -> Typed | None:
        section, key = _located(keys, self.config)
        value = self.default
        if section is not None and key in section:
            value = section.require(key, _TYPES[self.kind])
        if value is None:
            return None
        value = self.to_gguf(value)
        return f32(value) if self.kind == "f32" else Typed(self.kind, value)

    def write(self, config: dict[str, Any], value: Any) -> None:
        value = shortest_f32(value) if self.kind == "f32" else value
        _set(config, self.config, self.to_config(value))


@dataclass(frozen=True)
class WholeHead:
    """All of a head is rotated; a config that says otherwise is refused."""

    def read(self, keys: Config, head_dim: int) -> int:
        for section, key in _places(keys, "partial_rotary_factor"):
            if section.values[key] != 1:
                raise UnsupportedModel(
                    f"{section.says(key)} asks for heads that are rotated in part",
                    "llama.cpp's graph of this family would compute something else",
                )
        return head_dim

    def write(self, config: dict[str, Any], rotary_dim: int, head_dim: int) -> None:
        """Say it in a config."""


WHOLE_HEAD = WholeHead()


@dataclass(frozen=True)
class HeadPart(WholeHead):
    """A part of a head is rotated, the first dimensions of it.

    Attributes:
        keys: the fraction's names, the newest first; they may lie in rope_parameters. All versions of
            transformers know the last one.
        default: transformers' fraction where the config is silent.
    """

    keys: tuple[str, ...] = ("partial_rotary_factor",)
    default: float = 1.0

    def read(self, keys: Config, head_dim: int) -> int:
        said = [section.require(key, float) for name in self.keys for section, key in _places(keys, name)]
        return int(head_dim * (said[0] if said else self.default))

    def write(self, config: dict[str, Any], rotary_dim: int, head_dim: int) -> None:
        config[self.keys[-1]] = rotary_dim / head_dim
        config["rope_parameters"]["partial_rotary_factor"] = rotary_dim / head_dim


@dataclass(frozen=True)
class HeadDimensions(WholeHead):
    """So many dimensions of a head are rotated, the first ones."""

    key: str = "rotary_dim"
    default: int = 64

    def read(self, keys: Config, head_dim: int) -> int:
        return keys.optional(self.key, int, self.default)

    def write(self, config: dict[str, Any], rotary_dim: int, head_dim: int) -> None:
        config[self.key] = rotary_dim


def own_keys(keys: Config, heads: int) -> int:
    """For families in which every query has a key of its own."""
    return heads


def four_times(width: int) -> int:
    """The usual width of a feed-forward where a config does not give it."""
    return 4 * width


def no_window(keys: Config) -> int | None:
    """For families that look at no sliding_window."""
    return None


def stated_window(keys: Config) -> int | None:
    """For families without a sliding window unless the config gives one."""
    return keys.require("sliding_window", int) if "sliding_window" in keys else None


def stated(keys: Config, key: str) -> bool:
    """Whether a config has a key that may also lie in its scaling of positions."""
    return bool(_places(keys, key))


def _places(keys: Config, key: str) -> list[tuple[Config, str]]:
    """Where a config has a key: at the top, or in its scaling of positions, of which there may be one for
    each type of layer (where the base of sliding layers has the name of any base)."""
    scalings = [keys.section(name) for name in ("rope_parameters", "rope_scaling")]
    of_layers = "sliding_attention" if key == "rope_local_base_freq" else "full_attention"
    nested = [scaling.section(of_layers) for scaling in scalings if scaling is not None]
    name = "rope_theta" if key == "rope_local_base_freq" else key
    places = [
        (keys, key),
        *((scaling, key) for scaling in scalings),
        *((section, name) for section in nested),
    ]
    return [(section, key) for section, key in places if section is not None and key in section]


def _located(keys: Config, path: str) -> tuple[Config | None, str]:
    """The section that a dotted key lies in (None: there is none), and its name there."""
    section: Config | None = keys
    *outer, key = path.split(".")
    for name in outer:
        section = None if section is None else section.section(name)
    return section, key


def _set(config: dict[str, Any], path: str, value: Any) -> None:
    *outer, key = path.split(".")
    for name in outer:
        config = config.setdefault(name, {})
    config[key] = value
