"""Limits, enum values and sizes that are compiled into llama.cpp and that no function of its API returns."""

from __future__ import annotations

from typing import Final, Literal

# src/llama-hparams.h: loading a file with more of them aborts the process.
MAX_LAYERS = 512  # LLAMA_MAX_LAYERS
MAX_EXPERTS = 1024  # LLAMA_MAX_EXPERTS

MAX_SEQUENCES = 256  # src/llama-cparams.h, LLAMA_MAX_SEQ
MAX_THREADS = 512  # ggml/include/ggml.h, GGML_MAX_N_THREADS
MAX_KV_CELLS = 2**31 - 1  # positions and cell indices are int32

KV_CELL_PADDING = 256  # src/llama-context.cpp: n_ctx_seq is padded to a multiple of it
KV_CELL_BYTES = 64  # src/llama-kv-cells.h: of a cell besides its K and V (position, shift, set of sequences)

# src/llama-kv-cache.cpp, attn_rot_k: quantized K is stored after a Hadamard rotation where the head size is a
# multiple of it. Without the rotation a K shift of quantized keys crashes.
ATTN_ROTATION_MULTIPLE = 64

# The rope types (pigguf.rope) whose K shift is only a rotation. With others llama_kv_cache::build_rope_shift
# multiplies shifted keys by the attention factor, once more at each shift.
SHIFTABLE_ROPE_TYPES = ("none", "linear", "llama3")

# Nodes of a layer with experts, besides two for each expert that is used.
MOE_LAYER_NODES = 64

# include/llama.h
FLASH_ATTN_TYPES: Final[dict[bool | None, int]] = {None: -1, False: 0, True: 1}  # llama_flash_attn_type
POOLING_NONE = 0  # llama_pooling_type
POOLING_TYPES: Final[dict[int | None, Literal["mean", "cls", "last"]]] = {1: "mean", 2: "cls", 3: "last"}
LOAD_MODE_AUTO, LOAD_MODE_NONE = -1, 0  # llama_load_mode: memory-mapped where possible; read
DECODE_OK, DECODE_ABORTED = 0, 2  # return values of llama_decode
RANDOM_SEED = 0xFFFFFFFF  # LLAMA_DEFAULT_SEED: the library chooses one
# llama_model_kv_override_type by GGUF value type, and the union's member
KV_OVERRIDE_TAGS = {"u32": (0, "val_i64"), "f32": (1, "val_f64"), "str": (3, "val_str")}

# ggml/include/ggml.h, ggml_log_level
LOG_DEBUG, LOG_INFO, LOG_WARN, LOG_ERROR, LOG_CONTINUE = 1, 2, 3, 4, 5

DeviceKind = Literal["cpu", "gpu", "integrated gpu", "accelerator", "meta"]
# ggml/include/ggml-backend.h, ggml_backend_dev_type, in its order
DEVICE_KINDS: tuple[DeviceKind, ...] = ("cpu", "gpu", "integrated gpu", "accelerator", "meta")


def graph_max_nodes(n_tensors: int) -> int:
    """Return how many graph nodes llama.cpp reserves for a model with `n_tensors` tensors.

    Source: src/llama-context.cpp, graph_max_nodes.
    """
    return max(1024, 8 * n_tensors)
