"""Positions: what a checkpoint says about them -> RopeScaling -> GGUF keys and tensors, and back.

    decision.py          read_rope: decides from all claims, or raises RopeConflict
                         (factor_decision.py, context_decision.py, conflicts.py)
    config_claims.py     what the keys of config.json claim (scaling_section.py: rope_scaling,
    rope_parameters) overrides.py         RopeOverrides: the user's numbers
    evidence.py          Evidence and Claim
    known_models.py      models whose config has no scaling (known_models.json)
    rope_scaling.py      RopeScaling, the base class of the rope types:
    unscaled.py, linear.py, yarn.py, longrope.py, llama3.py     a class each; dynamic_ntk.py is converted to
    unscaled rope_types.py        the rope types by their names in configs
    metadata_reader.py   rope_from_metadata: positions of a GGUF (gguf_keys.py: its keys)
    learned_positions.py, alibi.py     positions that are not rotary (non_rotary_positions.py: in common)
    positions.py         Positions: any of them

Claims that contradict each other stop a conversion, and so does a scheme that cannot be converted; nothing is
dropped with a warning. docs/rope.md explains it to users. Not here: partial rotary (pigguf.architectures).
"""

from pigguf.rope.alibi import AlibiPositions, read_alibi
from pigguf.rope.decision import read_rope
from pigguf.rope.evidence import Evidence
from pigguf.rope.learned_positions import INTERPOLATIONS, LearnedPositions, read_learned_positions
from pigguf.rope.linear import LinearScaling
from pigguf.rope.llama3 import Llama3Scaling
from pigguf.rope.longrope import LongRopeScaling
from pigguf.rope.metadata_reader import POSITION_TENSORS, rope_from_metadata
from pigguf.rope.overrides import RopeOverrides
from pigguf.rope.positions import Positions
from pigguf.rope.rope_scaling import RopeScaling
from pigguf.rope.unscaled import UnscaledRope
from pigguf.rope.yarn import YarnScaling

__all__ = [
    "INTERPOLATIONS",
    "POSITION_TENSORS",
    "AlibiPositions",
    "Evidence",
    "LearnedPositions",
    "LinearScaling",
    "Llama3Scaling",
    "LongRopeScaling",
    "Positions",
    "RopeOverrides",
    "RopeScaling",
    "UnscaledRope",
    "YarnScaling",
    "read_alibi",
    "read_learned_positions",
    "read_rope",
    "rope_from_metadata",
]
