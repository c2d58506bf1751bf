"""Checks of a GGUF file before llama.cpp loads it, which would abort the process on what they find.

`pigguf.gguf_io.read_header` has checked the container: every length, offset, type number and shape. This
module checks what the numbers mean to the loader and the graphs, for SUPPORTED_ARCHITECTURES. What the loader
itself answers with a plain error (a missing tensor, a wrong shape, a key of the wrong type) is left to it.

The GGML_ASSERTs and uncaught exceptions are in llama.cpp src/llama-model.cpp (load_hparams), src/models/
(graphs), src/llama-vocab.cpp (load, byte_to_token, find_bpe_rank), src/llama-context.cpp (decode),
ggml/src/ggml.c and ggml-cpu/ops.cpp (operators). Which graph has which of them: pigguf/llama_cpp_internals/.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from pigguf.architectures import FAMILIES
from pigguf.architectures.hparam_rules import FULL_ROTARY
from pigguf.architectures.hparams import NORM_EPSILON_KEYS
from pigguf.errors import GGUFError, UnsupportedModel
from pigguf.gguf_io import GGUFFile, TensorType
from pigguf.gguf_io.metadata import get_array, get_value, require_value
from pigguf.llama_cpp_internals.graph_inputs import (
    ELEMENTWISE_SUFFIXES,
    FREE_HEAD_DIM,
    NOT_WEIGHT_TYPES,
    TOKENIZER_MODELS,
    UNCHECKED_QKV,
    UNCOMPUTABLE_TENSORS,
    UNSAFE_PRE_TOKENIZERS,
)
from pigguf.llama_cpp_internals.limits import MAX_EXPERTS, MAX_LAYERS, MOE_LAYER_NODES, graph_max_nodes
from pigguf.llama_cpp_internals.rope_keys import GGUF_ROPE_TYPES
from pigguf.llama_cpp_internals.sliding_window import (
    PATTERN_KEY,
    SLIDING_LAYER_KEYS,
    SLIDING_WINDOWS,
    WINDOW_KEY,
    layers_that_slide,
)
from pigguf.rope import rope_from_metadata

SUPPORTED_ARCHITECTURES = tuple(dict.fromkeys(family.architecture for family in FAMILIES))


@dataclass(frozen=True)
class ModelDimensions:
    """The sizes of a model, checked.

    Attributes:
        layers, embedding_length: of the model.
        head_dim: dimensions of a head, of keys and of values.
        kv_heads: KV heads of each layer.
    """

    layers: int
    embedding_length: int
    head_dim: int
    kv_heads: tuple[int, ...]


def check_loadable(file: GGUFFile) -> ModelDimensions:
    """Raise if llama.cpp would abort on a file, and return the sizes of one that it can load.

    Raises:
        GGUFError: a value is impossible; the message has the file, the key and the value.
        UnsupportedModel: the architecture or the tokenizer is not supported.
    """
    _check_architecture(file)
    keys = _HparamKeys(file)
    try:
        _check_sizes(keys)
        head_dim, kv_heads = _check_heads(keys)
        _check_sliding_layers(keys, head_dim)
        _check_positions(keys)
        _check_experts(keys, len(file.tensors))
        _check_vocabulary(keys)
        _check_tensor_types(file)
        _check_tensor_names(file, keys)
    except (GGUFError, UnsupportedModel) as error:
        raise type(error)(f"{file.path}: {error.message}", error.hint) from None
    return ModelDimensions(keys.integer("block_count"), keys.integer("embedding_length"), head_dim, kv_heads)


class _HparamKeys:
    """Reads a file's metadata by keys without the architecture's prefix."""

    def __init__(self, file: GGUFFile) -> None:
        self.metadata = file.metadata
        self.architecture = file.architecture

    def full_key(self, key: str) -> str:
        return f"{self.architecture}.{key}"

    def integer(self, key: str, default: int | None = None) -> int:
        if default is None:
            return require_value(self.metadata, self.full_key(key), int)
        value = get_value(self.metadata, self.full_key(key), int, default)
        assert value is not None
        return value

    def real(self, key: str, default: float) -> float:
        value = get_value(self.metadata, self.full_key(key), float, default)
        assert value is not None
        return value

    def per_layer(self, key: str, layers: int, default: list[int] | None = None) -> list[int]:
        """Return a number for each layer, from an array of them or one number for all."""
        typed = self.metadata.get(self.full_key(key))
        if typed is None and default is not None:
            return default
        if typed is None or not typed.is_array:
            return [self.integer(key)] * layers
        if len(typed.value) != layers:
            raise GGUFError(f"{self.full_key(key)} has {len(typed.value)} elements for {layers} layers")
        return [int(value) for value in typed.value]

    def error(self, key: str, value: Any, reason: str) -> GGUFError:
        return GGUFError(
            f"{self.full_key(key)} is {value!r}, {reason}",
            "the file is damaged: download or convert it again",
        )


def _check_architecture(file: GGUFFile) -> None:
    if file.architecture not in SUPPORTED_ARCHITECTURES:
        raise UnsupportedModel(
            f"{file.path}: the architecture {file.architecture!r} cannot be run",
            f"these can: {', '.join(SUPPORTED_ARCHITECTURES)}",
        )


def _check_sizes(keys: _HparamKeys) -> None:
    layers = keys.integer("block_count")
    if not 1 <= layers <= MAX_LAYERS:
        raise keys.error("block_count", layers, f"not between 1 and {MAX_LAYERS}")
    for key in ("context_length", "embedding_length"):
        value = keys.integer(key)
        if not 1 <= value < 2**31:
            raise keys.error(key, value, "not a size")
    for value in keys.per_layer("feed_forward_length", layers):
        if value < 1:
            raise keys.error("feed_forward_length", value, "not a size")
    prediction_layers = keys.integer("nextn_predict_layers", 0)
    if prediction_layers:
        raise keys.error("nextn_predict_layers", prediction_layers, "not 0, which this architecture has")
    for key in NORM_EPSILON_KEYS.values():
        epsilon = keys.real(key, 0.0)
        if not 0 <= epsilon < math.inf:
            raise keys.error(key, epsilon, "not a small positive number")
    if get_value(keys.metadata, keys.full_key("attention.causal"), bool, True) is False:
        raise keys.error("attention.causal", False, "and a model without causal attention cannot be run")


def _check_heads(keys: _HparamKeys) -> tuple[int, tuple[int, ...]]:
    """Return the dimensions of a head, and the KV heads of each layer."""
    layers = keys.integer("block_count")
    heads = keys.per_layer("attention.head_count", layers)
    kv_heads = keys.per_layer("attention.head_count_kv", layers, heads)
    for key, counts in (("attention.head_count", heads), ("attention.head_count_kv", kv_heads)):
        if len(set(counts)) > 1:
            raise keys.error(key, counts, "and layers of different shape cannot be run")
    for count, kv_count in zip(heads, kv_heads, strict=True):
        if count < 1:
            raise keys.error("attention.head_count", count, "not a number of heads")
        if kv_count < 1 or count % kv_count:
            raise keys.error("attention.head_count_kv", kv_count, f"which does not divide {count} heads")
    head = keys.integer("embedding_length") // heads[0]
    key_length = keys.integer("attention.key_length", head)
    value_length = keys.integer("attention.value_length", head)
    rotated = keys.integer("rope.dimension_count", key_length)
    if key_length < 2 or key_length % 2:
        raise keys.error("attention.key_length", key_length, "not an even number of dimensions to rotate")
    if value_length != key_length:
        raise keys.error("attention.value_length", value_length, f"not the key length {key_length}")
    width = keys.integer("embedding_length")
    if key_length * heads[0] != width and keys.architecture not in FREE_HEAD_DIM:
        why = f"and heads of {key_length} are not the embedding length {width}"
        raise keys.error("attention.head_count", heads[0], why)
    families = [family for family in FAMILIES if family.architecture == keys.architecture]
    if rotated != key_length and all(family.rotary == FULL_ROTARY for family in families):
        raise keys.error("rope.dimension_count", rotated, f"not the key length {key_length}")
    if not 0 <= rotated <= key_length or rotated % 2:
        raise keys.error("rope.dimension_count", rotated, f"not an even part of {key_length}")
    return key_length, tuple(kv_heads)


def _check_sliding_layers(keys: _HparamKeys, head_dim: int) -> None:
    """Raise if sliding layers differ in shape from the others, or a graph with a window has none."""
    for key in SLIDING_LAYER_KEYS:
        others = keys.integer(key, head_dim)
        own = keys.integer(f"{key}_swa", others)
        if own != others:
            raise keys.error(f"{key}_swa", own, f"not {others} as in layers that do not slide")
    default = SLIDING_WINDOWS.get(keys.architecture)
    if default is None:
        return
    window = keys.integer(WINDOW_KEY, default.default_window or 0)
    if window == 0 and default.default_window is None:
        return
    if not 1 <= window < 2**31:
        raise keys.error(WINDOW_KEY, window, "not a number of tokens")
    typed = keys.metadata.get(keys.full_key(PATTERN_KEY))
    if typed is not None and typed.is_array:
        pattern = typed.value
    else:
        pattern = None if typed is None else keys.integer(PATTERN_KEY)
    if not any(layers_that_slide(keys.architecture, keys.integer("block_count"), pattern)):
        raise keys.error(PATTERN_KEY, typed.value if typed else None, "by which no layer slides")


def _check_positions(keys: _HparamKeys) -> None:
    """Raise if the rope keys are invalid; llama.cpp reads them for models without rotary positions too."""
    rope_from_metadata(keys.metadata, keys.architecture)
    kind = get_value(keys.metadata, keys.full_key("rope.scaling.type"), str, GGUF_ROPE_TYPES[0])
    if kind not in GGUF_ROPE_TYPES:
        raise keys.error("rope.scaling.type", kind, f"none of {', '.join(GGUF_ROPE_TYPES)}")


def _check_experts(keys: _HparamKeys, n_tensors: int) -> None:
    experts = keys.integer("expert_count", 0)
    layers = keys.integer("block_count")
    used_by_layer = keys.per_layer("expert_used_count", layers, [0])
    used, least = max(used_by_layer), min(used_by_layer)
    groups = keys.integer("expert_group_count", 0)
    used_groups = keys.integer("expert_group_used_count", 0)
    if not 0 <= experts <= MAX_EXPERTS:
        raise keys.error("expert_count", experts, f"not between 0 and {MAX_EXPERTS}")
    if used > experts or (experts and least < 1):
        raise keys.error("expert_used_count", used if used > experts else least, f"with {experts} experts")
    if used and layers * (MOE_LAYER_NODES + 2 * used) > graph_max_nodes(n_tensors):
        raise keys.error("expert_used_count", used, "more than llama.cpp's graph has room for")
    if groups > max(0, experts - 1) or (groups > 1 and experts % groups):
        raise keys.error("expert_group_count", groups, f"with {experts} experts")
    if groups > 1 and not 0 < used_groups < groups:
        raise keys.error("expert_group_used_count", used_groups, f"of {groups} groups")


def _check_vocabulary(keys: _HparamKeys) -> None:
    model = require_value(keys.metadata, "tokenizer.ggml.model", str)
    if model not in TOKENIZER_MODELS:
        raise UnsupportedModel(
            f"tokenizer.ggml.model is {model!r}", f"these can be run: {', '.join(TOKENIZER_MODELS)}"
        )
    tokens = _distinct_tokens(keys)
    if model == "llama":
        _check_byte_tokens(tokens)
    pre = get_value(keys.metadata, "tokenizer.ggml.pre", str)
    if pre in UNSAFE_PRE_TOKENIZERS:
        raise GGUFError(f"tokenizer.ggml.pre is {pre!r}, which belongs to other architectures")
    for name in ("bos", "eos"):
        key = f"tokenizer.ggml.{name}_token_id"
        token = get_value(keys.metadata, key, int)
        if token is not None and not 0 <= token < len(tokens):
            raise GGUFError(f"{key} is {token}, outside the vocabulary of {len(tokens)} tokens")


def _distinct_tokens(keys: _HparamKeys) -> set[str]:
    """Return the vocabulary; llama.cpp names an empty token by its index, and asserts that all differ."""
    texts = get_array(keys.metadata, "tokenizer.ggml.tokens")
    if not texts or keys.metadata["tokenizer.ggml.tokens"].type != "str":
        raise GGUFError(
            "tokenizer.ggml.tokens holds no tokens", "convert the model again, with its tokenizer"
        )
    seen: dict[str, int] = {}
    for index, text in enumerate(texts):
        first = seen.setdefault(text or f"[EMPTY_{index}]", index)
        if first != index:
            raise GGUFError(f"tokenizer.ggml.tokens holds {text!r} twice, at {first} and {index}")
    return set(seen)


def _check_byte_tokens(tokens: set[str]) -> None:
    """Raise if a byte has no token, on which sentencepiece's byte fallback throws an uncaught exception."""
    for byte in range(256):
        if f"<0x{byte:02X}>" not in tokens and (byte > 127 or chr(byte) not in tokens):
            raise GGUFError(
                f"tokenizer.ggml.tokens has no byte token <0x{byte:02X}>",
                "text with characters outside the vocabulary could not be tokenized",
            )


