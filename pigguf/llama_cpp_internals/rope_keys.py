"""Which of llama.cpp's graphs reads which rope key or tensor; the others ignore it without a warning.

By general.architecture, read from llama.cpp's src/models/. Not here: which families have partial rotary or
sliding layers at all (pigguf/architectures/).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from pigguf.errors import UnsupportedModel

# Values of rope.scaling.type; any other aborts the process (src/llama-model.cpp, LLAMA_ROPE_SCALING_TYPES).
# Llama 3's scaling has only a tensor.
GGUF_ROPE_TYPES = ("none", "linear", "yarn", "longrope")
# Graphs that read yarn_beta_fast and yarn_beta_slow; the others compute YaRN with these values.
YARN_BETA_ARCHITECTURES = ("grok", "mistral3")
DEFAULT_YARN_BETAS = {"yarn_beta_fast": 32, "yarn_beta_slow": 1}
# Graphs that read rope_freqs.weight (Llama 3), and rope_factors_long.weight and _short.weight (LongRoPE).
FREQ_FACTORS_ARCHITECTURES = {
    "llama3": (
        *("llama", "arcee", "apertus", "deci", "exaone", "exaone4", "granite", "granitemoe", "granitehybrid"),
        *("llada", "llama4", "minicpm", "mistral3", "pangu-embedded", "refact"),
    ),
    "longrope": (
        *("llama", "apertus", "deci", "granite", "granitemoe", "minicpm", "minicpm3", "mistral3"),
        *("pangu-embedded", "phi3", "phimoe", "refact"),
    ),
}
# Graphs whose sliding layers are never scaled (rope_freq_scale_train_swa is 1), and the rope theta of these
# where the file has no rope.freq_base_swa; None is that of the other layers.
UNSCALED_SLIDING = {"gemma3": 10000.0, "gemma3n": 10000.0, "gemma-embedding": 10000.0, "olmo2": None}
NOT_READ = "the file would run with other positions than the model was trained with"


class RopeParameters(Protocol):
    """The part of a pigguf.rope.RopeScaling that graphs may or may not read."""

    @property
    def rope_type(self) -> str:
        """The rope type, "yarn"."""

    @property
    def factor(self) -> float:
        """The scaling factor."""

    @property
    def local_rope_theta(self) -> float | None:
        """The rope theta of sliding layers, where it is another."""

    @property
    def parameters(self) -> Mapping[str, Any]:
        """The rope type's further parameters."""


def check_rope_supported(rope: RopeParameters, architecture: str) -> None:
    """Raise if llama.cpp's graph of an architecture would ignore a part of a rope scaling.

    Raises:
        UnsupportedModel: the message names what is ignored.
    """
    ignored = _ignored_part(rope, architecture)
    if ignored:
        raise UnsupportedModel(f"llama.cpp's {architecture} graph {ignored}", NOT_READ)


def _ignored_part(rope: RopeParameters, architecture: str) -> str | None:
    """Return what the graph does instead of what `rope` asks for, or None if it does all of it."""
    scaled, factor = rope.rope_type != "none", f"{rope.factor:g}"
    if architecture not in FREQ_FACTORS_ARCHITECTURES.get(rope.rope_type, (architecture,)):
        return f"does not support {rope.rope_type} rope scaling"
    for key, default in DEFAULT_YARN_BETAS.items():
        if key in rope.parameters and architecture not in YARN_BETA_ARCHITECTURES:
            wanted = f"{key.removeprefix('yarn_')} = {rope.parameters[key]:g}"
            return f"computes YaRN with {default} instead of {wanted}"
    if rope.local_rope_theta is None:
        if scaled and UNSCALED_SLIDING.get(architecture):
            return f"never scales sliding layers, and these are scaled by {factor} too"
        return None
    if scaled and architecture not in UNSCALED_SLIDING:
        return f"scales sliding layers like all others, and these are not scaled by {factor}"
    if "attn_factor" in rope.parameters:
        return f"scales attention by {rope.parameters['attn_factor']:g} in sliding layers too"
    return None
