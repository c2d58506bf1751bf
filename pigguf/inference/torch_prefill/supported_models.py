"""Which GGUF files PyTorch can prefill with the same results as llama.cpp, and their dimensions.

A file is supported if the meaning of each of its keys and tensors is known here, because an unknown one would
be ignored silently. Upstream: llama.cpp src/models/llama.cpp, qwen2.cpp and qwen3.cpp; src/llama-model.cpp
(llama_model_rope_type).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from pigguf.architectures.hparams import NORM_EPSILON_KEYS
from pigguf.errors import GGUFError
from pigguf.gguf_io import GGUFFile
from pigguf.gguf_io.metadata import get_value, require_value
from pigguf.llama_cpp_internals.graph_inputs import INTERLEAVED_ROPE
from pigguf.quantization.ggml_kernels import FLOAT_DTYPES, QUANTIZED_TYPES
from pigguf.rope import LinearScaling, Positions, UnscaledRope, YarnScaling
from pigguf.rope.rope_scaling import ROPE_FREQS
from pigguf.rope.yarn import BETA_FAST, BETA_SLOW

ROPE_CLASSES = (UnscaledRope, LinearScaling, YarnScaling)

_KNOWN_KEYS = frozenset(
    {
        *("block_count", "context_length", "embedding_length", "feed_forward_length", "vocab_size"),
        *(
            "attention.head_count",
            "attention.head_count_kv",
            "attention.key_length",
            "attention.value_length",
        ),
        *("rope.dimension_count", "rope.freq_base", "rope.scale_linear", NORM_EPSILON_KEYS["rms"]),
        *("rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_context_length"),
        *("rope.scaling.attn_factor", "rope.scaling.finetuned"),
    }
)
_MATRICES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
_LAYER_TENSORS = frozenset({"attn_norm.weight", "ffn_norm.weight", *(f"{name}.weight" for name in _MATRICES)})
_QKV_BIASES = frozenset({"attn_q.bias", "attn_k.bias", "attn_v.bias"})
_EMBEDDING = "token_embd.weight"
_OUTPUT_TENSORS = frozenset(
    {"output_norm.weight", "output.weight", "output.bias"}
)  # only for logits, which llama.cpp computes


@dataclass(frozen=True)
class SupportedGraph:
    """What an architecture's graph has in addition to the common tensors.

    Attributes:
        required, optional: more tensors of a layer.
        freq_factors: it reads rope_freqs.weight.
    """

    required: frozenset[str] = frozenset()
    optional: frozenset[str] = frozenset()
    freq_factors: bool = False


SUPPORTED_GRAPHS = {
    "llama": SupportedGraph(
        optional=_QKV_BIASES | {"attn_output.bias", "ffn_gate.bias", "ffn_up.bias", "ffn_down.bias"},
        freq_factors=True,
    ),
    "qwen2": SupportedGraph(required=_QKV_BIASES),
    "qwen3": SupportedGraph(required=frozenset({"attn_q_norm.weight", "attn_k_norm.weight"})),
}


@dataclass(frozen=True)
class ModelShape:
    """A model's dimensions, and its style of RoPE.

    Attributes:
        n_layer: layers.
        n_embd: the embedding dimension.
        n_ff: the feed-forward dimension.
        n_head, n_head_kv: query heads, and key and value heads.
        head_dim: dimensions of a head.
        rms_eps: epsilon of the RMS norms.
        interleaved: RoPE rotates interleaved pairs (GPT-J style); otherwise halves (rotate_half, NeoX style).
    """

    n_layer: int
    n_embd: int
    n_ff: int
    n_head: int
    n_head_kv: int
    head_dim: int
    rms_eps: float
    interleaved: bool

    @property
    def gqa_group(self) -> int:
        """Query heads that share a key head."""
        return self.n_head // self.n_head_kv

    @property
    def layer_elements(self) -> int:
        """Elements of the matrices of one layer."""
        return self.n_embd * ((2 * self.n_head + 2 * self.n_head_kv) * self.head_dim + 3 * self.n_ff)


def read_model_shape(file: GGUFFile, rope: Positions) -> ModelShape | None:
    """Return the dimensions of a supported model, or None for one that only llama.cpp can prefill.

    Args:
        file: a header that `check_loadable` has checked.
        rope: the positions in effect.
    """
    graph = SUPPORTED_GRAPHS.get(file.architecture)
    if (
        graph is None
        or not _is_supported_rope(rope)
        or not (_has_only_known_keys(file) and _has_known_tensors(file, graph))
    ):
        return None
    try:
        return _read_dimensions(file)
    except GGUFError:  # one number per layer instead of one for all
        return None


def _is_supported_rope(rope: Positions) -> bool:
    if not isinstance(rope, ROPE_CLASSES) or rope.other_parameters or rope.local_rope_theta is not None:
        return False
    return not isinstance(rope, YarnScaling) or (rope.beta_fast, rope.beta_slow) == (BETA_FAST, BETA_SLOW)


def _has_only_known_keys(file: GGUFFile) -> bool:
    prefix = f"{file.architecture}."
    own = {key.removeprefix(prefix) for key in file.metadata if key.startswith(prefix)}
    return own <= _KNOWN_KEYS


def _has_known_tensors(file: GGUFFile, graph: SupportedGraph) -> bool:
    """Return whether all tensors are the graph's, no layer lacks one, and their types can be dequantized."""
    layers: dict[str, set[str]] = {}
    others = set()
    for name in file.tensors:
        match = re.fullmatch(r"blk\.(\d+)\.(.+)", name)
        if match:
            layers.setdefault(match[1], set()).add(match[2])
        else:
            others.add(name)
    required = _LAYER_TENSORS | graph.required
    allowed = _OUTPUT_TENSORS | {_EMBEDDING} | ({ROPE_FREQS} if graph.freq_factors else set())
    return (
        _EMBEDDING in others
        and others <= allowed
        and all(required <= names <= required | graph.optional for names in layers.values())
        and all(
            tensor.type in FLOAT_DTYPES or tensor.type in QUANTIZED_TYPES for tensor in file.tensors.values()
        )
    )