def _check_tensor_types(file: GGUFFile) -> None:
    for tensor in file.tensors.values():
        elementwise = tensor.rows == 1 or tensor.name.endswith(ELEMENTWISE_SUFFIXES)
        if tensor.type in NOT_WEIGHT_TYPES or (elementwise and tensor.type != TensorType.F32):
            raise GGUFError(
                f"tensor {tensor.name} is of type {tensor.type.name}, which llama.cpp does not compute"
            )


def _check_tensor_names(file: GGUFFile, keys: _HparamKeys) -> None:
    """Raise for what the loader accepts: optional tensors that a graph needs, or cannot compute with."""
    for layer in range(keys.integer("block_count")):
        prefix = f"blk.{layer}."
        uncomputable = UNCOMPUTABLE_TENSORS.get(file.architecture)
        if uncomputable and prefix + uncomputable in file.tensors:
            raise GGUFError(f"tensor {prefix}{uncomputable} is one that llama.cpp cannot compute with")
        if file.architecture in UNCHECKED_QKV and f"{prefix}attn_qkv.weight" not in file.tensors:
            for name in ("attn_q", "attn_k", "attn_v"):
                if f"{prefix}{name}.weight" not in file.tensors:
                    raise GGUFError(f"tensor {prefix}{name}.weight is missing")
