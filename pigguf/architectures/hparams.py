"""HParams: the shape of a model, as GGUF's keys name it.

Keys and their meaning: llama.cpp src/llama-model.cpp (load_hparams) and gguf-py constants.py.
Left out: tensor names, and what differs between families (arch/).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from pigguf.gguf_io.metadata import Typed, f32, u32
from pigguf.rope import RopeScaling

Norm = Literal["rms", "layer"]

UNTIED = "untied"  # the part that every family has: an output matrix of its own

EPSILON_KEYS: dict[Norm, str] = {
    "rms": "attention.layer_norm_rms_epsilon",
    "layer": "attention.layer_norm_epsilon",
}


@dataclass(frozen=True)
class HParams:
    """A decoder-only transformer.

    Attributes:
        architecture: general.architecture, the graph llama.cpp builds: "llama", "qwen2".
        hf_class: the transformers class, as `architectures` names it.
        layers: decoder layers.
        embedding_length: width of a token's vector.
        feed_forward_length: inner width of the feed-forward, of one expert's where there are experts.
        heads, kv_heads: query heads; key and value heads, each shared by heads / kv_heads queries.
        head_dim: width of a head.
        rotary_dim: how many dimensions of a head are rotated; 0 where positions are no rotation.
        vocab_size: rows of the embedding and of the output matrix.
        norm_epsilon: what norms add under the root.
        rope: positions.
        norm: which norms.
        parts: which of the family's optional parts it has ("untied": an output matrix of its own).
        experts: feed-forwards a layer chooses from; 0 where there is but one.
        parameters: keys of the family's own, without the architecture's name before them.
    """

    architecture: str
    hf_class: str
    layers: int
    embedding_length: int
    feed_forward_length: int
    heads: int
    kv_heads: int
    head_dim: int
    rotary_dim: int
    vocab_size: int
    norm_epsilon: float
    rope: RopeScaling
    norm: Norm = "rms"
    parts: frozenset[str] = frozenset()
    experts: int = 0
    parameters: Mapping[str, Typed] = field(default_factory=dict)

    @property
    def tied_embeddings(self) -> bool:
        """Whether the output matrix is the embedding, and is not stored."""
        return not self.has(UNTIED)

    def has(self, part: str) -> bool:
        """Whether the model has an optional part; "!part" asks whether it lacks it, "" is always there."""
        if part.startswith("!"):
            return part[1:] not in self.parts
        return not part or part in self.parts

    def metadata(self) -> dict[str, Typed]:
        """Every {architecture}.* key of the GGUF, those of rope included."""
        keys = {
            "block_count": u32(self.layers),
            "embedding_length": u32(self.embedding_length),
            "feed_forward_length": u32(self.feed_forward_length),
            "attention.head_count": u32(self.heads),
            "attention.head_count_kv": u32(self.kv_heads),
            EPSILON_KEYS[self.norm]: f32(self.norm_epsilon),
            "vocab_size": u32(self.vocab_size),
        }
        if self.rotary_dim:
            keys["rope.dimension_count"] = u32(self.rotary_dim)
        if self.head_dim * self.heads != self.embedding_length:
            keys["attention.key_length"] = u32(self.head_dim)
            keys["attention.value_length"] = u32(self.head_dim)
        if self.experts:
            keys["expert_count"] = u32(self.experts)
        keys |= self.parameters
        own = {f"{self.architecture}.{key}": value for key, value in keys.items()}
        return {**own, **self.rope.to_gguf(self.architecture)}
