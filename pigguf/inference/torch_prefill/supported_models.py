"""Graphs: which GGUF files are computed here as llama.cpp computes them, and their sizes.

A file qualifies when each of its keys and tensors is one whose meaning is known: whatever else it might
say would be passed over in silence. Upstream: llama.cpp src/models/llama.cpp, qwen2.cpp and qwen3.cpp;
src/llama-model.cpp (llama_model_rope_type).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from pigguf.architectures.hparams import EPSILON_KEYS
from pigguf.errors import GGUFError
from pigguf.gguf_io import GGUFFile
from pigguf.gguf_io.metadata import get, need
from pigguf.quantization.ggml_kernels import BLOCK_FORMATS, FLOATS
from pigguf.rope import RopeScaling
from pigguf.rope.frequencies import FREQUENCIES

ROPE_KINDS = ("none", "linear", "yarn")

_KEYS = frozenset(
    {
        *("block_count", "context_length", "embedding_length", "feed_forward_length", "vocab_size"),
        *(
            "attention.head_count",
            "attention.head_count_kv",
            "attention.key_length",
            "attention.value_length",
        ),
        *("rope.dimension_count", "rope.freq_base", "rope.scale_linear", EPSILON_KEYS["rms"]),
        *("rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_context_length"),
        *("rope.scaling.attn_factor", "rope.scaling.finetuned"),
    }
)
_MATRICES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
_LAYER = frozenset({"attn_norm.weight", "ffn_norm.weight", *(f"{name}.weight" for name in _MATRICES)})
_QKV_BIASES = frozenset({"attn_q.bias", "attn_k.bias", "attn_v.bias"})
_EMBEDDING = "token_embd.weight"
_ENDS = frozenset({"output_norm.weight", "output.weight", "output.bias"})  # the last token's, llama.cpp's


@dataclass(frozen=True)
class Graph:
    """What an architecture's graph has beyond the common.

    Attributes:
        neighbours: a head is turned in neighbouring pairs; else the pairs lie half a head apart.
        needed, optional: tensors of a layer.
        divisors: it reads rope_freqs.weight.
    """

    neighbours: bool
    needed: frozenset[str] = frozenset()
    optional: frozenset[str] = frozenset()
    divisors: bool = False


GRAPHS = {
    "llama": Graph(
        neighbours=True,
        optional=_QKV_BIASES | {"attn_output.bias", "ffn_gate.bias", "ffn_up.bias", "ffn_down.bias"},
        divisors=True,
    ),
    "qwen2": Graph(neighbours=False, needed=_QKV_BIASES),
    "qwen3": Graph(neighbours=False, needed=frozenset({"attn_q_norm.weight", "attn_k_norm.weight"})),
}


@dataclass(frozen=True)
class Shape:
    """A model's sizes, and how its heads are turned.

    Attributes:
        layers, width, inner: of the model, of a token's vector, of the feed-forward.
        heads, kv_heads, head_dim: of attention.
        epsilon: what norms add under the root.
        neighbours: as in Graph.
    """

    layers: int
    width: int
    inner: int
    heads: int
    kv_heads: int
    head_dim: int
    epsilon: float
    neighbours: bool

    @property
    def group(self) -> int:
        """Query heads that share a key head."""
        return self.heads // self.kv_heads

    @property
    def layer_elements(self) -> int:
        """Of the matrices of one layer."""
        return self.width * ((2 * self.heads + 2 * self.kv_heads) * self.head_dim + 3 * self.inner)


def read_shape(file: GGUFFile, rope: RopeScaling) -> Shape | None:
    """The sizes of a model that is computed here, or None: llama.cpp's own prefill is for the others.

    Args:
        file: a header that preflight has checked.
        rope: what is in force for positions.
    """
    graph = GRAPHS.get(file.architecture)
    if graph is None or not _is_known_rope(rope) or not (_has_known_keys(file) and _has_known(file, graph)):
        return None
    try:
        return _shape(file, graph)
    except GGUFError:  # a number a layer where one for all is looked for
        return None


def _is_known_rope(rope: RopeScaling) -> bool:
    return (
        rope.rope_type in ROPE_KINDS
        and set(rope.parameters) <= {"attn_factor"}
        and rope.local_rope_theta is None
    )


def _has_known_keys(file: GGUFFile) -> bool:
    prefix = f"{file.architecture}."
    own = {key.removeprefix(prefix) for key in file.metadata if key.startswith(prefix)}
    return own <= _KEYS


def _has_known(file: GGUFFile, graph: Graph) -> bool:
    """Whether the tensors are the graph's, every layer with all it needs, and of types that are decoded."""
    layers: dict[str, set[str]] = {}
    others = set()
    for name in file.tensors:
        found = re.fullmatch(r"blk\.(\d+)\.(.+)", name)
        if found:
            layers.setdefault(found[1], set()).add(found[2])
        else:
            others.add(name)
    needed = _LAYER | graph.needed
    allowed = _ENDS | {_EMBEDDING} | ({FREQUENCIES} if graph.divisors else set())
    return (
        _EMBEDDING in others
        and others <= allowed
        and all(needed <= names <= needed | graph.optional for names in layers.values())
        and all(tensor.type in FLOATS or tensor.type in BLOCK_FORMATS for tensor in file.tensors.values())
    )


def _shape(file: GGUFFile, graph: Graph) -> Shape | None:
    """
    Raises:
        GGUFError: a key is missing or no single number.
    """
    prefix = file.architecture
    layers = need(file.metadata, f"{prefix}.block_count", int)
    width = need(file.metadata, f"{prefix}.embedding_length", int)
    heads = need(file.metadata, f"{prefix}.attention.head_count", int)
    kv_heads = get(file.metadata, f"{prefix}.attention.head_count_kv", int, heads) or heads
    inner = need(file.metadata, f"{prefix}.feed_forward_length", int)
    head_dim = get(file.metadata, f"{prefix}.attention.key_length", int, width // heads) or 0
    epsilon = need(file.metadata, f"{prefix}.{EPSILON_KEYS['rms']}", float)
    shape = Shape(layers, width, inner, heads, kv_heads, head_dim, epsilon, graph.neighbours)
    expected = {
        "attn_q.weight": (heads * head_dim, width),
        "attn_k.weight": (kv_heads * head_dim, width),
        "attn_v.weight": (kv_heads * head_dim, width),
        "attn_output.weight": (width, heads * head_dim),
        "ffn_gate.weight": (inner, width),
        "ffn_up.weight": (inner, width),
        "ffn_down.weight": (width, inner),
    }
    found = (file.tensors.get(f"blk.{layer}.{name}") for layer in range(layers) for name in expected)
    wanted = (expected[name] for _ in range(layers) for name in expected)
    same = all(tensor and tensor.shape == size for tensor, size in zip(found, wanted, strict=True))
    return shape if same else None
