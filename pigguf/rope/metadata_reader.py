"""GGUF metadata and tensors -> positions, as llama.cpp reads them.

Not here: whether the model was trained with these positions (pigguf.operations.lint).
"""

from __future__ import annotations

from collections.abc import Mapping

from pigguf.errors import GGUFError
from pigguf.gguf_io.metadata import FOREIGN_FILE_HINT, Metadata, require_value
from pigguf.llama_cpp_internals.graph_inputs import (
    ALIBI_ARCHITECTURES,
    ALIBI_LAYER_COUNTS,
    LEARNED_POSITION_ARCHITECTURES,
)
from pigguf.rope.alibi import AlibiPositions
from pigguf.rope.gguf_keys import read_rope_keys
from pigguf.rope.learned_positions import LearnedPositions
from pigguf.rope.linear import LinearScaling
from pigguf.rope.llama3 import Llama3Scaling
from pigguf.rope.longrope import LONG_FACTORS, SHORT_FACTORS, LongRopeScaling
from pigguf.rope.positions import Positions
from pigguf.rope.rope_scaling import ROPE_FREQS, FreqFactors, RopeScaling
from pigguf.rope.unscaled import UnscaledRope
from pigguf.rope.yarn import YarnScaling

# The small tensors that scale frequencies.
POSITION_TENSORS = (ROPE_FREQS, LONG_FACTORS, SHORT_FACTORS)


def rope_from_metadata(
    metadata: Metadata, architecture: str, tensors: Mapping[str, FreqFactors] | None = None
) -> Positions:
    """Return the positions of a GGUF as llama.cpp reads them (src/llama-model.cpp, load_hparams).

    Missing keys: rope_theta 10000, type linear, factor 1 (or the legacy scale_linear), original context =
    context length. A GGUF may state the original context length instead of the extended one; it is returned
    as it is (see RopeScaling.context_matches_factor).

    Args:
        metadata: the file's keys.
        architecture: general.architecture.
        tensors: the values of those POSITION_TENSORS that the file has. Without them Llama 3's scaling looks
            unscaled, and LongRoPE's has no factors.

    Raises:
        GGUFError: a key is missing, of a type that llama.cpp does not take, or names a rope type on which
            llama.cpp aborts.
    """
    if architecture in LEARNED_POSITION_ARCHITECTURES:
        context_length = _read_context_length(metadata, architecture)
        return LearnedPositions(original_context=context_length, context_length=context_length)
    if _has_alibi(metadata, architecture):
        return AlibiPositions(context_length=_read_context_length(metadata, architecture))
    return _read_rope_scaling(metadata, architecture, tensors or {})


def _read_rope_scaling(
    metadata: Metadata, architecture: str, tensors: Mapping[str, FreqFactors]
) -> RopeScaling:
    keys = read_rope_keys(metadata, architecture, tensors)
    # Phi-3's graph reads the two lists without a type.
    has_long_factors = bool(tensors.keys() & {SHORT_FACTORS, LONG_FACTORS})
    if keys.rope_type == "longrope" or (keys.rope_type == "none" and has_long_factors):
        return LongRopeScaling.from_gguf(keys)
    if keys.rope_type == "none" and ROPE_FREQS in tensors:
        llama3 = Llama3Scaling.from_gguf(keys)
        if llama3 is not None:
            return llama3
    if keys.rope_type == "yarn":
        return YarnScaling.from_gguf(keys)
    if keys.rope_type == "linear":
        return LinearScaling.from_gguf(keys)
    return UnscaledRope.from_gguf(keys)


def _has_alibi(metadata: Metadata, architecture: str) -> bool:
    if architecture in ALIBI_LAYER_COUNTS:
        layers = require_value(metadata, f"{architecture}.block_count", int)
        return layers == ALIBI_LAYER_COUNTS[architecture]
    return architecture in ALIBI_ARCHITECTURES


def _read_context_length(metadata: Metadata, architecture: str) -> int:
    context_length = require_value(metadata, f"{architecture}.context_length", int)
    if context_length < 1:
        raise GGUFError(f"metadata key {architecture}.context_length is {context_length}", FOREIGN_FILE_HINT)
    return context_length
