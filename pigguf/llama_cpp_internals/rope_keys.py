"""Graphs: which of llama.cpp's read what positions say, where others pass over it in silence.

By general.architecture, read from llama.cpp's src/models/: which graph asks for which key and tensor.
Left out: whether a family may be rotated in part or has sliding layers at all (arch/).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pigguf.errors import UnsupportedModel

if TYPE_CHECKING:
    from pigguf.rope.scaling import RopeScaling

BETA_GRAPHS = ("grok", "mistral3")
DIVISOR_GRAPHS = {
    "llama3": (
        *("llama", "arcee", "apertus", "deci", "exaone", "exaone4", "granite", "granitemoe", "granitehybrid"),
        *("llada", "llama4", "minicpm", "mistral3", "pangu-embedded", "refact"),
    ),
    "longrope": (
        *("llama", "apertus", "deci", "granite", "granitemoe", "minicpm", "minicpm3", "mistral3"),
        *("pangu-embedded", "phi3", "phimoe", "refact"),
    ),
}
# Graphs whose sliding layers are never scaled, and the base that these have where no key gives it.
UNSCALED_SLIDING = {"gemma3": 10000.0, "gemma3n": 10000.0, "gemma-embedding": 10000.0, "olmo2": None}
NOT_READ = "the file would run with other positions than the model was trained with"


def refuse_unread(rope: RopeScaling, architecture: str) -> None:
    """Refuse what llama.cpp's graph of an architecture would pass over.

    Raises:
        UnsupportedModel: naming it.
    """
    what = _unread(rope, architecture)
    if what:
        raise UnsupportedModel(f"llama.cpp's {architecture} graph {what}", NOT_READ)


def _unread(rope: RopeScaling, architecture: str) -> str | None:
    scaled, factor = rope.rope_type != "none", f"{rope.factor:g}"
    if architecture not in DIVISOR_GRAPHS.get(rope.rope_type, (architecture,)):
        return f"has no rope scaling of kind {rope.rope_type}"
    for key, always in (("yarn_beta_fast", 32), ("yarn_beta_slow", 1)):
        if key in rope.parameters and architecture not in BETA_GRAPHS:
            said = f"{key.removeprefix('yarn_')} = {rope.parameters[key]:g}"
            return f"computes YaRN with {always} in place of {said}"
    if rope.local_rope_theta is None:
        if scaled and UNSCALED_SLIDING.get(architecture):
            return f"never scales sliding layers, and these are scaled by {factor} too"
        return None
    if scaled and architecture not in UNSCALED_SLIDING:
        return f"scales sliding layers as all others, and these are not scaled by {factor}"
    if "attn_factor" in rope.parameters:
        return f"scales attention by {rope.parameters['attn_factor']:g} in sliding layers too"
    return None
