"""Positions: what a checkpoint says of rotary embeddings -> RopeScaling -> GGUF keys, and back.

Position Interpolation (arXiv 2306.15595) reads position m as m / factor, where
factor = extended window / original window; RoPE then turns pair i of a head of size d by
m / factor * base^(-2i/d). That is metadata and no weight: four numbers (factor, base, original and
extended context length), decided from all that a checkpoint says. Other kinds of scaling divide
frequencies unevenly; they have a few numbers more, and some a small tensor.

    evidence.py   every dialect: what each key of a config says, by itself
    kinds.py      every kind of scaling: its names, its keys, what llama.cpp cannot express
    known.py      known_models.json: models whose config is silent, and what their names tell
    decision.py   read_rope: what the evidence says together, or a RopeConflict
    frequencies.py  what the kinds make of frequencies, as numbers and as tensors
    scaling.py    RopeScaling, the result, written as GGUF keys and tensors, and as config keys
    from_gguf.py  rope_from_metadata: the same, read from a file
    graphs.py     which of llama.cpp's graphs read what
    tables.py     positions that are no rotation: a learned table, which is resampled, and ALiBi

Evidence that contradicts itself stops the work, and so does a scheme that cannot be written;
nothing is dropped with a warning. docs/rope.md tells it to people.

Left out: partial rotation, which is the family's business (arch/), and scaling that changes with the
length of a text, which a GGUF cannot say: dynamic NTK is fixed to the base of a chosen window.
"""

from pigguf.rope.decision import read_rope
from pigguf.rope.evidence import RopeOverrides
from pigguf.rope.frequencies import POSITION_TENSORS
from pigguf.rope.from_gguf import rope_from_metadata
from pigguf.rope.scaling import Evidence, RopeScaling
from pigguf.rope.unrotated import (
    INTERPOLATIONS,
    AlibiPositions,
    LearnedPositions,
    read_alibi,
    read_learned,
)

__all__ = [
    "INTERPOLATIONS",
    "POSITION_TENSORS",
    "AlibiPositions",
    "Evidence",
    "LearnedPositions",
    "RopeOverrides",
    "RopeScaling",
    "read_alibi",
    "read_learned",
    "read_rope",
    "rope_from_metadata",
]
