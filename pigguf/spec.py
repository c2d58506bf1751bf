"""ModelSpec: the shape of a model, as GGUF's keys name it.

Keys and their meaning: llama.cpp src/llama-model.cpp (load_hparams) and gguf-py constants.py.
Left out: tensor names, and what differs between families (arch/).
"""

from __future__ import annotations

from dataclasses import dataclass

from pigguf.metadata import Typed, f32, u32
from pigguf.rope import RopeScaling


@dataclass(frozen=True)
class ModelSpec:
    """A decoder-only transformer with rotary positions, RMS norms and a gated feed-forward.

    Attributes:
        architecture: general.architecture, the graph llama.cpp builds: "llama", "qwen2".
        hf_class: the transformers class, as `architectures` names it.
        layers: decoder layers.
        embedding_length: width of a token's vector.
        feed_forward_length: inner width of the feed-forward.
        heads, kv_heads: query heads; key and value heads, each shared by heads / kv_heads queries.
        head_dim: width of a head, all of it rotated.
        vocab_size: rows of the embedding and of the output matrix.
        norm_epsilon: what RMS norms add under the root.
        tied_embeddings: the output matrix is the embedding and is not stored.
        attention_bias, mlp_bias: the projections have biases, as far as the family has them.
        rope: positions.
    """

    architecture: str
    hf_class: str
    layers: int
    embedding_length: int
    feed_forward_length: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    norm_epsilon: float
    tied_embeddings: bool
    attention_bias: bool
    mlp_bias: bool
    rope: RopeScaling

    def metadata(self) -> dict[str, Typed]:
        """Every {architecture}.* key of the GGUF, those of rope included."""
        keys = {
            "block_count": u32(self.layers),
            "embedding_length": u32(self.embedding_length),
            "feed_forward_length": u32(self.feed_forward_length),
            "attention.head_count": u32(self.heads),
            "attention.head_count_kv": u32(self.kv_heads),
            "attention.layer_norm_rms_epsilon": f32(self.norm_epsilon),
            "vocab_size": u32(self.vocab_size),
            "rope.dimension_count": u32(self.head_dim),
        }
        if self.head_dim * self.heads != self.embedding_length:
            keys["attention.key_length"] = u32(self.head_dim)
            keys["attention.value_length"] = u32(self.head_dim)
        own = {f"{self.architecture}.{key}": value for key, value in keys.items()}
        return {**own, **self.rope.metadata(self.architecture)}
