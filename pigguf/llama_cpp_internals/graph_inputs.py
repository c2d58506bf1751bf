"""Which architecture's graph reads, requires or cannot compute which key or tensor.

By general.architecture, read from llama.cpp's src/models/. Rope keys have a module of their own
(rope_keys.py), sliding windows too (sliding_window.py).
"""

from __future__ import annotations

from pigguf.gguf_io import TensorType

TOKENIZER_MODELS = ("llama", "gpt2")  # tokenizer.ggml.model that pigguf runs
# src/llama-vocab.cpp, tokenizer.ggml.pre: one asserts on two spaces in a row, one recurses once a word.
UNSAFE_PRE_TOKENIZERS = ("whitespace", "exaone-moe")

# Graphs whose head_dim may differ from embedding_length / head_count; others reshape to the embedding length.
FREE_HEAD_DIM = ("llama", "qwen3", "gemma", "gemma2", "gemma3", "granite", "smollm3")
# Graphs that take a layer with neither a fused nor a split QKV as one of another kind, and then crash.
UNCHECKED_QKV = ("phi3",)
# Tensors that the loader of an architecture accepts and its graph cannot compute with.
UNCOMPUTABLE_TENSORS = {"mpt": "attn_q_norm.weight"}

POSITION_EMBEDDINGS = "position_embd.weight"  # of GPT-2 and StarCoder, and of some MPT besides ALiBi
LEARNED_POSITION_ARCHITECTURES = ("gpt2", "starcoder")
ALIBI_ARCHITECTURES = ("bloom", "mpt")
# Graphs that use ALiBi in models with this number of layers, and rotary positions in others (baichuan.cpp).
ALIBI_LAYER_COUNTS = {"baichuan": 40}

# ggml/src/ggml-cpu/ggml-cpu.c, type_traits_cpu: types without vec_dot, which cannot be weights of a product.
NOT_WEIGHT_TYPES = frozenset(
    {
        *(TensorType.I8, TensorType.I16, TensorType.I32, TensorType.I64, TensorType.F64),
        *(TensorType.Q8_1, TensorType.Q8_K),
    }
)
# Tensors that are added or multiplied element by element: ggml-cpu/ops.cpp takes them in F32 only.
ELEMENTWISE_SUFFIXES = ("_norm.weight", ".bias", ".scale", ".input_scale", "rope_freqs.weight")

# src/llama-model.cpp, llama_model_rope_type: whether a head's dimensions 2i and 2i + 1 are rotated together
# (LLAMA_ROPE_TYPE_NORM, GPT-J style), or i and i + d / 2 (LLAMA_ROPE_TYPE_NEOX, rotate_half).
INTERLEAVED_ROPE = {"llama": True, "qwen2": False, "qwen3": False}
