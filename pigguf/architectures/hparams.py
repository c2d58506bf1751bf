"""HParams: the hyperparameters of a model, named after GGUF's keys.

Source: llama.cpp src/llama-model.cpp (load_hparams) and gguf-py constants.py. Not here: tensor names, and
what differs between families (family.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from pigguf.gguf_io.metadata import TypedValue, f32, u32
from pigguf.rope import Positions

NormType = Literal["rms", "layer"]

UNTIED = "untied"  # the optional feature of every family: an output matrix of its own

NORM_EPSILON_KEYS: dict[NormType, str] = {
    "rms": "attention.layer_norm_rms_epsilon",
    "layer": "attention.layer_norm_epsilon",
}


@dataclass(frozen=True)
class HParams:
    """The hyperparameters of a decoder-only transformer.

    Attributes:
        architecture: general.architecture, the graph that llama.cpp builds: "llama", "qwen2".
        hf_class: the transformers class, as `architectures` in config.json names it.
        layers: number of decoder layers (n_layer).
        embedding_length: size of a token's hidden state (n_embd).
        feed_forward_length: inner size of the feed-forward (n_ff), or of one expert's.
        heads: number of query heads (n_head).
        kv_heads: number of key and value heads (n_head_kv), each shared by heads / kv_heads query heads.
        head_dim: dimensions of a head.
        rotary_dim: rotated dimensions of a head (n_rot); 0 if positions are not rotary.
        vocab_size: rows of the embedding and of the output matrix (n_vocab).
        norm_epsilon: the epsilon of the norms.
        rope: the positions: rotary, learned or ALiBi.
        norm_type: RMS norm or layer norm.
        features: the family's optional features that it has ("untied": an output matrix of its own).
        experts: number of experts of a layer; 0 if it is not a mixture of experts.
        extra_keys: GGUF keys that only this family has, without the architecture's prefix.
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
    rope: Positions
    norm_type: NormType = "rms"
    features: frozenset[str] = frozenset()
    experts: int = 0
    extra_keys: Mapping[str, TypedValue] = field(default_factory=dict)

    @property
    def tied_embeddings(self) -> bool:
        """Whether the embedding is also the output matrix, which is then not stored."""
        return not self.has_feature(UNTIED)

    def has_feature(self, feature: str) -> bool:
        """Return whether the model has an optional feature.

        Args:
            feature: its name; "!name" asks whether the model lacks it, "" is always true.
        """
        if feature.startswith("!"):
            return feature[1:] not in self.features
        return not feature or feature in self.features

    def to_metadata(self) -> dict[str, TypedValue]:
        """Return every {architecture}.* key of the GGUF, including those of positions."""
        keys = {
            "block_count": u32(self.layers),
            "embedding_length": u32(self.embedding_length),
            "feed_forward_length": u32(self.feed_forward_length),
            "attention.head_count": u32(self.heads),
            "attention.head_count_kv": u32(self.kv_heads),
            NORM_EPSILON_KEYS[self.norm_type]: f32(self.norm_epsilon),
            "vocab_size": u32(self.vocab_size),
        }
        if self.rotary_dim:
            keys["rope.dimension_count"] = u32(self.rotary_dim)
        if self.head_dim * self.heads != self.embedding_length:
            keys["attention.key_length"] = u32(self.head_dim)
            keys["attention.value_length"] = u32(self.head_dim)
        if self.experts:
            keys["expert_count"] = u32(self.experts)
        keys |= self.extra_keys
        prefixed = {f"{self.architecture}.{key}": value for key, value in keys.items()}
        return {**prefixed, **self.rope.to_gguf(self.architecture)}