def _read_dimensions(file: GGUFFile) -> ModelShape | None:
    """Return the dimensions, or None if a matrix has another shape than they imply.

    Raises:
        GGUFError: a key is missing or is not a single number.
    """
    prefix = file.architecture
    n_layer = require_value(file.metadata, f"{prefix}.block_count", int)
    n_embd = require_value(file.metadata, f"{prefix}.embedding_length", int)
    n_head = require_value(file.metadata, f"{prefix}.attention.head_count", int)
    n_head_kv = get_value(file.metadata, f"{prefix}.attention.head_count_kv", int, n_head) or n_head
    n_ff = require_value(file.metadata, f"{prefix}.feed_forward_length", int)
    head_dim = get_value(file.metadata, f"{prefix}.attention.key_length", int, n_embd // n_head) or 0
    rms_eps = require_value(file.metadata, f"{prefix}.{NORM_EPSILON_KEYS['rms']}", float)
    interleaved = INTERLEAVED_ROPE[file.architecture]
    shape = ModelShape(n_layer, n_embd, n_ff, n_head, n_head_kv, head_dim, rms_eps, interleaved)
    expected = {
        "attn_q.weight": (n_head * head_dim, n_embd),
        "attn_k.weight": (n_head_kv * head_dim, n_embd),
        "attn_v.weight": (n_head_kv * head_dim, n_embd),
        "attn_output.weight": (n_embd, n_head * head_dim),
        "ffn_gate.weight": (n_ff, n_embd),
        "ffn_up.weight": (n_ff, n_embd),
        "ffn_down.weight": (n_embd, n_ff),
    }
    for layer in range(n_layer):
        for name, tensor_shape in expected.items():
            tensor = file.tensors.get(f"blk.{layer}.{name}")
            if tensor is None or tensor.shape != tensor_shape:
                return None
    return shape
