"""Positions: what a checkpoint says of rotary embeddings -> RopeScaling -> GGUF keys, and back.

Position Interpolation (arXiv 2306.15595) reads position m as m / factor, where
factor = extended window / original window; RoPE then turns pair i of a head of size d by
m / factor * base^(-2i/d). That is metadata and no weight: four numbers (factor, base, original and
extended context length), decided from all that a checkpoint says.

    evidence.py   every dialect: what each key of a config says, by itself
    decision.py   read_rope: what the evidence says together, or a RopeConflict
    scaling.py    RopeScaling, the result; its GGUF keys and its config keys, written and read
    tables.py     positions that are no rotation: a learned table, which is resampled, and ALiBi

Evidence that contradicts itself stops the work, and so does a scheme that cannot be written;
nothing is dropped with a warning. docs/rope.md tells it to people.

Left out: writing any kind but linear and none. YaRN and LongRoPE in a GGUF are read, to be shown.
"""

from pigguf.rope.decision import read_rope
from pigguf.rope.evidence import RopeOverrides
from pigguf.rope.scaling import Evidence, RopeScaling, rope_from_metadata
from pigguf.rope.tables import AlibiPositions, LearnedPositions, read_alibi, read_learned

__all__ = [
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
