"""Positions: any way in which a model encodes the positions of tokens."""

from __future__ import annotations

from pigguf.rope.alibi import AlibiPositions
from pigguf.rope.learned_positions import LearnedPositions
from pigguf.rope.rope_scaling import RopeScaling

Positions = RopeScaling | LearnedPositions | AlibiPositions
