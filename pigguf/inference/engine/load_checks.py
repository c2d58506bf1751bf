"""What llama.cpp would abort the whole process on, refused before it sees the file.

`gguf_file.read_header` has checked the container: every length, offset, type number and shape. This
checks what the numbers mean to the loader and the graph, for the architectures in ARCHITECTURES.
What the loader itself answers with a plain failure (a missing tensor, a wrong shape, a key of the
wrong type) is left to it.

Upstream, where the GGML_ASSERT or the uncaught exception stands: llama.cpp src/llama-model.cpp
(load_hparams), src/models/ (graphs), src/llama-vocab.cpp (load, byte_to_token,
find_bpe_rank), src/llama-context.cpp (decode), ggml/src/ggml.c and ggml-cpu/ops.cpp (operators).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from pigguf.architectures import FAMILIES
from pigguf.architectures.family import MAX_EXPERTS, MAX_LAYERS, PATTERN_KEY, WINDOW_KEY
from pigguf.architectures.hparam_rules import WHOLE_HEAD
from pigguf.architectures.hparams import EPSILON_KEYS
from pigguf.errors import GGUFError, UnsupportedModel
from pigguf.gguf_io import GGUFFile, TensorType
from pigguf.gguf_io.metadata import elements, get, need
from pigguf.rope import rope_from_metadata
from pigguf.rope.scaling import GGUF_KINDS

ARCHITECTURES = tuple(dict.fromkeys(family.architecture for family in FAMILIES))

# Of a layer with experts, beside two for each one used; llama-context.cpp (graph_max_nodes) counts on fewer.
_LAYER_NODES = 64
TOKENIZER_MODELS = ("llama", "gpt2")
# Pre-tokenizers of other architectures: one asserts on two blanks, one recurses once a word.
_UNSAFE_PRE_TOKENIZERS = ("whitespace", "exaone-moe")

# Graphs whose heads may be of another width than embedding length / heads; others reshape what is not there.
_FREE_HEADS = ("llama", "qwen3", "gemma", "gemma2", "gemma3", "granite", "smollm3")
# Graphs with sliding layers: of so many layers the last does not slide, where the file does not say.
_SLIDING_PERIODS = {"gemma2": 2, "gemma3": 6, "olmo2": 4}
_SLIDING_WINDOWS = {"gemma2": 4096}  # where the file gives none; other graphs then have no sliding layers
_OF_SLIDING_LAYERS = ("attention.key_length", "attention.value_length", "rope.dimension_count")
# The graph that takes a layer without any queries, keys and values to be of another sort, and has no other.
_UNCHECKED_ATTENTION = ("phi3",)
# Tensors that a graph reads and cannot compute with.
_UNCOMPUTED = {"mpt": "attn_q_norm.weight"}

# Types that no matrix product of ggml takes as weights.
_NOT_WEIGHTS = frozenset(
    {
        *(TensorType.I8, TensorType.I16, TensorType.I32, TensorType.I64, TensorType.F64),
        *(TensorType.Q8_1, TensorType.Q8_K),
    }
)

# Tensors that are added or multiplied element by element: ggml's CPU operators take them in F32 only.
_ELEMENTWISE_ENDINGS = ("_norm.weight", ".bias", ".scale", ".input_scale", "rope_freqs.weight")


@dataclass(frozen=True)
class Dimensions:
    """The sizes the engine works with, checked.

    Attributes:
        layers, embedding_length: of the model.
        head_length: dimensions of a head, of keys and values alike.
        kv_heads: heads in the KV cache, layer by layer.
    """

    layers: int
    embedding_length: int
    head_length: int
    kv_heads: tuple[int, ...]


def check(file: GGUFFile) -> Dimensions:
    """Refuse a file that llama.cpp would not survive, and tell the sizes of one that it does.

    Raises:
        GGUFError: a value that cannot be; the message names the file, the key and the value.
        UnsupportedModel: an architecture or tokenizer the engine does not run.
    """
    _check_architecture(file)
    keys = _Keys(file)
    try:
        _check_sizes(keys)
        head_length, kv_heads = _check_heads(keys)
        _check_sliding_layers(keys, head_length)
        _check_positions(keys)
        _check_experts(keys, len(file.tensors))
        _check_vocabulary(keys)
        _check_tensor_types(file)
        _check_tensor_names(file, keys)
    except (GGUFError, UnsupportedModel) as error:
        raise type(error)(f"{file.path}: {error.message}", error.hint) from None
    return Dimensions(keys.integer("block_count"), keys.integer("embedding_length"), head_length, kv_heads)


class _Keys:
    """The file's metadata by the keys' short names, with one way to refuse."""

    def __init__(self, file: GGUFFile) -> None:
        self.metadata = file.metadata
        self.architecture = file.architecture

    def full(self, key: str) -> str:
        return f"{self.architecture}.{key}"

    def integer(self, key: str, default: int | None = None) -> int:
        if default is None:
            return need(self.metadata, self.full(key), int)
        value = get(self.metadata, self.full(key), int, default)
        assert value is not None
        return value

    def real(self, key: str, default: float) -> float:
        value = get(self.metadata, self.full(key), float, default)
        assert value is not None
        return value

    def a_layer(self, key: str, layers: int, default: list[int] | None = None) -> list[int]:
        """A number for each layer: an array of them, or one for all."""
        typed = self.metadata.get(self.full(key))
        if typed is None and default is not None:
            return default
        if typed is None or not typed.is_array:
            return [self.integer(key)] * layers
        if len(typed.value) != layers:
            raise GGUFError(f"{self.full(key)} has {len(typed.value)} elements for {layers} layers")
        return [int(value) for value in typed.value]

    def refuse(self, key: str, value: Any, why: str) -> GGUFError:
        return GGUFError(
            f"{self.full(key)} is {value!r}, {why}", "the file is damaged: download or convert it again"
        )


def _check_architecture(file: GGUFFile) -> None:
    if file.architecture not in ARCHITECTURES:
        raise UnsupportedModel(
            f"{file.path}: the architecture {file.architecture!r} cannot be run",
            f"these can: {', '.join(ARCHITECTURES)}",
        )


def _check_sizes(keys: _Keys) -> None:
    layers = keys.integer("block_count")
    if not 1 <= layers <= MAX_LAYERS:
        raise keys.refuse("block_count", layers, f"not between 1 and {MAX_LAYERS}")
    for key in ("context_length", "embedding_length"):
        value = keys.integer(key)
        if not 1 <= value < 2**31:
            raise keys.refuse(key, value, "not a size")
    for value in keys.a_layer("feed_forward_length", layers):
        if value < 1:
            raise keys.refuse("feed_forward_length", value, "not a size")
    prediction_layers = keys.integer("nextn_predict_layers", 0)
    if prediction_layers:
        raise keys.refuse("nextn_predict_layers", prediction_layers, "not 0, which this architecture has")
    for key in EPSILON_KEYS.values():
        epsilon = keys.real(key, 0.0)
        if not 0 <= epsilon < math.inf:
            raise keys.refuse(key, epsilon, "not a small positive number")
    if get(keys.metadata, keys.full("attention.causal"), bool, True) is False:
        raise keys.refuse("attention.causal", False, "and a model that does not look back cannot be run")


def _check_heads(keys: _Keys) -> tuple[int, tuple[int, ...]]:
    """The length of a head, and the KV heads of each layer."""
    layers = keys.integer("block_count")
    heads = keys.a_layer("attention.head_count", layers)
    kv_heads = keys.a_layer("attention.head_count_kv", layers, heads)
    for key, counts in (("attention.head_count", heads), ("attention.head_count_kv", kv_heads)):
        if len(set(counts)) > 1:
            raise keys.refuse(key, counts, "and layers of different shape cannot be run")
    for count, kv_count in zip(heads, kv_heads, strict=True):
        if count < 1:
            raise keys.refuse("attention.head_count", count, "not a number of heads")
        if kv_count < 1 or count % kv_count:
            raise keys.refuse("attention.head_count_kv", kv_count, f"which does not divide {count} heads")
    head = keys.integer("embedding_length") // heads[0]
    key_length = keys.integer("attention.key_length", head)
    value_length = keys.integer("attention.value_length", head)
    rotated = keys.integer("rope.dimension_count", key_length)
    if key_length < 2 or key_length % 2:
        raise keys.refuse("attention.key_length", key_length, "not an even number of dimensions to rotate")
    if value_length != key_length:
        raise keys.refuse("attention.value_length", value_length, f"not the key length {key_length}")
    width = keys.integer("embedding_length")
    if key_length * heads[0] != width and keys.architecture not in _FREE_HEADS:
        why = f"and heads of {key_length} are not the embedding length {width}"
        raise keys.refuse("attention.head_count", heads[0], why)
    families = [family for family in FAMILIES if family.architecture == keys.architecture]
    if rotated != key_length and all(family.rotary == WHOLE_HEAD for family in families):
        raise keys.refuse("rope.dimension_count", rotated, f"not the key length {key_length}")
    if not 0 <= rotated <= key_length or rotated % 2:
        raise keys.refuse("rope.dimension_count", rotated, f"not an even part of {key_length}")
    return key_length, tuple(kv_heads)


def _check_sliding_layers(keys: _Keys, head_length: int) -> None:
    """Where a graph may have sliding layers, one at least must slide, and they are shaped as the others."""
    for key in _OF_SLIDING_LAYERS:
        others = keys.integer(key, head_length)
        own = keys.integer(f"{key}_swa", others)
        if own != others:
            raise keys.refuse(f"{key}_swa", own, f"not {others} as in layers that do not slide")
    window = keys.integer(WINDOW_KEY, _SLIDING_WINDOWS.get(keys.architecture, 0))
    if keys.architecture not in _SLIDING_PERIODS or (
        window == 0 and keys.architecture not in _SLIDING_WINDOWS
    ):
        return
    if not 1 <= window < 2**31:
        raise keys.refuse(WINDOW_KEY, window, "not a number of tokens")
    pattern = keys.metadata.get(keys.full(PATTERN_KEY))
    if pattern is not None and pattern.is_array:
        slides = any(pattern.value[: keys.integer("block_count")])
    else:
        slides = keys.integer(PATTERN_KEY, _SLIDING_PERIODS[keys.architecture]) != 1
    if not slides:
        raise keys.refuse(PATTERN_KEY, pattern.value if pattern else None, "by which no layer slides")


def _check_positions(keys: _Keys) -> None:
    """llama.cpp reads the scaling of graphs, too, that rotate nothing."""
    rope_from_metadata(keys.metadata, keys.architecture)
    kind = get(keys.metadata, keys.full("rope.scaling.type"), str, GGUF_KINDS[0])
    if kind not in GGUF_KINDS:
        raise keys.refuse("rope.scaling.type", kind, f"none of {', '.join(GGUF_KINDS)}")


def _check_experts(keys: _Keys, tensors: int) -> None:
    experts = keys.integer("expert_count", 0)
    layers = keys.integer("block_count")
    used_by_layer = keys.a_layer("expert_used_count", layers, [0])
    used, least = max(used_by_layer), min(used_by_layer)
    groups = keys.integer("expert_group_count", 0)
    used_groups = keys.integer("expert_group_used_count", 0)
    if not 0 <= experts <= MAX_EXPERTS:
        raise keys.refuse("expert_count", experts, f"not between 0 and {MAX_EXPERTS}")
    if used > experts or (experts and least < 1):
        raise keys.refuse("expert_used_count", used if used > experts else least, f"with {experts} experts")
    if used and layers * (_LAYER_NODES + 2 * used) > max(1024, 8 * tensors):
        raise keys.refuse("expert_used_count", used, "more than llama.cpp's graph has room for")
    if groups > max(0, experts - 1) or (groups > 1 and experts % groups):
        raise keys.refuse("expert_group_count", groups, f"with {experts} experts")
    if groups > 1 and not 0 < used_groups < groups:
        raise keys.refuse("expert_group_used_count", used_groups, f"of {groups} groups")


def _check_vocabulary(keys: _Keys) -> None:
    model = need(keys.metadata, "tokenizer.ggml.model", str)
    if model not in TOKENIZER_MODELS:
        raise UnsupportedModel(
            f"tokenizer.ggml.model is {model!r}", f"these can be run: {', '.join(TOKENIZER_MODELS)}"
        )
    tokens = _distinct_tokens(keys)
    if model == "llama":
        _check_byte_tokens(tokens)
    pre = get(keys.metadata, "tokenizer.ggml.pre", str)
    if pre in _UNSAFE_PRE_TOKENIZERS:
        raise GGUFError(f"tokenizer.ggml.pre is {pre!r}, which belongs to other architectures")
    for name in ("bos", "eos"):
        key = f"tokenizer.ggml.{name}_token_id"
        token = get(keys.metadata, key, int)
        if token is not None and not 0 <= token < len(tokens):
            raise GGUFError(f"{key} is {token}, outside the vocabulary of {len(tokens)} tokens")


def _distinct_tokens(keys: _Keys) -> set[str]:
    """The vocabulary. llama.cpp names an empty one by its place, and asserts that no two are equal."""
    listed = elements(keys.metadata, "tokenizer.ggml.tokens")
    if not listed or keys.metadata["tokenizer.ggml.tokens"].kind != "str":
        raise GGUFError(
            "tokenizer.ggml.tokens holds no tokens", "convert the model again, with its tokenizer"
        )
    seen: dict[str, int] = {}
    for place, text in enumerate(listed):
        first = seen.setdefault(text or f"[EMPTY_{place}]", place)
        if first != place:
            raise GGUFError(f"tokenizer.ggml.tokens holds {text!r} twice, at {first} and {place}")
    return set(seen)


def _check_byte_tokens(tokens: set[str]) -> None:
    """Sentencepiece text falls back to bytes; a byte without a token is an uncaught C++ exception."""
    for byte in range(256):
        if f"<0x{byte:02X}>" not in tokens and (byte > 127 or chr(byte) not in tokens):
            raise GGUFError(
                f"tokenizer.ggml.tokens has no byte token <0x{byte:02X}>",
                "text with characters outside the vocabulary could not be tokenized",
            )


def _check_tensor_types(file: GGUFFile) -> None:
    for tensor in file.tensors.values():
        elementwise = tensor.rows == 1 or tensor.name.endswith(_ELEMENTWISE_ENDINGS)
        if tensor.type in _NOT_WEIGHTS or (elementwise and tensor.type != TensorType.F32):
            raise GGUFError(
                f"tensor {tensor.name} is of type {tensor.type.name}, which llama.cpp does not compute"
            )


def _check_tensor_names(file: GGUFFile, keys: _Keys) -> None:
    """Refuse what the loader lets pass: optional tensors that a graph needs, or cannot compute with."""
    for layer in range(keys.integer("block_count")):
        prefix = f"blk.{layer}."
        uncomputed = _UNCOMPUTED.get(file.architecture)
        if uncomputed and prefix + uncomputed in file.tensors:
            raise GGUFError(f"tensor {prefix}{uncomputed} is one that llama.cpp cannot compute with")
        if file.architecture in _UNCHECKED_ATTENTION and f"{prefix}attn_qkv.weight" not in file.tensors:
            for name in ("attn_q", "attn_k", "attn_v"):
                if f"{prefix}{name}.weight" not in file.tensors:
                    raise GGUFError(f"tensor {prefix}{name}.weight is missing")
