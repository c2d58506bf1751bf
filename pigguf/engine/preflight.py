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

from pigguf.arch import FAMILIES
from pigguf.arch.keys import WHOLE_HEAD
from pigguf.errors import GGUFError, UnsupportedModel
from pigguf.gguf_file import GGUFFile, TensorType
from pigguf.metadata import elements, get, need
from pigguf.rope import rope_from_metadata
from pigguf.spec import EPSILON_KEYS

ARCHITECTURES = tuple(dict.fromkeys(family.architecture for family in FAMILIES))

MAX_LAYERS = 512  # LLAMA_MAX_LAYERS
MAX_EXPERTS = 1024  # LLAMA_MAX_EXPERTS
TOKENIZER_MODELS = ("llama", "gpt2")
# Pre-tokenizers of other architectures: one asserts on two blanks, one recurses once a word.
_UNSAFE_PRE_TOKENIZERS = ("whitespace", "exaone-moe")

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
        rope_from_metadata(file.metadata, file.architecture)
        _check_experts(keys)
        _check_vocabulary(keys)
        _check_tensor_types(file)
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
    families = [family for family in FAMILIES if family.architecture == keys.architecture]
    if rotated != key_length and all(family.rotary == WHOLE_HEAD for family in families):
        raise keys.refuse("rope.dimension_count", rotated, f"not the key length {key_length}")
    if not 0 <= rotated <= key_length or rotated % 2:
        raise keys.refuse("rope.dimension_count", rotated, f"not an even part of {key_length}")
    return key_length, tuple(kv_heads)


def _check_experts(keys: _Keys) -> None:
    experts = keys.integer("expert_count", 0)
    used = max(keys.a_layer("expert_used_count", keys.integer("block_count"), [0]))
    groups = keys.integer("expert_group_count", 0)
    used_groups = keys.integer("expert_group_used_count", 0)
    if not 0 <= experts <= MAX_EXPERTS:
        raise keys.refuse("expert_count", experts, f"not between 0 and {MAX_EXPERTS}")
    if used > experts or (experts and used < 1):
        raise keys.refuse("expert_used_count", used, f"with {experts} experts")
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
